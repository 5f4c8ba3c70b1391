"""Candidates are data; what is extracted once; which images are held out; what the decoding task gives."""

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from helpers.tiles import paint
from mvad.data.image_size import ImageSize
from mvad.data.images import decode_batch
from mvad.options import FitOptions, RunOptions
from mvad.search.fingerprints import FINGERPRINT_SIDE
from mvad.tuning import images as tuning_images_module
from mvad.tuning.candidates import alternatives, extraction_key, with_changes
from mvad.tuning.features import decode_with_defects, grid_of, mask_on_grid
from mvad.tuning.images import tuning_images

SIZES = ({"image_size": 256}, {"image_size": 320}, {"nobody_knows": 1}, {"image_size": -5})


def test_changes_that_make_no_difference_or_are_unknown_are_passed_over():
    assert [changes for changes, _ in alternatives(SIZES, FitOptions(image_size=256))] == [{"image_size": 320}]
    found = list(alternatives(SIZES, RunOptions(image_size=128)))
    assert [(type(options), options.image_size) for _, options in found] == [(RunOptions, 256), (RunOptions, 320)]


def test_with_a_crop_the_size_stays():
    options = FitOptions(preset="patchcore-paper")
    assert list(alternatives(SIZES, options)) == []
    ((_, changed),) = alternatives([{"coreset_ratio": 0.02}], options)
    assert (changed.image_size, changed.crop, changed.max_vectors) == (256, 224, 1_000_000_000)
    assert (changed.coreset_ratio, changed.preset) == (0.02, None)


def test_features_are_shared_by_candidates_that_differ_in_the_detector_alone():
    options = FitOptions()
    assert extraction_key(with_changes(options, {"coreset_ratio": 0.01})) == extraction_key(options)
    assert extraction_key(with_changes(options, {"image_size": 320})) != extraction_key(options)


def rows_of(n):
    ids = [f"{number:03}" for number in range(n)]
    return pa.table({"uri": [f"file:///{name}.png" for name in ids], "image_id": ids})


@pytest.fixture
def scenes(monkeypatch):
    """Frames of scenes, of which those of one scene are near duplicates; no file is read."""
    random = np.random.default_rng(0)
    prints = (120 + 30 * random.standard_normal((30, FINGERPRINT_SIDE, FINGERPRINT_SIDE))).clip(0, 255)
    scene_of = np.arange(90) % 30

    def usable(sample, options, bit_depth):
        numbers = [int(name) for name in sample["image_id"].to_pylist()]
        return sample, prints[scene_of[numbers]].astype(np.uint8)

    monkeypatch.setattr(tuning_images_module, "_usable", usable)
    return scene_of


def test_near_duplicates_are_on_one_side_and_held_out_images_differ(scenes):
    found = tuning_images(rows_of(90), [], FitOptions(), 16)
    fit, held_out = ([int(uri[-7:-4]) for uri in table["uri"].to_pylist()] for table in (found.fit, found.scored))
    assert not set(scenes[fit]) & set(scenes[held_out])
    per_image = held_out[:: 1 + tuning_images_module.N_DEFECTS]
    assert len(set(scenes[per_image])) == len(per_image) == 9
    assert len(fit) == 63
    np.testing.assert_array_equal(found.held_out, np.repeat(np.arange(9), 4))


def test_kinds_and_sizes_take_turns_and_textures_are_of_other_categories(scenes):
    found = tuning_images(rows_of(90), ["file:///a.png", "file:///b.png"], FitOptions(), 16)
    rows = found.scored.to_pylist()
    assert [row["kind"] for row in rows[:8]] == ["", "scar", "texture", "blur", "", "stain", "scratch", "missing"]
    assert [row["size"] for row in rows[1:16]] == [
        *["small"] * 3,
        "",
        *["small"] * 3,
        "",
        *["large"] * 3,
        "",
        *["large"] * 3,
    ]
    np.testing.assert_array_equal(found.kinds[:8], [-1, 0, 1, 2, -1, 3, 4, 5])
    assert {row["texture"] for row in rows if row["kind"] == "texture"} <= {"file:///a.png", "file:///b.png"}
    assert {row["texture"] for row in rows if row["kind"] != "texture"} == {""}
    assert found.scored.equals(tuning_images(rows_of(90), ["file:///a.png", "file:///b.png"], FitOptions(), 16).scored)
    other = tuning_images(rows_of(90), [], FitOptions(seed=1), 16)
    assert other.scored["seed"] != found.scored["seed"]


@pytest.mark.usefixtures("scenes")
def test_few_images_are_not_divided():
    assert tuning_images(rows_of(7), [], FitOptions(), 16) is None
    assert tuning_images(rows_of(8), [], FitOptions(), 16) is not None


class NoTotals:
    def add_retries(self):
        pass


def test_the_decoding_task_changes_what_the_mask_marks_and_nothing_else(tmp_path):
    random = np.random.default_rng(0)
    uris = []
    for number in range(2):
        path = tmp_path / f"{number}.png"
        Image.fromarray(paint(random)[0]).save(path)
        uris.append(path.as_uri())
    size = ImageSize.square(96)
    batch = {
        "row": np.arange(5),
        "uri": np.array([uris[0], uris[0], uris[1], "file:///gone.png", uris[1]], object),
        "variant": np.zeros(5, np.int64),
        "kind": np.array(["", "stain", "missing", "scar", "texture"], object),
        "size": np.array(["", "large", "small", "small", "large"], object),
        "seed": np.array([0, 1, 2, 3, 4]),
        "texture": np.array(["", "", "", "", "file:///gone.png"], object),
    }
    found = decode_with_defects(batch, size, (96, 96), 10**6, "none", 16, False, NoTotals())
    assert (found["error"] == "").tolist() == [True, True, True, False, True]
    masks = np.unpackbits(found["mask"], axis=1, count=96 * 96).reshape(-1, 96, 96).astype(bool)
    assert not masks[0].any()
    good = decode_batch({"uri": batch["uri"][[0, 0, 2, 3, 4]]}, size, 10**6)["pixels"]
    for row in (0, 1, 2, 4):
        np.testing.assert_array_equal(found["pixels"][row][~masks[row]], good[row][~masks[row]])
        assert (found["pixels"][row][masks[row]] != good[row][masks[row]]).any() == (row > 0)


def test_masks_are_compared_on_a_grid_of_bounded_area_in_the_shape_of_the_input():
    assert grid_of(ImageSize.square(64)) == (64, 64)
    assert grid_of(ImageSize(resize=(256, 1024), crop=(256, 1024))) == (128, 512)
    mask = np.zeros((8, 8), bool)
    mask[0, 0] = mask[4:6, 4:6] = True
    on_grid = mask_on_grid(mask, ImageSize.square(64), (4, 4))
    np.testing.assert_array_equal(np.argwhere(on_grid), [[2, 2]])  # a quarter of a cell is not enough
    mask[4:6, 4:6] = False
    np.testing.assert_array_equal(np.argwhere(mask_on_grid(mask, ImageSize.square(64), (4, 4))), [[0, 0]])
