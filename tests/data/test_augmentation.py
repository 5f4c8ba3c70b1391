"""Variants of images by name: what each kind does to pixels, and which rows a fit gets."""

import itertools

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from mvad.data.augmentation import AUGMENTATIONS, Augmentation, is_square
from mvad.data.image_size import ImageSize
from mvad.data.images import decode_batch
from mvad.data.images.ignoring import FILL, encode_ignore
from mvad.data.sampling import training_rows, variant_seeds
from mvad.errors import UsageError
from mvad.fitting.by_category import CategoryFeatures
from mvad.options import CompareOptions, FitOptions, build, fit_identity

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
IMAGE = Image.fromarray(PIXELS)


def variants_of(image, kinds, flips="both", count=80, **options):
    augmentation = Augmentation(tuple(kinds.split(",")), "both")
    return [np.asarray(augmentation.apply(image, seed, flips, **options)) for seed in range(1, count + 1)]


def distinct(variants):
    return {pixels.tobytes() for pixels in variants}


def turns_of(pixels, turns=range(4), mirrored=(False, True)):
    """The image turned and mirrored in the ways given, without the image itself."""
    ways = itertools.product(turns, mirrored)
    return {np.rot90(pixels[:, ::-1] if flip else pixels, turn).tobytes() for turn, flip in ways} - {pixels.tobytes()}


def test_brightness_multiplies_all_pixels_by_one_factor():
    grey = Image.new("RGB", (8, 8), (10, 100, 240))
    factors = []
    for pixels in variants_of(grey, "brightness"):
        assert (pixels == pixels[0, 0]).all()
        low, middle, high = pixels[0, 0].tolist()
        factors.append(middle / 100)
        assert abs(low - 10 * factors[-1]) <= 0.5 + 0.05
        assert abs(high - min(255, 240 * factors[-1])) <= 0.5 + 1.2
    assert 0.8 <= min(factors) < 0.85
    assert 1.15 < max(factors) <= 1.2


def test_quarter_turns_are_the_three_of_a_square():
    assert distinct(variants_of(IMAGE, "quarter-turns")) == turns_of(PIXELS, mirrored=(False,))


def test_quarter_turns_of_other_images_are_half_turns():
    wide = PIXELS[:12]
    half = {wide[::-1, ::-1].tobytes()}
    assert distinct(variants_of(Image.fromarray(wide), "quarter-turns", is_square=False)) == half
    assert all(pixels.shape == wide.shape for pixels in variants_of(Image.fromarray(wide), "flips", is_square=False))
    assert [is_square(*sides) for sides in ((100, 100), (100, 96), (96, 100), (100, 94))] == [True, True, True, False]


@pytest.mark.parametrize(
    ("flips", "expected"),
    [
        ("none", {PIXELS.tobytes()}),
        ("horizontal", {PIXELS[:, ::-1].tobytes()}),
        ("vertical", {PIXELS[::-1].tobytes()}),
        ("both", {PIXELS[:, ::-1].tobytes(), PIXELS[::-1].tobytes(), PIXELS[::-1, ::-1].tobytes()}),
    ],
)
def test_flips_are_those_allowed(flips, expected):
    assert distinct(variants_of(IMAGE, "flips", flips)) == expected


def test_quarter_turns_and_flips_together_are_all_ways_to_lay_a_square():
    found = variants_of(IMAGE, "flips,quarter-turns")
    assert distinct(found) == turns_of(PIXELS)
    counts = [sum(pixels.tobytes() == way for pixels in found) for way in turns_of(PIXELS)]
    assert min(counts) >= 4  # of 80, of which each of the seven gets 11 on average


def test_rotation_is_small_about_the_centre_and_shows_no_border():
    bar = np.zeros((101, 61, 3), np.uint8)
    bar[:, 30] = 255
    degrees = []
    for pixels in variants_of(Image.fromarray(bar), "rotation"):
        assert pixels.shape == bar.shape
        columns = (pixels[..., 0] * np.arange(61.0)).sum(axis=1) / pixels[..., 0].sum(axis=1)
        assert columns[50] == pytest.approx(30, abs=0.6)
        slope = np.polyfit(np.arange(101), columns, 1)[0]
        degrees.append(np.degrees(np.arctan(slope)))
    assert -5.2 < min(degrees) < -4
    assert 4 < max(degrees) < 5.2
    flat = Image.new("RGB", (40, 200), (7, 8, 9))
    assert distinct(variants_of(flat, "rotation")) == {flat.tobytes()}


def test_a_seed_gives_one_variant_and_kinds_do_not_change_each_other():
    everything = Augmentation(AUGMENTATIONS)
    assert everything.apply(IMAGE, 5, "both").tobytes() == everything.apply(IMAGE, 5, "both").tobytes()
    assert len({everything.apply(IMAGE, seed, "both").tobytes() for seed in range(30)}) == 30
    turned = Augmentation(("quarter-turns",)).apply(IMAGE, 5, "none")
    both = Augmentation(("brightness", "quarter-turns")).apply(IMAGE, 5, "none")
    assert both.tobytes() == Augmentation(("brightness",)).apply(turned, 5, "none").tobytes()


