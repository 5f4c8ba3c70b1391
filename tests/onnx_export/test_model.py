"""An exported model gives, in ONNX Runtime alone, what the model gives in mvad."""

import dataclasses

import numpy as np
import onnx
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image, ImageDraw

import mvad
from helpers.exported import METHODS, fit, run, tiles
from mvad import storage
from mvad.data.image_size import ImageSize
from mvad.errors import UsageError
from mvad.model_store import FittedModel, read_fitted, read_model, save_model
from mvad.onnx_export import network
from mvad.storage import to_uri

TOLERANCE = 1e-5
OPSETS = range(17, 22)
VIT = "timm:vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def vit_weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    safetensors.torch.save_file(timm.create_model(VIT.removeprefix("timm:"), pretrained=False).state_dict(), path)
    return str(path)


def check(folder, file, images, weights=None, **options):
    """The outputs for some images are those of `Model.predict`; returns those of the last image."""
    mvad.export(folder, out=str(file), weights=weights, quiet=True, **options)
    model = mvad.load_model(folder, weights=weights, **options)
    for image in images:
        found, expected = run(file, image), model.predict(image)
        assert {name: value.dtype for name, value in found.items()}["score"] == np.float32
        np.testing.assert_allclose(found["score"], expected.score, rtol=TOLERANCE)
        for name in ("p_value", "threshold", "is_anomaly"):
            assert found.get(name) == getattr(expected, name)
        assert ("anomaly_map" in found) == (expected.anomaly_map is not None)
        if "anomaly_map" in found:
            scale = np.nanmax(np.abs(expected.anomaly_map))
            np.testing.assert_allclose(found["anomaly_map"], expected.anomaly_map, atol=TOLERANCE * scale, rtol=0)
    return found


@pytest.mark.parametrize("method", METHODS)
def test_each_method(method, tmp_path, vit_weights):
    weights = vit_weights if method == "vit-knn" else None
    options = {"backbone": VIT, "weights": weights} if weights else {}
    folder = fit(method, tmp_path / "models", **options)
    check(folder, tmp_path / "tile.onnx", [*tiles(3, seed=1), *tiles(3, seed=2, defect=True)], weights)


@pytest.mark.parametrize(
    "options",
    [{"banks": "layers", "whitening": 0.01, "position_weight": 1.0}, {"distance": "cosine", "aggregate": "top-5%"}],
    ids=str,
)
def test_variants_of_patchcore(options, tmp_path):
    check(fit("patchcore", tmp_path / "models", **options), tmp_path / "tile.onnx", tiles(3, defect=True))


@pytest.mark.parametrize(
    "options",
    [
        {"method": "patchcore"},
        {"method": "patchcore", "banks": "layers", "aggregate": "top-5%", "distance": "cosine"},
        {"method": "patchcore", "reweight": 0, "tile_overlap": 0.5},
        {"method": "subspace"},
    ],
    ids=str,
)
def test_large_images_through_windows(options, tmp_path):
    """They overlap by different lengths, and images of other sizes are brought to that of the training images."""
    folder = fit(folder=tmp_path / "models", **{"tile_size": "64", "image_size": 64, **options})
    size = read_model(to_uri(folder)).size
    assert (size.crop, size.window, len(size.windows)) == ((64, 96), (64, 64), 2)
    check(folder, tmp_path / "tile.onnx", [*tiles(3, seed=1), *tiles(3, seed=2, defect=True)])


def test_cropped_images_in_part_ignored(tmp_path):
    """The map is not a number where the model does not see the image, and what is ignored changes no score."""
    mask = Image.new("L", (50, 37))
    ImageDraw.Draw(mask).rectangle((3, 20, 30, 33), fill=255)
    mask.save(tmp_path / "ignore.png")
    options = {"image_size": 48, "crop": 32, "ignore": str(tmp_path / "ignore.png")}
    folder = fit("patchcore", tmp_path / "models", **options)
    random = np.random.default_rng(3)
    sizes = [(1, 1), (33, 47), (48, 48), (301, 200)]
    images = [Image.fromarray(random.integers(0, 256, (*size, 3), np.uint8)) for size in sizes]
    found = check(folder, tmp_path / "tile.onnx", [*tiles(3, defect=True), *images])
    assert np.isnan(found["anomaly_map"]).any()
    painted = images[-1].copy()
    ImageDraw.Draw(painted).rectangle((30, 180, 100, 200), fill=(255, 0, 0))
    assert run(tmp_path / "tile.onnx", painted)["score"] == found["score"]


