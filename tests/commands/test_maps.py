"""Exported maps: in the image's own frame, with safe names; images that cannot be drawn are counted and named."""

import json
import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image

import mvad
from helpers.synthetic import draw, finish, write_category
from mvad.anomaly_maps.colours import Scale, colour_scale, outline, overlay
from mvad.anomaly_maps.export import map_path
from mvad.anomaly_maps.geometry import anomaly_map, map_on_image, seen_box
from mvad.data.image_size import ImageSize
from mvad.errors import UsageError

CROPPED = {"resize": 128, "crop": 64}


def spot(row, column, side=8, value=10.0):
    patch_scores = np.ones((side, side), np.float32)
    patch_scores[row, column] = value
    return patch_scores


def test_maps_are_upsampled_and_smoothed():
    grid = np.zeros((8, 8), np.float32)
    grid[2, 5] = 1
    heat = anomaly_map(grid, ImageSize.square(64))
    assert heat.shape == (64, 64)
    peak = np.unravel_index(heat.argmax(), heat.shape)
    assert abs(peak[0] - 19.5) <= 1
    assert abs(peak[1] - 43.5) <= 1
    assert heat.sum() == pytest.approx(64, rel=0.01)  # one patch is 8 x 8 pixels
    np.testing.assert_allclose(anomaly_map(np.full((4, 4), 3.0, np.float32), ImageSize.square(32)), 3, rtol=1e-5)


@pytest.mark.parametrize(("width", "height"), [(640, 480), (97, 301), (40, 30), (1, 3)])
@pytest.mark.parametrize(("resize", "crop"), [(128, 64), (256, 224), (64, 64), (65, 64)])
def test_the_seen_box_is_the_centre_to_the_pixel(width, height, resize, crop):
    size = ImageSize.square(resize, crop)
    box = seen_box(size, width, height)
    margin = (resize - crop) // 2
    for begin, end, length in ((box.left, box.right, width), (box.top, box.bottom, height)):
        assert 0 <= begin < end <= length
        assert abs(begin - margin * length / resize) < 1
        assert abs(end - (margin + crop) * length / resize) < 1
    scaled = map_on_image(np.ones((crop, crop), np.float32), size, width, height)
    assert scaled.shape == box.size[::-1]
    np.testing.assert_allclose(scaled, 1, rtol=1e-6)


def test_a_peak_lies_where_it_lay_in_the_image():
    """A bright dot is resized and cropped like the model's input; its map must put the peak back where the dot was."""
    size = ImageSize.square(256, 128)
    pixels = np.zeros((300, 500), np.float32)
    pixels[120:126, 330:340] = 1
    square = Image.fromarray(pixels).resize((256, 256), Image.Resampling.BILINEAR).crop((64, 64, 192, 192))
    box = seen_box(size, 500, 300)
    scaled = map_on_image(np.asarray(square), size, 500, 300)
    y, x = np.unravel_index(scaled.argmax(), scaled.shape)
    assert abs(x + box.left - 334.5) <= 2
    assert abs(y + box.top - 122.5) <= 2


def test_the_scale_has_the_threshold_in_its_middle():
    maps = [np.linspace(1, peak, 100, dtype=np.float32).reshape(10, 10) for peak in (2, 3, 4, 9)]
    scale = colour_scale(maps, [20, 30, 40, 90], threshold=40)
    assert scale.has_threshold
    assert scale.low < 4 <= (scale.low + scale.high) / 2 < 9
    flagged = [bool((scale.levels(values) > 128).any()) for values in maps]
    assert flagged == [False, False, False, True]
    no_threshold = colour_scale(maps, [20, 30, 40, 90], None)
    assert not no_threshold.has_threshold
    assert no_threshold.high == pytest.approx(8.85)
    flat = colour_scale([np.ones((4, 4), np.float32)], [1.0], -np.inf)
    assert not flat.levels(np.ones((4, 4), np.float32)).any()


def test_an_overlay_colours_the_spot_and_darkens_what_was_not_seen():
    image = Image.new("RGB", (200, 100), (100, 100, 100))
    size = ImageSize(**CROPPED)
    model_map = anomaly_map(spot(4, 4), ImageSize.square(64))
    shown = np.asarray(overlay(image, model_map, size, Scale(1, 6, True)))
    assert tuple(shown[0, 0]) == (45, 45, 45)
    assert tuple(shown[30, 55]) == (100, 100, 100)
    y, x = np.unravel_index((shown[..., 0].astype(int) - shown[..., 2]).argmax(), shown.shape[:2])
    assert abs(x - 106) <= 4
    assert abs(y - 53) <= 4
    assert (shown == 255).all(axis=2).any()
    edge = np.asarray(outline(Image.new("L", (6, 5), 255), 1))
    assert edge[0].all()
    assert not edge[1:-1, 1:-1].any()


@given(st.lists(st.text("abA./%~\\\n\0é:" + string.digits, max_size=12), min_size=2, max_size=6, unique=True))
def test_names_stay_in_their_folder_and_apart(ids):
    names = [map_path(image_id, "npy") for image_id in ids]
    assert len(set(names)) == len(ids)
    for name in names:
        assert not name.startswith("/")
        assert not {"", ".", ".."} & set(name.split("/"))
        assert not any(char in name for char in "\n\0\\:")


def test_long_names_and_names_of_maps():
    long = "ü" * 127
    assert len(map_path(long, "npy").encode()) <= 200 + len(".map.npy")
    assert map_path(long, "npy") != map_path("ü" * 126 + "v", "npy")
    assert map_path("a.overlay.png/b", "npy") == "a%2Eoverlay%2Epng/b.map.npy"
    assert map_path("../../etc/passwd", "npy") == "%2E%2E/%2E%2E/etc/passwd.map.npy"


