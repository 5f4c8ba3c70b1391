"""The model's input has the shape of a category's training images, and the model records it."""

import json

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

import mvad
from helpers.tiles import EMBEDDED, paint
from mvad import results
from mvad.data.image_size import ImageSize, fitting_size
from mvad.errors import UsageError
from mvad.features.backbones import describe
from mvad.model_store import find_models
from mvad.options import FitOptions, build
from mvad.pipeline.image_sizes import image_sides, measure_sizes
from mvad.storage import to_uri

ORIENTATION = 0x0112


@pytest.mark.parametrize(
    ("side", "aspect", "cell", "sides"),
    [
        (256, 1.0, 32, (256, 256)),
        (200, 1.04, 32, (200, 200)),  # nearly square: as asked
        (256, 4.0, 32, (128, 512)),
        (256, 0.25, 32, (512, 128)),
        (320, 4 / 3, 32, (288, 384)),
        (64, 100.0, 32, (32, 640)),
        (224, 2.0, 14, (154, 308)),
    ],
)
def test_the_input_has_the_shape_of_the_images(side, aspect, cell, sides):
    size = fitting_size(side, aspect, cell)
    assert (size.resize, size.crop) == (sides, sides)


def test_area_and_shape_are_kept_as_well_as_cells_allow():
    for aspect in np.geomspace(1 / 6, 6, 50):
        height, width = fitting_size(256, aspect).crop
        assert height % 32 == width % 32 == 0 or height == width == 256
        assert abs(np.log(width / height / aspect)) < 0.3
        assert 0.6 < height * width / 256**2 < 1.4


def test_sizes_that_earlier_versions_wrote_are_squares():
    assert ImageSize(resize=256, crop=224) == ImageSize.square(256, 224)
    assert ImageSize(resize=[128, 512], crop=[128, 512]) == ImageSize(resize=(128, 512), crop=(128, 512))
    assert str(ImageSize(resize=[128, 512], crop=[128, 512])) == "512 x 128"


def test_shapes_are_those_of_upright_images(tmp_path):
    Image.new("RGB", (40, 20)).save(tmp_path / "a.png")
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "b.jpg", exif=exif)
    noise = np.random.default_rng(0).integers(0, 256, (900, 300, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "c.tif")  # tells its size at its end
    (tmp_path / "d.png").write_bytes(b"broken")
    uris = [to_uri(tmp_path / name) for name in ("a.png", "b.jpg", "c.tif", "d.png", "none.png")]
    assert image_sides(uris, 10**6, False) == [(20, 40), (40, 20), (900, 300)]


def table(root, shapes):
    rows = []
    for category, sizes in shapes.items():
        for number, (split, size) in enumerate(sizes):
            path = root / f"{category}{number}.png"
            Image.new("L", size).save(path)
            rows.append({"category": category, "split": split, "uri": to_uri(path)})
    return pa.Table.from_pylist(rows)


def test_each_category_has_its_own_shape_unless_all_share_a_model(ray_local, tmp_path):
    images = table(
        tmp_path,
        {
            "strip": [("train", (80, 20)), ("train", (80, 20)), ("train", (20, 80)), ("test", (20, 20))],
            "tall": [("test", (20, 80))],
        },
    )
    options, spec = build(FitOptions, {"image_size": 64}), describe("efficientnet_lite0")
    strip, tall = ImageSize(resize=(32, 128), crop=(32, 128)), ImageSize(resize=(128, 32), crop=(128, 32))
    assert measure_sizes(images, options, spec, windows=True) == {"strip": strip, "tall": tall}
    both = measure_sizes(images, options, spec, windows=True, one_for_all=True)
    assert both == dict.fromkeys(("strip", "tall"), ImageSize.square(64))
    cropped = build(FitOptions, {"image_size": 64, "crop": 48})
    assert set(measure_sizes(images, cropped, spec, windows=True).values()) == {ImageSize.square(64, 48)}
    with pytest.raises(UsageError, match="sides are multiples of 16"):
        measure_sizes(images, build(FitOptions, {"image_size": 72, "crop": 56}), describe("vit_b_16"), windows=False)


def test_images_too_large_for_a_model_are_refused_before_work_begins(ray_local, tmp_path):
    images = table(tmp_path, {"strip": [("train", (70_000, 40))]})
    with pytest.raises(UsageError, match=r"the images of strip are too large for a model .* give a smaller --scale"):
        measure_sizes(images, build(FitOptions, {}), describe("efficientnet_lite0"), windows=True)
    half = build(FitOptions, {"scale": 0.5})
    assert measure_sizes(images, half, describe("efficientnet_lite0"), windows=True)["strip"].width == 35_008


def test_strips_and_squares_in_one_run(ray_local, tmp_path):
    random = np.random.default_rng(0)
    for name, crop in (("strip", (slice(0, 24), slice(None))), ("tile", (slice(None), slice(None)))):
        for part, defects in (("train/good", [False] * 6), ("test/good", [False] * 2), ("test/spot", [True] * 2)):
            for number, defect in enumerate(defects):
                path = tmp_path / "data" / name / part / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels, _ = paint(random)
                if defect:
                    pixels[4:16, 60:72] = 10
                Image.fromarray(pixels[crop]).save(path)
    out = tmp_path / "out"
    options = {**EMBEDDED, "image_size": 64, "folds": 0, "maps": "all"}
    result = mvad.run(str(tmp_path / "data"), str(out), **options)
    assert [row["image_auroc"] for row in result.summary] == [1.0, 1.0, 1.0]
    grids = {
        row["category"]: row["patch_grid"]
        for row in results.read_scores(to_uri(out), ["category", "patch_grid"]).to_pylist()
    }
    assert grids == {"strip": [4, 16], "tile": [8, 8]}
    models = find_models(to_uri(out / "models"))
    assert (str(models["strip"].size), str(models["tile"].size)) == ("128 x 32", "64 x 64")
    content = json.loads((out / "run.json").read_text())
    assert ImageSize(**content["categories"]["strip"]["size"]) == models["strip"].size
    for row in results.read_scores(to_uri(out), ["category", "split", "defect", "patch_scores"]).to_pylist():
        if row["defect"] == "spot":  # at columns 60 to 72 of 96, at the top
            grid = np.reshape(row["patch_scores"], grids[row["category"]])
            assert np.unravel_index(grid.argmax(), grid.shape)[1] / grid.shape[1] == pytest.approx(0.66, abs=0.12)
    exported = mvad.maps(str(out), str(tmp_path / "maps"), format="npy", quiet=True)
    assert exported.exit_code == 0
    sample = next((tmp_path / "maps").rglob("strip/**/*.npy"))
    assert np.load(sample).shape == (24, 96)
