"""One model in this process: what it takes, what it says, and what it leaves alone."""

import dataclasses
import io
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

import mvad
from mvad import calibration
from mvad.anomaly_maps.colours import BOX_COLOUR
from mvad.anomaly_maps.regions import Region
from mvad.errors import UsageError

OPTIONS = {"backbone": "efficientnet_lite0", "image_size": 64, "coreset_ratio": 0.3, "category": "alpha"}
WITHOUT_RAY = """
import json, sys
sys.modules["ray"] = None
import mvad
prediction = mvad.load_model(sys.argv[1]).predict(sys.argv[2])
print(json.dumps([prediction.score, sorted({"torchvision", "timm", "sklearn", "duckdb", "fastapi"} & {*sys.modules})]))
"""


@pytest.fixture(scope="module")
def good(tiles):
    return sorted((tiles / "alpha" / "train" / "good").iterdir())


@pytest.fixture(scope="module")
def model(good):
    return mvad.PatchCore(**OPTIONS, folds=2, seed=1).fit(good).model_


@pytest.fixture
def spot(tiles):
    return tiles / "alpha" / "test" / "spot" / "000.png"


def test_an_image_may_come_in_any_form(model, spot):
    data, image = spot.read_bytes(), Image.open(spot)
    array = np.asarray(image.convert("RGB"))
    forms = [spot, str(spot), spot.as_uri(), data, bytearray(data), image, array, array[..., 0], array[::-1][::-1]]
    scores = {model.predict(form).score for form in forms}
    assert len(scores) == 1
    assert {one.score for one in model.predict(np.stack([array, array]))} == scores
    assert model.predict(iter(forms[:2]))[1].name == str(spot)
    assert [one.score for one in model.predict(np.array([str(spot)] * 2))] == [*scores] * 2
    assert model.predict([]) == []


def test_pixels_are_read_as_from_their_file(model, spot, tmp_path):
    image = Image.open(spot).convert("RGB")
    turned = image.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    image.convert("RGBA").save(tmp_path / "clear.png")
    for name in ("turned.png", "clear.png"):
        path = tmp_path / name
        assert model.predict(Image.open(path)).score == model.predict(path).score == model.predict(image).score


def test_deep_images_have_the_range_that_the_model_learnt(good, tmp_path):
    paths = []
    for path in good:
        deep = np.asarray(Image.open(path)).astype(np.uint16) * 16
        paths.append(tmp_path / path.name)
        Image.fromarray(deep).save(paths[-1])
    eight = mvad.KNN(**{k: v for k, v in OPTIONS.items() if k != "coreset_ratio"}).fit(good).model_
    twelve = mvad.KNN(**{k: v for k, v in OPTIONS.items() if k != "coreset_ratio"}).fit(paths).model_
    assert (eight.record["bit_depth"], twelve.record["bit_depth"]) == (8, 12)
    assert twelve.predict(paths[0]).score == pytest.approx(eight.predict(good[0]).score, abs=0.2)
    prediction = twelve.predict(Image.open(paths[0]))
    assert prediction.score is None
    assert "whose range is not known" in prediction.error


def test_files_that_cannot_be_used_are_errors_of_their_own(model, spot, tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "cut.png").write_bytes(spot.read_bytes()[:200])
    images = [
        tmp_path / "none.png",
        tmp_path,
        *(tmp_path / f"{name}.png" for name in ("empty", "text", "cut")),
        b"",
        spot,
    ]
    *failed, last = model.predict(images)
    assert last.error is None
    assert last.is_anomaly is True
    for prediction in failed:
        assert prediction.error
        assert "\n" not in prediction.error
        assert (prediction.score, prediction.is_anomaly, prediction.anomaly_map) == (None, None, None)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (np.zeros((8, 8, 3), np.float32), "8 x 8 x 3 float32"),
        (np.zeros((8, 8, 4), np.uint8), "8 x 8 x 4 uint8"),
        (np.zeros(8, np.uint8), "8 uint8"),
        (np.zeros((0, 8, 3), np.uint8), "0 x 8 x 3 uint8"),
        (7, "a int is no image"),
        ([7], "a int is no image"),
        (None, "a NoneType is no image"),
    ],
)
def test_what_is_no_image_is_said_in_a_sentence(model, wrong, reason):
    with pytest.raises(UsageError, match=reason):
        model.predict(wrong)


def test_images_larger_than_allowed_are_refused(model, good, spot, tmp_path):
    model.save(tmp_path)
    small = mvad.load_model(tmp_path, max_pixels=96 * 96 - 1)
    for form in (spot, Image.open(spot), np.zeros((96, 96, 3), np.uint8)):
        assert "max" in small.predict(form).error