@pytest.fixture
def stored(tmp_path):
    """Results with hostile names: an image turned by EXIF, one that is missing, one that has changed."""
    data, out = tmp_path / "data", tmp_path / "out"
    turned = Image.new("RGB", (60, 120), (90, 90, 90))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    (data / "x").mkdir(parents=True)
    turned.save(data / "x/turned.jpg", exif=exif)
    patch_scores = spot(1, 6)
    rows = [
        {"image_id": "../../turned.jpg", "uri": (data / "x/turned.jpg").as_uri(), "width": 120, "height": 60},
        {"image_id": "x/gone.png", "uri": (data / "gone.png").as_uri(), "label": 0},
        {"image_id": "x/changed.png", "uri": draw(data / "changed.png", side=40), "label": 1},
        {"image_id": "x/fine.png", "uri": draw(data / "fine.png"), "label": 0},
    ]
    for number, row in enumerate(rows):
        row |= {"score": 1.0 + number, "grid": patch_scores}
    damaged = {"image_id": "x/spoilt.png", "uri": rows[-1]["uri"], "score": 1.0, "grid": np.full((2, 2), np.nan)}
    rows.append(damaged)
    rows.append({"image_id": "x/broken.png", "uri": (data / "b.png").as_uri(), "error": "the file is empty"})
    facts = write_category(out, "..", rows, calibration=[0.5, 1.5, 2.5], threshold=2.5)
    finish(out, {"..": facts})
    return out


def test_maps(stored, tmp_path, ray_local):
    result = mvad.maps(str(stored), str(tmp_path / "overlays"), quiet=True)
    reasons = {error["image_id"]: error["error"] for error in result.errors}
    assert reasons == {
        "x/gone.png": "the file does not exist",
        "x/spoilt.png": "the grid of patch scores is damaged",
        "x/changed.png": "has changed since it was scored: 40 x 40 pixels instead of 96 x 96",
    }
    exported = sorted(str(path.relative_to(tmp_path / "overlays")) for path in (tmp_path / "overlays").rglob("*.png"))
    assert exported == ["%2E%2E/%2E%2E/turned.jpg.overlay.png", "x/fine.png.overlay.png"]
    assert Image.open(tmp_path / "overlays" / exported[0]).size == (120, 60)
    record = json.loads((tmp_path / "overlays/maps.json").read_text())
    assert (record["n_written"], record["n_errors"]) == (2, 3)

    mvad.maps(str(stored), str(stored / "maps"), format="npy", quiet=True)
    values = np.load(stored / "maps/%2E%2E/%2E%2E/turned.jpg.map.npy")
    assert values.shape == (60, 120)
    assert values.dtype == np.float32
    y, x = np.unravel_index(values.argmax(), values.shape)
    assert abs(x - 6.5 / 8 * 120) < 5  # the highest patch score, in the upright frame
    assert abs(y - 1.5 / 8 * 60) < 5
    mvad.maps(str(stored), str(stored / "maps"), format="png16", only="mistakes", quiet=True)
    picture = stored / "maps/x/gone.png.map.png"
    assert (stored / "maps/x/fine.png.map.png").exists()
    assert not picture.exists()  # passed and good: no mistake
    mvad.maps(str(stored), str(stored / "maps"), format="png16", quiet=True)
    grey = np.asarray(Image.open(picture)).astype(float)
    record = json.loads((stored / "maps/maps.json").read_text())["categories"][".."]
    decoded = record["low"] + (grey - 1) / 65534 * (record["high"] - record["low"])
    np.testing.assert_allclose(decoded, np.load(stored / "maps/x/gone.png.map.npy"), atol=1e-3)


def test_usage_errors(stored, tmp_path):
    for to, message in ((stored, "lies in the folder of the results"), (stored.parent, "holds other files")):
        with pytest.raises(UsageError, match=message):
            mvad.maps(str(stored), str(to), quiet=True)
    with pytest.raises(UsageError, match="unknown category 'lid'"):
        mvad.maps(str(stored), str(tmp_path / "to"), categories="lid", quiet=True)
    with pytest.raises(UsageError, match="--format 'gif' is unknown"):
        mvad.maps(str(stored), str(tmp_path / "to"), format="gif")
    bare = tmp_path / "bare"
    rows = [{"image_id": "a", "uri": "file:///a", "score": 1.0}]
    finish(bare, {"c": write_category(bare, "c", rows)})
    with pytest.raises(UsageError, match="kept its map"):
        mvad.maps(str(bare), str(tmp_path / "to"), quiet=True)
    finish(bare, {}, status="running")
    with pytest.raises(UsageError, match="has not ended"):
        mvad.maps(str(bare), str(tmp_path / "to"), quiet=True)
    assert not (tmp_path / "to").exists()


def test_cropped_results_keep_the_frame(tmp_path, ray_local):
    rows = [{"image_id": "a.png", "uri": draw(tmp_path / "a.png"), "score": 1.0, "grid": spot(4, 4)}]
    finish(tmp_path / "out", {"c": write_category(tmp_path / "out", "c", rows, size=CROPPED)})
    mvad.maps(str(tmp_path / "out"), str(tmp_path / "to"), format="npy", quiet=True)
    values = np.load(tmp_path / "to/a.png.map.npy")
    assert values.shape == (96, 96)
    assert np.isnan(values).mean() == 0.75
    assert np.isfinite(values[24:72, 24:72]).all()


def test_commands_stay_functions():
    """A module with the name of a command would replace it."""
    import importlib
    import pkgutil

    for module in pkgutil.walk_packages(mvad.__path__, "mvad."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in mvad.__all__:
        assert callable(getattr(mvad, name)), name
