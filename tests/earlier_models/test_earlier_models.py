"""Models that earlier versions wrote are read, and score as they did.

Each folder is named after the commit whose code wrote it, with `helpers/earlier_models.py`. f6e008c is the oldest one
whose models are still read.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from mvad.detectors import State, find_method
from mvad.errors import ModelError
from mvad.model_store import (
    FORMAT,
    find_models,
    read_arrays,
    read_calibration,
    read_map_peaks,
    read_model,
    read_patch_sample,
)
from mvad.storage import to_uri

HERE = Path(__file__).parent
MODELS = sorted(HERE.glob("*/models/*/cap"))


def test_there_are_models_of_several_versions_and_methods():
    found = {(model.parts[-4], model.parent.name) for model in MODELS}
    of_oldest = {("f6e008c", method) for method in ("patchcore", "knn", "feature-autoencoder")}
    assert found == of_oldest | {("327df9b", "patchcore"), ("327df9b", "knn")}


@pytest.mark.parametrize("folder", MODELS, ids=lambda folder: "-".join(folder.parts[-4:-1:2]))
def test_a_model_of_an_earlier_version_scores_as_it_did(folder):
    method, root = folder.parent.name, folder.parents[2]
    model = find_models(to_uri(root / "models"), method)["cap"]
    detector = find_method(method).from_state(State(model.settings, read_arrays(model)))
    stored = np.load(root / f"{method}.npz")
    scores = detector.score(torch.from_numpy(stored["features"])).image
    np.testing.assert_allclose(scores, stored["scores"], rtol=1e-4)
    np.testing.assert_array_equal(read_calibration(model), np.sort(stored["scores"]))
    further = [read_map_peaks(model) is not None, read_patch_sample(model) is not None]
    assert further == [root.name == "327df9b"] * 2


@pytest.mark.parametrize("number", [FORMAT - 1, FORMAT + 1])
def test_a_model_of_another_format_is_refused_by_its_number(tmp_path, number):
    shutil.copytree(HERE / "f6e008c/models/knn/cap", tmp_path / "cap")
    document = json.loads((tmp_path / "cap/model.json").read_text())
    (tmp_path / "cap/model.json").write_text(json.dumps({**document, "format": number}))
    with pytest.raises(ModelError, match=f"it has format {number}, this mvad reads {FORMAT}; fit it again"):
        read_model(to_uri(tmp_path / "cap"))