def test_threads_and_their_number_change_nothing(model, tiles, tmp_path):
    images = [*sorted((tiles / "alpha" / "test").rglob("*.png")), *sorted((tiles / "beta" / "test").rglob("*.png"))]
    expected = [one.score for one in model.predict(images)]
    model.save(tmp_path)
    assert [one.score for one in mvad.load_model(tmp_path, threads=1).predict(images)] == expected
    shared = mvad.load_model(tmp_path, threads=3)
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            assert list(pool.map(lambda image: shared.predict(image).score, images)) == expected


def test_torch_keeps_its_threads(model, spot):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        model.predict([spot] * 4)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_model_needs_no_ray(model, spot, tmp_path):
    path = model.save(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_RAY, path, str(spot)], capture_output=True, text=True, timeout=120, check=True
    )
    assert json.loads(done.stdout) == [model.predict(spot).score, []]


def test_which_model_is_asked_for(model, good, tmp_path):
    model.save(tmp_path)
    mvad.PatchCore(**{**OPTIONS, "category": "beta"}, calibration="none").fit(good).save(tmp_path)
    with pytest.raises(UsageError, match="2 categories; choose one with category: alpha, beta"):
        mvad.load_model(tmp_path)
    assert mvad.load_model(tmp_path, "beta").category == "beta"
    with pytest.raises(UsageError, match="no model for gamma"):
        mvad.load_model(tmp_path, "gamma")
    with pytest.raises(UsageError, match="no models"):
        mvad.load_model(tmp_path / "patchcore" / "alpha" / "nowhere")


def test_a_damaged_model_is_refused(model, tmp_path):
    path = model.save(tmp_path)
    bank = tmp_path / "patchcore" / "alpha" / "bank.npy"
    content = bytearray(bank.read_bytes())
    content[-1] ^= 1
    bank.write_bytes(content)
    with pytest.raises(UsageError, match=r"bank\.npy is damaged"):
        mvad.load_model(path)


def test_decisions_are_those_asked_for(model, spot, tmp_path):
    path = model.save(tmp_path)
    fixed = mvad.load_model(path, threshold=1e9)
    assert (fixed.threshold, fixed.predict(spot).verdict) == (1e9, "good")
    loose = mvad.load_model(path, false_alarm_rate=0.5)
    assert loose.threshold < model.threshold
    assert loose.threshold == calibration.threshold(model.calibration, "conformal", 0.5)


def test_a_model_without_calibration_has_scores_alone(good, spot):
    model = mvad.PatchCore(**OPTIONS, calibration="none").fit(good).model_
    prediction = model.predict(spot)
    assert prediction.score > 0
    assert (prediction.p_value, prediction.threshold, prediction.is_anomaly, prediction.verdict) == (None,) * 4
    assert prediction.regions is None
    assert "no threshold" in repr(model)
    assert prediction._repr_html_().startswith("<div>")


def test_a_notebook_shows_a_picture_and_escapes_names(model, spot, tmp_path):
    odd = tmp_path / "<script>&.png"
    odd.write_bytes(spot.read_bytes())
    prediction = model.predict(odd)
    shown = prediction._repr_html_()
    assert "<script>" not in shown
    assert "&lt;script&gt;&amp;.png" in shown
    assert "data:image/png;base64," in shown
    assert "anomalous" in shown
    odd.unlink()
    assert "does not exist" in prediction._repr_html_()
    assert "data:image" not in model.predict(odd)._repr_html_()


def test_a_picture_has_the_size_of_the_image_and_its_boxes(model, spot):
    prediction = model.predict(spot)
    boxed = dataclasses.replace(prediction, regions=[Region(20, 30, 40, 50, 9, 1.0, 1.0)])
    changed = (np.asarray(boxed.picture()) == BOX_COLOUR).all(axis=2)
    assert changed.shape == (96, 96)
    assert changed[29, 19:61].all()
    assert not changed[40, 30:50].any()
    (region, *_), (row, column) = prediction.regions, np.unravel_index(prediction.anomaly_map.argmax(), (96, 96))
    assert region.x <= column < region.x + region.width
    assert region.y <= row < region.y + region.height


def test_plots_are_drawn_by_matplotlib(model, spot, monkeypatch):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    prediction = model.predict(spot)
    axes = prediction.plot()
    assert axes.get_title().startswith("anomalous, score")
    axes.figure.savefig(io.BytesIO())
    with pytest.raises(UsageError, match="nothing to plot"):
        model.predict(b"").plot()
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(UsageError, match="pip install matplotlib"):
        prediction.plot()