def test_variants_are_decoded_as_asked_for(tmp_path):
    squares = {"square.png": PIXELS, "wide.png": PIXELS[:12]}
    for name, pixels in squares.items():
        Image.fromarray(pixels).save(tmp_path / name)
    uris = np.array([(tmp_path / name).as_uri() for name in squares for _ in range(2)], object)
    batch = {"uri": uris, "variant": np.array([0, 3, 0, 3])}
    augmentation = Augmentation(("quarter-turns", "flips"), "horizontal")
    decoded = decode_batch(batch, ImageSize.square(24), 10_000, augmentation)["pixels"]
    np.testing.assert_array_equal(decoded[0], PIXELS)
    assert decoded[1].tobytes() in turns_of(PIXELS)
    stretched = decoded[2]  # squeezed to a square: by quarter turns its parts would change their shape
    assert decoded[3].tobytes() in turns_of(stretched, turns=(0, 2))


def train(count):
    return pa.table({"category": ["cap"] * count, "image_id": [f"{number}.png" for number in range(count)]})


def test_rows_of_all_images_are_followed_by_as_many_variants_as_each_fit_learns_from():
    fits = [
        FitOptions(augmentations="brightness,flips", variant_count=3),
        FitOptions(augmentations="brightness,flips"),
        FitOptions(augmentations="brightness,flips", shots=2),
        FitOptions(),
    ]
    assert [fit.rows_per_image for fit in fits] == [4, 2, 9, 1]
    table = training_rows(train(5), {"cap": fits})
    ids, variants = np.array(table["image_id"].to_pylist(), object), table["variant"].to_numpy()
    assert len(table) == 5 * 4 + 2 * (8 - 3)
    category = CategoryFeatures("cap", {}, ids, variants, list(dict.fromkeys(ids)), {})
    for fit in (fits[0], fits[1], fits[3]):
        rows = category.rows_of(category.all_image_ids, n_variants=fit.rows_per_image - 1)
        of_image = rows.reshape(5, fit.rows_per_image)
        assert ids[of_image].tolist() == [[f"{number}.png"] * fit.rows_per_image for number in range(5)]
        for number, seeds in enumerate(variants[of_image].tolist()):
            assert seeds == [0, *variant_seeds(f"{number}.png", 0, fit.rows_per_image - 1)]
    assert len(training_rows(train(5), {"cap": [FitOptions()]})) == 5


def test_few_shots_stay_what_they_were():
    fit = FitOptions(shots=2)
    assert fit.rows_per_image == 9
    assert fit.augmentation == Augmentation(None, "auto")
    assert FitOptions(shots=2, variant_count=3).rows_per_image == 4
    assert FitOptions(shots=2, augment=False).rows_per_image == 1


def test_a_model_depends_on_the_augmentations():
    plain, varied = fit_identity(FitOptions()), fit_identity(FitOptions(augmentations="flips", variant_count=2))
    changed = {name for name in plain if plain[name] != varied[name]}
    assert changed == {"augmentations", "variant_count"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"augmentations": "blur"}, "--augmentations 'blur' is unknown"),
        ({"augmentations": "flips", "augment": False}, "--augmentations and --no-augment exclude each other"),
        ({"variant_count": 2}, "--variant-count needs --augmentations, which say how variants differ, or --shots"),
        ({"variant_count": 2, "shots": 1, "augment": False}, "--variant-count needs"),
        ({"augmentations": "flips", "variant_count": 0}, "--variant-count 0 is too small"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(options, message):
    with pytest.raises(UsageError, match=message):
        build(FitOptions, options)


def test_a_comparison_gives_variants_to_the_fits_that_have_any():
    options = CompareOptions(shots="1", variant_count=3)
    assert options.fit_options("knn").rows_per_image == 1
    assert options.fit_options("knn", shots=1).rows_per_image == 4
    varied = CompareOptions(augmentations="flips", variant_count=3)
    assert varied.fit_options("knn").rows_per_image == varied.fit_options("knn", shots=1).rows_per_image == 4


def test_what_is_ignored_looks_the_same_in_variants(tmp_path):
    mask = Image.new("L", (24, 24))
    mask.paste(255, (0, 0, 10, 6))
    size = ImageSize(resize=(24, 24), crop=(24, 24), ignore=encode_ignore(mask))
    IMAGE.save(tmp_path / "a.png")
    batch = {"uri": np.array([(tmp_path / "a.png").as_uri()] * 4, object), "variant": np.arange(4)}
    decoded = decode_batch(batch, size, 10_000, Augmentation(("brightness", "quarter-turns")))["pixels"]
    assert (decoded[:, :6, :10] == FILL).all()
