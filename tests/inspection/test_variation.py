"""Starter masks: where good images vary far more than elsewhere."""

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

import mvad
from mvad.data.images import read_ignore
from mvad.errors import UsageError
from mvad.inspection.variation import standing_out, starter_mask, variation
from mvad.storage import to_uri

FIELD = (slice(120, 168), slice(240, 360))


def texture(random, sides=(240, 400)):
    """A striped texture with its own phase, light and grain."""
    columns = np.arange(sides[1])
    light = 1 + 0.15 * random.uniform(-1, 1) * (columns / sides[1] - 0.5)
    pixels = (120 + 25 * np.sin(columns / 6 + random.uniform(0, 6))) * light * random.uniform(0.9, 1.1)
    return gaussian_filter(pixels + random.normal(0, 6, sides), 0.5).clip(0, 255)


def numbered(random):
    pixels = texture(random)
    pixels[FIELD] = np.kron(random.integers(0, 2, (12, 30)), np.ones((4, 4))) * 200 + 20
    return pixels


def save(folder, paint, count, seed=0):
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    for number in range(count):
        Image.fromarray(paint(random).astype(np.uint8)).save(folder / f"{number}.png")
    return [to_uri(path) for path in sorted(folder.iterdir())]


def test_a_field_that_differs_in_each_image_is_found(tmp_path):
    mask = starter_mask(save(tmp_path / "a", numbered, 12), 10**6, 16, False)
    marked, field = np.asarray(mask.image()) > 0, np.zeros((240, 400), bool)
    field[FIELD] = True
    assert marked.shape == field.shape
    assert marked[field].mean() > 0.9
    assert marked[~field].mean() < 0.05  # its rim
    assert mask.box.left <= 250
    assert mask.box.right >= 350


def test_sparse_print_is_found(tmp_path):
    def printed(random):
        pixels = texture(random)
        ink = np.kron(random.random((12, 30)) < 0.2, np.ones((4, 4)))
        pixels[FIELD] = np.where(ink > 0, 10, pixels[FIELD])
        return pixels

    mask = starter_mask(save(tmp_path / "a", printed, 12), 10**6, 16, False)
    assert (np.asarray(mask.image()) > 0)[FIELD].mean() > 0.9


@pytest.mark.parametrize("seed", range(4))
def test_a_texture_alone_has_none(seed, tmp_path):
    assert starter_mask(save(tmp_path / "a", texture, 12, seed), 10**6, 16, False) is None


def test_the_same_image_again_and_too_few_images_have_none(tmp_path):
    same = np.tile(numbered(np.random.default_rng(0)).astype(np.uint8), (6, 1, 1))
    assert not variation(list(same)).any()
    assert not standing_out(variation(list(same))).any()
    assert starter_mask(save(tmp_path / "a", numbered, 3), 10**6, 16, False) is None
    assert starter_mask([to_uri(tmp_path / "none.png")] * 9, 10**6, 16, False) is None


def test_areas_that_are_most_of_the_image_are_none():
    spread = np.ones((60, 100), np.float32)
    spread[:, :10] = 9
    assert standing_out(spread)[:, :10].mean() > 0.9
    spread[:, :95] = 9
    assert not standing_out(spread).any()


def test_inspect_writes_masks_that_a_fit_can_use(tmp_path, ray_local, capsys):
    save(tmp_path / "data/plate/train/good", numbered, 8)
    save(tmp_path / "data/cloth/train/good", texture, 8)
    options = {"features": False, "ignore_masks": str(tmp_path / "masks")}
    mvad.inspect(str(tmp_path / "data"), **options)
    said = capsys.readouterr().out.replace("\n", " ")
    assert "cloth: no area of the good images varies much more than the others" in said
    assert "plate: " in said
    assert "varies much more than the rest" in said
    assert [path.name for path in (tmp_path / "masks").iterdir()] == ["plate"]
    assert read_ignore(to_uri(tmp_path / "masks/plate/ignore.png"))
    with pytest.raises(UsageError, match=r"plate/ignore\.png exists; move it away"):
        mvad.inspect(str(tmp_path / "data"), **options)
