"""Synthetic defects change what their mask marks, visibly, and are the same for the same seed."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from mvad.tuning.defects import KINDS, MIN_CHANGE, SIZES, add_defect, perlin_noise


def textured(height=120, width=90, seed=0):
    """A coloured, uneven surface."""
    random = np.random.default_rng(seed)
    noise = gaussian_filter(random.normal(0, 1, (height, width, 3)), (2, 2, 0))
    return (128 + 60 * noise / noise.std()).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_defect_changes_its_mask_only_and_visibly(kind, size):
    image, other = textured(), textured(70, 150, seed=1)
    before = image.copy()
    for seed in range(20):
        changed, mask = add_defect(image, kind, size, np.random.default_rng(seed), other)
        assert (changed.dtype, changed.shape, mask.dtype, mask.shape) == (np.uint8, (120, 90, 3), bool, (120, 90))
        np.testing.assert_array_equal(image, before)
        np.testing.assert_array_equal(changed[~mask], image[~mask])
        assert np.abs(changed[mask].astype(float) - image[mask]).mean() >= MIN_CHANGE


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_defect_and_another_one_another(kind):
    image, other = textured(), textured(70, 150, seed=1)
    first, again, different = (add_defect(image, kind, "large", np.random.default_rng(s), other) for s in (3, 3, 4))
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.mask, again.mask)
    assert (first.mask != different.mask).any()


@pytest.mark.parametrize("kind", sorted({*KINDS} - {"scratch"}))
@pytest.mark.parametrize("size", SIZES)
def test_a_defect_has_the_size_that_was_asked_for(kind, size):
    image = textured(300, 300)
    low, high = SIZES[size]
    shares = [add_defect(image, kind, size, np.random.default_rng(seed)).mask.mean() for seed in range(20)]
    assert 0.85 * low <= min(shares)
    assert max(shares) <= 1.15 * high
    assert max(shares) > 2 * min(shares)


def test_a_scratch_is_thin():
    for seed in range(20):
        mask = add_defect(textured(300, 300), "scratch", "small", np.random.default_rng(seed)).mask
        inner = mask[1:-1, 1:-1] & mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
        assert inner.sum() < 0.6 * mask.sum()
        assert mask.mean() < 0.015


@pytest.mark.parametrize("kind", KINDS)
def test_at_least_half_of_a_defect_is_where_the_model_looks(kind):
    seen = np.zeros((120, 90), bool)
    seen[60:] = True
    for seed in range(10):
        mask = add_defect(textured(), kind, "large", np.random.default_rng(seed), seen=seen).mask
        assert (mask & seen).sum() >= mask.sum() / 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_plain_surface_gets_a_visible_defect_too(kind):
    image = np.full((64, 64, 3), 240, np.uint8)
    changed, mask = add_defect(image, kind, "large", np.random.default_rng(0))
    assert np.abs(changed[mask].astype(float) - 240).mean() >= MIN_CHANGE


def test_without_a_place_to_look_at_there_is_no_defect():
    with pytest.raises(ValueError, match="no visible defect of the kind stain"):
        add_defect(textured(), "stain", "small", np.random.default_rng(0), seen=np.zeros((120, 90), bool))


def test_the_strength_of_defects_differs():
    image = textured(200, 200)
    changes = []
    for seed in range(40):
        changed, mask = add_defect(image, "stain", "large", np.random.default_rng(seed))
        changes.append(np.abs(changed[mask].astype(float) - image[mask]).mean())
    assert max(changes) > 5 * min(changes)


def test_perlin_noise_is_zero_at_the_corners_of_its_cells_and_smooth():
    noise = perlin_noise(64, 96, 4, np.random.default_rng(0))
    np.testing.assert_allclose(noise[::16, ::24], 0, atol=1e-6)
    assert 0.3 < np.abs(noise).max() <= 1
    assert np.abs(np.diff(noise, axis=0)).max() < 0.25
