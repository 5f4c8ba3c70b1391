import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

import mvad
from mvad.data.image_size import ImageSize
from mvad.detectors import PatchCore
from mvad.errors import ModelError, UsageError
from mvad.features.backbone_spec import BackboneSpec
from mvad.features.backbones import describe
from mvad.features.weights import Network
from mvad.model_store import (
    FittedModel,
    find_models,
    load_networks,
    models_for,
    read_arrays,
    recorded_shape,
    save_model,
)
from mvad.storage import to_uri

RECORD = {"n_train": 3, "errors": [], "fit_seconds": 1.0}


def fitted(seed=0, channels=152):
    random = np.random.default_rng(seed)
    return PatchCore().fit(torch.from_numpy(random.standard_normal((3, 4, 4, channels)).astype(np.float32)))


def save(folder, category="cap", seed=0, record=RECORD, *, weights="abc", spec=None, channels=152):
    spec, size = spec or describe("efficientnet_lite0"), ImageSize.square(64)
    state = fitted(seed, channels).state
    return save_model(to_uri(folder), FittedModel(category, PatchCore, state, spec, weights, size, record))


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


def copied(folder, name, category="cap"):
    shutil.copytree(folder / "patchcore" / category, folder / "patchcore" / name)


def test_two_models_of_a_category_are_refused_by_name(tmp_path):
    for number, category in enumerate(("cap", "bottle")):
        save(tmp_path, category, number)
    copied(tmp_path, "cap.bak")
    models = find_models(to_uri(tmp_path))
    assert list(models) == ["bottle"]
    assert list(models_for(["bottle"], models)) == ["bottle"]
    assert models_for(["bottle"], models).warnings == []
    wanted = models_for(["bottle", "cap"], models)
    assert (list(wanted), list(wanted.errors)) == (["bottle"], ["cap"])
    places = [str(tmp_path / "patchcore" / name) for name in ("cap", "cap.bak")]
    text = f"the model of category 'cap' cannot be used: there are 2 of them, {places[0]} and {places[1]}; "
    assert wanted.warnings == [text + "move all but one away."]
    with pytest.raises(ModelError, match="there are 2 of them"):
        models_for(["cap"], models)
    rows = {row["category"]: row["damage"] for row in mvad.models(str(tmp_path), quiet=True)}
    assert rows == {"cap": wanted.warnings[0], "cap.bak": wanted.warnings[0], "bottle": None}


def test_a_copy_does_not_serve_instead_of_a_damaged_model(tmp_path):
    save(tmp_path)
    save(tmp_path, "bottle")
    copied(tmp_path, "cap.bak")
    (tmp_path / "patchcore/cap/model.json").write_text("{")
    models = find_models(to_uri(tmp_path))
    assert list(models) == ["bottle"]
    with pytest.raises(ModelError, match=r"patchcore/cap cannot be used: model.json is damaged"):
        models_for(["cap"], models)


def test_a_model_in_a_folder_of_another_name_is_used_and_said(tmp_path):
    save(tmp_path)
    copied(tmp_path, "cap.bak")
    shutil.rmtree(tmp_path / "patchcore/cap")
    models = models_for(["cap"], find_models(to_uri(tmp_path)))
    assert models["cap"].category == "cap"
    (note,) = models.warnings
    assert note == f"the model of 'cap' lies in {tmp_path}/patchcore/cap.bak; it is used: there is no other"
    assert mvad.models(str(tmp_path), quiet=True)[0]["note"] == note


@pytest.mark.parametrize("category", ["..", "ä ö", "Cap", "x" * 300, "非" * 31])
def test_folders_of_odd_categories_are_no_copies(tmp_path, category):
    save(tmp_path, category)
    models = models_for([category], find_models(to_uri(tmp_path)))
    assert (list(models), models.warnings) == ([category], [])
    (folder,) = (tmp_path / "patchcore").iterdir()
    (folder / "model.json").write_text("{")
    save(tmp_path, "bottle")
    with pytest.raises(ModelError, match=r"model.json is damaged"):
        models_for([category], find_models(to_uri(tmp_path)))


def test_weights_are_checked_model_by_model(tmp_path):
    right, wrong = save(tmp_path, "cap"), save(tmp_path, "bottle")
    assert (right.weights_sha256, wrong.weights_sha256) == ("abc", "abc")
    sha256 = Network.load(right.backbone, None).sha256
    save(tmp_path / "right", "cap", weights=sha256)
    save(tmp_path / "right", "bottle")
    save(tmp_path / "right", "nut", spec=BackboneSpec("resnet9999", ("a", "b", "c"), (0.5,) * 3, (0.5,) * 3))
    save(tmp_path / "right", "screw", spec=replace(right.backbone, stages=("a", "b", "c")))
    models, networks = load_networks(find_models(to_uri(tmp_path / "right")), None)
    assert (list(models), list(networks)) == (["cap"], [right.backbone])
    assert "was fitted with other weights of efficientnet_lite0" in str(models.errors["bottle"])
    assert sorted(models.errors) == ["bottle", "nut", "screw"]
    assert all(
        f"{tmp_path}/right/patchcore/{name} cannot be used" in str(error) for name, error in models.errors.items()
    )
    with pytest.raises(UsageError, match="none of the 2 models"):
        load_networks(find_models(to_uri(tmp_path)), None)


def test_models_that_differ_in_layers_share_weights_that_are_read_once(tmp_path, monkeypatch):
    default = describe("efficientnet_lite0")
    other = describe("efficientnet_lite0", (4, 8), neighbourhood=1)
    sha256 = Network.load(default, None).sha256
    save(tmp_path, "cap", spec=default, weights=sha256)
    save(tmp_path, "bottle", spec=other, weights=sha256, channels=64)
    loads, load = [], Network.load
    monkeypatch.setattr(Network, "load", lambda spec, path: loads.append(spec) or load(spec, path))
    models, networks = load_networks(find_models(to_uri(tmp_path)), None)
    assert sorted(models) == ["bottle", "cap"]
    assert {*networks} == {default, other}
    assert all(network.spec == spec for spec, network in networks.items())
    assert networks[default].weights is networks[other].weights
    assert len(loads) == 1
    assert [recorded_shape(models[name])[-1] for name in ("bottle", "cap")] == [64, 152]


def test_a_model_of_another_width_than_its_backbone_is_listed_as_damaged(tmp_path):
    save(tmp_path, "cap", channels=6)
    save(tmp_path, "bottle", channels=152)
    rows = {row["category"]: row["damage"] for row in mvad.models(str(tmp_path), quiet=True)}
    assert rows["bottle"] is None
    assert rows["cap"].endswith("cannot be used: bank has the shape 5 x 6, not any x 152; fit it again.")


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
