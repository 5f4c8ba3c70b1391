"""Few shots: which images are picked, and their variants."""

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageDraw

from mvad.data.augmentation import allowed_flips, vary
from mvad.data.few_shot import TrainingSet, pick, variant_seeds
from mvad.data.image_size import ImageSize
from mvad.data.images import decode_batch
from mvad.options import VARIANTS, FitOptions


def few(shots, shot_seed=0, **options):
    return FitOptions(shots=shots, shot_seed=shot_seed, **options)


def train(*counts):
    rows = [(f"c{number}", f"c{number}/{image}.png") for number, count in enumerate(counts) for image in range(count)]
    return pa.table({"category": [name for name, _ in rows], "image_id": [image for _, image in rows]})


def test_picks_follow_from_the_seed_and_fewer_are_among_more():
    one, five, same, other = (pick(30, few(*args), "cap") for args in ((1,), (5,), (5,), (5, 1)))
    assert len(one) == 1
    assert set(one) <= set(five)
    np.testing.assert_array_equal(five, np.sort(same))
    assert set(five) != set(other)
    assert set(five) != set(pick(30, few(5), "lid"))
    np.testing.assert_array_equal(pick(4, few(5), "cap"), range(4))
    np.testing.assert_array_equal(pick(4, FitOptions(), "cap"), range(4))


def test_all_images_without_variants_unless_few_are_asked_for():
    images = TrainingSet.of(train(3, 2), [FitOptions()])
    assert images.table["image_id"].to_pylist() == train(3, 2)["image_id"].to_pylist()
    assert images.table["variant"].to_pylist() == [0] * 5
    np.testing.assert_array_equal(images.places_of(FitOptions(), "c1"), [0, 1])


def test_one_table_serves_several_fits():
    fits = [FitOptions(), few(2), few(1, augment=False), few(3, 7)]
    images = TrainingSet.of(train(6, 4), fits)
    ids, seeds = images.table["image_id"].to_pylist(), images.table["variant"].to_pylist()
    assert len(set(zip(ids, seeds, strict=True))) == len(ids)  # nothing twice
    for category, count, first in (("c0", 6, 0), ("c1", 4, ids.index("c1/0.png"))):
        for fit in fits:
            places = first + images.places_of(fit, category)
            chosen = pick(count, fit, category)
            runs = [ids[place] for place in places]
            assert runs == [f"{category}/{image}.png" for image in chosen for _ in range(fit.copies)]
            for run in range(len(chosen)):
                own = [seeds[place] for place in places[run * fit.copies : (run + 1) * fit.copies]]
                assert own == [0, *variant_seeds(runs[run * fit.copies], 0)][: fit.copies]


def test_few_shots_alone_leave_the_other_images_out():
    images = TrainingSet.of(train(9), [few(2)])
    assert len(images.table) == 2 * (1 + VARIANTS)
    assert len(TrainingSet.of(train(9), [few(2)], whole=True).table) == 9 + 2 * VARIANTS


@pytest.fixture
def arrow():
    """An image that differs from its mirror images."""
    image = Image.new("RGB", (80, 60), (40, 60, 90))
    ImageDraw.Draw(image).polygon([(8, 8), (40, 14), (12, 50)], (220, 200, 60))
    return image


def test_variants_differ_by_a_small_move(arrow):
    one, same, other = (vary(arrow, seed, "none") for seed in (1, 1, 2))
    assert one.size == arrow.size
    assert one.tobytes() == same.tobytes()
    assert one.tobytes() != other.tobytes()
    assert one.tobytes() != arrow.tobytes()
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
    found = decode_batch(batch, ImageSize(resize=64, crop=48), 10_000, flips="auto")
    assert [bool(error) for error in found["error"]] == [False, False, True, True, False]
    resized = arrow.resize((64, 64), Image.Resampling.BILINEAR)
    for row, wanted in ((0, resized), (1, vary(resized, 3, "none")), (4, vary(resized, 4, "none"))):
        np.testing.assert_array_equal(found["pixels"][row], np.asarray(wanted.crop((8, 8, 56, 56))))
    assert (found["width"][[0, 1, 4]] == 80).all()
    assert not found["pixels"][2].any()
