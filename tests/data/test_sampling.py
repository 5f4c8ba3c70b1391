"""Few shots: which images are picked, and their variants."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from PIL import Image, ImageDraw

from mvad.data.augmentation import Augmentation, allowed_flips, vary
from mvad.data.image_size import ImageSize
from mvad.data.images import decode_batch
from mvad.data.sampling import N_VARIANTS, pick, training_rows, variant_seeds
from mvad.fitting.by_category import CategoryFeatures
from mvad.options import FitOptions


def few(shots, shot_seed=0, **options):
    return FitOptions(shots=shots, shot_seed=shot_seed, **options)


def ids(count):
    return [f"{number:02}.png" for number in range(count)]


def train(*counts):
    rows = [(f"c{number}", f"c{number}/{image}.png") for number, count in enumerate(counts) for image in range(count)]
    return pa.table({"category": [name for name, _ in rows], "image_id": [image for _, image in rows]})


def features_of(table, category):
    """The category as a fit gets it: no features, but what each row of them is."""
    rows = table.filter(pc.equal(table["category"], category))
    image_ids, variants = np.array(rows["image_id"].to_pylist(), object), rows["variant"].to_numpy()
    return CategoryFeatures(category, {}, image_ids, variants, list(dict.fromkeys(image_ids)), {})


def test_picks_follow_from_the_seed_and_fewer_are_among_more():
    single, five, same, other = (pick(ids(30), few(*args), "cap") for args in ((1,), (5,), (5,), (5, 1)))
    assert len(single) == 1
    assert set(single) <= set(five)
    assert five == sorted(same)
    assert set(five) != set(other)
    assert set(five) != set(pick(ids(30), few(5), "lid"))
    assert pick(ids(4), few(5), "cap") == ids(4)
    assert pick(ids(4), FitOptions(), "cap") == ids(4)


def test_all_images_without_variants_unless_few_are_asked_for():
    fits = [FitOptions()]
    table = training_rows(train(3, 2), {"c0": fits, "c1": fits})
    assert table["image_id"].to_pylist() == train(3, 2)["image_id"].to_pylist()
    assert table["variant"].to_pylist() == [0] * 5
    category = features_of(table, "c1")
    np.testing.assert_array_equal(category.rows_of(pick(category.all_image_ids, FitOptions(), "c1")), [0, 1])


def test_one_table_serves_several_fits():
    fits = [FitOptions(), few(2), few(1, augment=False), few(3, 7)]
    table = training_rows(train(6, 4), {"c0": fits, "c1": fits})
    rows = list(zip(table["image_id"].to_pylist(), table["variant"].to_pylist(), strict=True))
    assert len(set(rows)) == len(rows)  # nothing twice
    assert list(dict.fromkeys(image_id for image_id, _ in rows)) == train(6, 4)["image_id"].to_pylist()
    for name, count in (("c0", 6), ("c1", 4)):
        category = features_of(table, name)
        assert category.all_image_ids == [f"{name}/{image}.png" for image in range(count)]
        for fit in fits:
            picked = pick(category.all_image_ids, fit, name)
            positions = category.rows_of(picked, n_variants=fit.rows_per_image - 1)
            assert category.image_ids[positions].tolist() == [
                image_id for image_id in picked for _ in range(fit.rows_per_image)
            ]
            seeds = category.variants[positions].reshape(len(picked), fit.rows_per_image).tolist()
            assert seeds == [[0, *variant_seeds(image_id, 0)][: fit.rows_per_image] for image_id in picked]


def test_few_shots_alone_leave_the_other_images_out():
    table = training_rows(train(9), {"c0": [few(2)]})
    assert len(table) == 2 * (1 + N_VARIANTS)
    picked = pick(train(9)["image_id"].to_pylist(), few(2), "c0")
    assert list(dict.fromkeys(table["image_id"].to_pylist())) == picked
    assert pick(picked, few(2), "c0") == picked  # a fit that gets no others uses these
    assert len(training_rows(train(9), {"c0": [few(2)]}, all_images=True)) == 9 + 2 * N_VARIANTS


@pytest.fixture
def arrow():
    """An image that differs from its mirror images."""
    image = Image.new("RGB", (80, 60), (40, 60, 90))
    ImageDraw.Draw(image).polygon([(8, 8), (40, 14), (12, 50)], (220, 200, 60))
    return image


def test_variants_differ_by_a_small_move(arrow):
    first, same, other = (vary(arrow, seed, "none") for seed in (1, 1, 2))
    assert first.size == arrow.size
    assert first.tobytes() == same.tobytes()
    assert first.tobytes() != other.tobytes()
    assert first.tobytes() != arrow.tobytes()
    flat = Image.new("RGB", (80, 60), (7, 8, 9))
    assert vary(flat, 5, "both").tobytes() == flat.tobytes()  # the edges are filled by reflection


def test_only_allowed_flips_happen(arrow):
    changes = {}
    for flips in ("none", "horizontal", "vertical", "both"):
        changes[flips] = [
            np.abs(np.asarray(vary(arrow, seed, flips), float) - np.asarray(vary(arrow, seed, "none"))).mean() > 5
            for seed in range(40)
        ]
    assert not any(changes["none"])
    assert 8 <= sum(changes["horizontal"]) <= 32
    assert changes["horizontal"] != changes["vertical"]
    assert changes["both"] == [a or b for a, b in zip(changes["horizontal"], changes["vertical"], strict=True)]


def test_a_product_may_be_flipped_if_it_looks_the_same_flipped(arrow):
    assert allowed_flips(arrow) == "none"
    ring = Image.new("RGB", (64, 64))
    ImageDraw.Draw(ring).ellipse((12, 12, 52, 52), (200, 180, 160))
    assert allowed_flips(ring) == "both"
    house = Image.new("RGB", (64, 64))
    ImageDraw.Draw(house).polygon([(32, 6), (58, 58), (6, 58)], (200, 180, 160))
    assert allowed_flips(house) == "horizontal"
    assert allowed_flips(house.transpose(Image.Transpose.ROTATE_90)) == "vertical"


def test_variants_are_decoded_next_to_their_image(tmp_path, arrow):
    arrow.save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"broken")
    uris = [(tmp_path / name).as_uri() for name in ("a.png", "a.png", "b.png", "b.png", "a.png")]
    batch = {"uri": np.array(uris, object), "variant": np.array([0, 3, 0, 3, 4])}
    decoded = decode_batch(batch, ImageSize.square(64, 48), 10_000, Augmentation(flips="auto"))
    assert [bool(error) for error in decoded["error"]] == [False, False, True, True, False]
    resized = arrow.resize((64, 64), Image.Resampling.BILINEAR)
    for row, expected in ((0, resized), (1, vary(resized, 3, "none")), (4, vary(resized, 4, "none"))):
        np.testing.assert_array_equal(decoded["pixels"][row], np.asarray(expected.crop((8, 8, 56, 56))))
    assert (decoded["width"][[0, 1, 4]] == 80).all()
    assert not decoded["pixels"][2].any()
