"""The bit depth of a category is measured when it is fitted, and is the model's from then on."""

import json

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

import mvad
from helpers.tiles import EMBEDDED, paint
from helpers.wide_samples import pgm, png16, tiff
from mvad import results
from mvad.model_store import find_models, read_model
from mvad.options import FitOptions, build
from mvad.pipeline.bit_depths import measure_bit_depth, measure_bit_depths
from mvad.pipeline.measuring import MAX_MEASURED_IMAGES
from mvad.storage import to_uri

RANDOM = np.random.default_rng(3)


def values(largest):
    array = RANDOM.integers(0, largest + 1, (6, 8)).astype(np.uint16)
    array[2, 3] = largest
    return array


@pytest.mark.parametrize(
    ("largest", "depth"),
    [
        (0, 8),
        (255, 8),
        (256, 10),
        (1023, 10),
        (1024, 12),
        (4095, 12),
        (4096, 14),
        (16383, 14),
        (16384, 16),
        (65535, 16),
    ],
)
@pytest.mark.parametrize("encode", [png16, tiff, lambda grey: tiff(grey, order=">", deflate=True)])
def test_the_smallest_depth_that_holds_the_images(largest, depth, encode, tmp_path):
    for number, data in enumerate([encode(values(largest // 2)), encode(values(largest)), b"broken", b"II*\0", b""]):
        (tmp_path / f"{number}.png").write_bytes(data)
    uris = [to_uri(tmp_path / f"{number}.png") for number in range(6)]  # the last one does not exist
    assert measure_bit_depth(uris, 1000, False) == depth


def test_files_of_8_bits_or_with_a_stated_range_do_not_count(tmp_path):
    Image.fromarray(values(200).astype(np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(values(200).astype(np.uint8)).save(tmp_path / "b.jpg")
    (tmp_path / "c.png").write_bytes(png16(values(4095), significant_bits=12))
    (tmp_path / "d.pgm").write_bytes(pgm(values(1023), 1023))
    (tmp_path / "e.tif").write_bytes(tiff(values(4095), tags={281: ("H", [4095])}))
    uris = [to_uri(path) for path in sorted(tmp_path.iterdir())]
    assert measure_bit_depth(uris, 1000, False) == 8


def test_a_depth_that_is_given_is_taken_as_it_is():
    images = pa.table({"category": ["a", "b"], "split": ["train", "train"], "uri": ["nowhere", "nowhere"]})
    assert measure_bit_depths(images, build(FitOptions, {"bit_depth": 12})) == {"a": 12, "b": 12}


def test_training_images_are_measured_before_others(tmp_path, ray_local):
    for name, largest in (("train", 1000), ("test", 9000), ("only", 3000)):
        (tmp_path / name).write_bytes(png16(values(largest)))
    rows = [("a", "train", "train"), ("a", "test", "test"), ("b", "test", "only")]
    rows += [("many", "train", "train")] * (3 * MAX_MEASURED_IMAGES)
    images = pa.Table.from_pylist(
        [{"category": category, "split": split, "uri": to_uri(tmp_path / name)} for category, split, name in rows]
    )
    assert measure_bit_depths(images, FitOptions()) == {"a": 10, "b": 12, "many": 10}


@pytest.fixture(scope="module")
def cameras(tmp_path_factory):
    """The same tiles from an 8-bit camera and from one whose 12 bits are in 16-bit files."""
    roots = {bits: tmp_path_factory.mktemp("cameras") / str(bits) for bits in (8, 12)}
    for folder, count, defective in (("train/good", 6, False), ("test/good", 2, False), ("test/spot", 2, True)):
        for number in range(count):
            grey = paint(RANDOM, defective, side=64)[0]
            for bits, root in roots.items():
                path = root / "plate" / folder / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                scaled = np.round(grey.astype(float) * 4095 / 255).astype(np.uint16)
                scaled.flat[0] = 4095
                grey.flat[0] = 255
                path.write_bytes(png16(scaled)) if bits == 12 else Image.fromarray(grey).save(path)
    return roots


def test_twelve_bits_in_sixteen_score_as_eight_bits_do(cameras, ray_local, tmp_path):
    scores = {}
    for bits, root in cameras.items():
        out = tmp_path / str(bits)
        mvad.run(str(root), str(out), image_size=64, maps="all", actors=1, **EMBEDDED)
        assert find_models(to_uri(out / "models"))["plate"].bit_depth == bits
        assert json.loads((out / "run.json").read_text())["categories"]["plate"]["bit_depth"] == bits
        rows = results.read_scores(to_uri(out), ["image_id", "score"]).to_pylist()
        scores[bits] = {row["image_id"]: row["score"] for row in rows}
    assert len(scores[8]) == 4
    assert scores[12] == scores[8]
    bright = tmp_path / "dump" / "plate"
    bright.mkdir(parents=True)
    (bright / "bright.png").write_bytes(png16(np.full((64, 64), 40_000, np.uint16)))
    (bright / "dark.png").write_bytes(png16(np.full((64, 64), 400, np.uint16)))
    models = str(tmp_path / "12" / "models")
    (error,) = mvad.score(str(bright.parent), models, str(tmp_path / "night"), quiet=True, max_errors="1").errors
    assert error["image_id"] == "plate/bright.png"
    assert error["error"].startswith("has values up to 40,000, but its category was fitted to 12-bit images")


def test_models_without_a_depth_have_all_sixteen_bits(base_run):
    uri = find_models(to_uri(base_run[0] / "models"))["alpha"].uri
    model = read_model(uri)
    assert model.bit_depth == 8  # of 8-bit images
    model.record.pop("bit_depth")
    assert model.bit_depth == 16
