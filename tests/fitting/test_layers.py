"""Models of other layers than the default, from images to scores."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
import torch

import mvad
from helpers.tiles import EMBEDDED
from mvad.detectors import PatchCore
from mvad.features.backbones import describe
from mvad.fitting.tasks import fit_to_shards, summarise_shard
from mvad.model_store import find_models
from mvad.options import FitOptions
from mvad.storage import to_uri

pytestmark = pytest.mark.usefixtures("ray_local")
OPTIONS = {**EMBEDDED, "image_size": 64, "folds": 0, "categories": "alpha", "coreset_ratio": 0.05, "quiet": True}


def scores(out):
    table = pq.read_table(out / "scores").sort_by("image_id")
    return dict(zip(table["image_id"].to_pylist(), table["score"].to_pylist(), strict=True))


def test_a_model_scores_with_the_layers_that_it_was_fitted_with(tiles, tmp_path):
    chosen = {"layers": "4,8", "neighbourhood": 1}
    mvad.run(str(tiles), str(tmp_path / "run"), actors=2, batch_size=3, **chosen, **OPTIONS)
    recorded = json.loads((tmp_path / "run/run.json").read_text())["options"]
    assert (recorded["layers"], recorded["neighbourhood"], recorded["norm"]) == ([4, 8], 1, False)
    assert (recorded["image_size"], recorded["reweight"]) == (64, 9)
    (model,) = find_models(to_uri(tmp_path / "run/models")).values()
    assert model.backbone == describe("efficientnet_lite0", (4, 8), neighbourhood=1)
    assert model.record["feature_shape"] == [8, 8, 24 + 40]
    mvad.run(str(tiles), str(tmp_path / "again"), actors=1, batch_size=32, **chosen, **OPTIONS)
    mvad.run(str(tiles), str(tmp_path / "default"), actors=1, **OPTIONS)
    assert scores(tmp_path / "again") == scores(tmp_path / "run")
    assert scores(tmp_path / "default") != scores(tmp_path / "run")


def test_a_bank_of_each_layer_knows_the_channels_of_the_network(tiles, tmp_path):
    chosen = {"layers": "4,8,16", "banks": "layers"}
    mvad.run(str(tiles), str(tmp_path / "run"), actors=2, batch_size=3, **chosen, **OPTIONS)
    (model,) = find_models(to_uri(tmp_path / "run/models")).values()
    assert model.settings["channels"] == [24, 40, 112]
    mvad.run(str(tiles), str(tmp_path / "again"), actors=1, batch_size=32, **chosen, **OPTIONS)
    assert scores(tmp_path / "again") == scores(tmp_path / "run")


def test_a_shard_is_summarised_layer_by_layer():
    options = FitOptions(backbone="efficientnet_lite0", layers=[4, 8], banks="layers", coreset_ratio=0.5)
    features = np.random.default_rng(0).standard_normal((4, 3, 3, 24 + 40)).astype(np.float32)
    coresets, _ = summarise_shard(options, features, np.arange(4), 0.5)
    assert [one.vectors.shape for one in coresets] == [(18, 24), (18, 40)]
    fitted = fit_to_shards(options, 36, [ray.put(features)], [ray.put(coresets)], None)
    detector = PatchCore.from_state(fitted.state)
    np.testing.assert_array_equal(fitted.held_out.scores, detector.score(torch.from_numpy(features)).image)
