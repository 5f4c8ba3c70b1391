import numpy as np
import pytest
import torch

from mvad.data.image_size import ImageSize
from mvad.detectors import PatchCore
from mvad.errors import UsageError
from mvad.features.backbones import describe
from mvad.model_store import FittedModel, find_models, models_for, read_arrays, save_model
from mvad.storage import to_uri

RECORD = {"n_train": 3, "errors": [], "fit_seconds": 1.0}


def fitted(seed=0):
    random = np.random.default_rng(seed)
    return PatchCore().fit(torch.from_numpy(random.standard_normal((3, 4, 4, 6)).astype(np.float32)))


def save(folder, category="cap", seed=0, record=RECORD):
    spec, size = describe("efficientnet_lite0"), ImageSize(resize=64, crop=64)
    return save_model(to_uri(folder), FittedModel(category, PatchCore, fitted(seed).state, spec, "abc", size, record))


def test_saved_and_read_again(tmp_path):
    model = save(tmp_path)
    found = find_models(to_uri(tmp_path))["cap"]
    assert found == model
    assert found.backbone == describe("efficientnet_lite0")
    np.testing.assert_array_equal(read_arrays(found)["bank"], fitted().arrays["bank"])
    assert sorted(p.name for p in (tmp_path / "patchcore/cap").iterdir()) == ["bank.npy", "model.json"]


def test_the_id_is_that_of_the_content(tmp_path):
    first = save(tmp_path / "a")
    assert save(tmp_path / "b", record={**RECORD, "fit_seconds": 9.0}).model_id == first.model_id
    assert save(tmp_path / "c", seed=1).model_id != first.model_id


@pytest.mark.parametrize("category", ["..", "a/b", "ä ö", "x=1%", "line\nbreak"])
def test_any_category_name(tmp_path, category):
    save(tmp_path / "models", category)
    assert list(find_models(to_uri(tmp_path / "models"))) == [category]
    assert [p.name for p in tmp_path.iterdir()] == ["models"]


def test_damage_is_found(tmp_path):
    model = save(tmp_path)
    place = tmp_path / "patchcore/cap/bank.npy"
    data = bytearray(place.read_bytes())
    data[-1] ^= 1
    place.write_bytes(data)
    with pytest.raises(UsageError, match="is damaged"):
        read_arrays(model)
    text = tmp_path / "patchcore/cap/model.json"
    text.write_text(text.read_text().replace('"reweight": 9', '"reweight": 8'))
    with pytest.raises(UsageError, match="is damaged"):
        find_models(to_uri(tmp_path))


def test_another_format(tmp_path):
    save(tmp_path)
    text = tmp_path / "patchcore/cap/model.json"
    text.write_text(text.read_text().replace('"format": 2', '"format": 99'))
    with pytest.raises(UsageError, match="has format 99"):
        find_models(to_uri(tmp_path))


def test_no_models(tmp_path):
    with pytest.raises(UsageError, match="no models in"):
        find_models(to_uri(tmp_path / "none"))


def test_names_that_differ_in_capitals_alone_are_pointed_out(tmp_path):
    save(tmp_path, "cam1")
    save(tmp_path, "lid")
    models = models_for(["Cam1", "lid", "other"], find_models(to_uri(tmp_path)))
    assert [*models] == ["lid"]
    assert models.warnings == ["there is no model of 'Cam1', but one of 'cam1': is that the same category?"]