def test_inputs_that_are_not_square(tmp_path):
    folder = resized(fit("autoencoder", tmp_path / "models"), tmp_path / "wide", resize=(40, 90), crop=(34, 90))
    check(storage.readable(folder), tmp_path / "tile.onnx", tiles(4))


def test_options_decide_as_those_of_score(tmp_path):
    folder, file = fit("patchcore", tmp_path / "models"), tmp_path / "tile.onnx"
    images = [*tiles(4), *tiles(4, seed=3), *tiles(2, seed=3, defect=True)]
    check(folder, file, images[:1], threshold_rule="sigma")
    threshold = 0.99 * max(float(run(file, image)["score"]) for image in images)
    options = {"threshold": str(threshold), "uncertain_rate": 0.9}
    assert check(folder, file, images, **options)["threshold"] == threshold
    found, expected = [run(file, image) for image in images], mvad.load_model(folder, **options).predict(images)
    verdicts = {"good": (False, False), "uncertain": (False, True), "anomalous": (True, False)}
    assert {one.verdict for one in expected} == {*verdicts}
    assert [(one["is_anomaly"], one["is_uncertain"]) for one in found] == [verdicts[one.verdict] for one in expected]


def test_without_calibration_there_is_no_p_value(tmp_path):
    folder = fit("patchcore", tmp_path / "models", folds=0, calibration="none")
    found = check(folder, tmp_path / "tile.onnx", tiles(1))
    assert set(found) == {"score", "anomaly_map"}


def test_the_file_says_what_it_is_of_and_has_standard_operators_only(tmp_path):
    folder = fit("patchcore", tmp_path / "models")
    mvad.export(folder, out=str(tmp_path / "tile.onnx"), quiet=True)
    model = onnx.load(tmp_path / "tile.onnx", load_external_data=False)
    info = read_model(to_uri(folder))
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert facts["mvad.version"] == mvad.__version__
    assert (facts["mvad.model_id"], facts["mvad.category"]) == (info.model_id, "tile")
    assert (facts["mvad.method"], facts["mvad.backbone"]) == ("patchcore", "efficientnet_lite0")
    assert (facts["mvad.weights_sha256"], facts["mvad.input_size"]) == (info.weights_sha256, "32 x 32")
    assert [(one.domain, one.version in OPSETS) for one in model.opset_import] == [("", True)]
    assert not model.functions
    assert all(tensor.data_location == onnx.TensorProto.DEFAULT for tensor in model.graph.initializer)


def resized(folder, target, **size):
    """The same model with an input of another kind."""
    fitted = read_fitted(read_model(to_uri(folder)))
    assert isinstance(fitted, FittedModel)
    changed = dataclasses.replace(fitted, size=ImageSize(**{"resize": (32, 32), "crop": (32, 32), **size}))
    return save_model(to_uri(str(target)), changed).uri


def test_what_a_file_cannot_do_is_refused_in_a_sentence(tmp_path, monkeypatch):
    folder, out = fit("patchcore", tmp_path / "models"), str(tmp_path / "tile.onnx")
    windows = {"resize": (64, 64), "crop": (64, 64), "window": (32, 32)}
    stages = resized(fit("feature-autoencoder", tmp_path / "models"), tmp_path / "windows", **windows)
    with pytest.raises(UsageError, match="through windows, and its method does not score patches one by one"):
        mvad.export(stages, out=out, quiet=True)
    with pytest.raises(UsageError, match="decodes JPEG files at a part of their size"):
        mvad.export(resized(folder, tmp_path / "fast", decode="fast"), out=out, quiet=True)
    places = fit("patchcore", tmp_path / "places", position_weight=1.0)
    with pytest.raises(UsageError, match=r"weighs places \(--position-weight\) and sees images through windows"):
        mvad.export(resized(places, tmp_path / "placed", **windows), out=out, quiet=True)
    monkeypatch.setattr(network, "MAX_BYTES", 1000)
    with pytest.raises(UsageError, match=r"the model takes 0\.0 GB, and an ONNX file at most"):
        mvad.export(folder, out=out, quiet=True)
    assert not (tmp_path / "tile.onnx").exists()
