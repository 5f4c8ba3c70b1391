"""Which category an image belongs to: the rule by hand-computed values."""

import numpy as np
import pytest

from mvad.calibration import Fits, PatchReference, assign, fit_of, patch_reference


def fits(share, level):
    return Fits(np.array(share, np.float64), np.array(level, np.float64))


def test_the_limit_is_the_conformal_threshold_of_all_patches_at_one_percent():
    scores = np.random.default_rng(0).permutation(np.arange(1, 201, dtype=np.float32)).reshape(4, 50)
    # 201 * 0.99 = 198.99: the 199th of 200 scores in rising order.
    assert patch_reference(scores) == PatchReference(limit=199.0, mean=100.5)


def test_scores_that_are_not_finite_are_no_reference():
    with pytest.raises(ValueError, match="must be finite"):
        patch_reference(np.array([[1, np.nan]], np.float32))


def test_a_patch_is_strange_above_the_limit_and_not_at_it():
    reference = PatchReference(limit=2.0, mean=1.5)
    assert fit_of(np.array([1, 2, 3, 6], np.float32), reference) == (0.5, 2.0)


def test_a_reference_of_duplicates_divides_by_no_zero():
    reference = patch_reference(np.zeros((3, 4), np.float32))
    assert fit_of(np.zeros(4, np.float32), reference) == (0.0, 0.0)
    assert np.isfinite(fit_of(np.ones(4, np.float32), reference)).all()


def test_the_smallest_share_of_strange_patches_wins_with_its_lead_as_the_margin():
    found = assign(fits([[0.5, 0.0, 0.75], [0.25, 1.0, 1.0]], [[1, 9, 1], [9, 1, 1]]), 0.6)
    np.testing.assert_array_equal(found.best, [1, 0])
    np.testing.assert_array_equal(found.share, [0.0, 0.25])
    np.testing.assert_array_equal(found.margin, [0.5, 0.75])
    assert not found.unknown.any()


def test_of_equal_shares_the_lowest_level_wins_and_then_the_first_category():
    found = assign(fits([[0.0, 0.0, 0.5], [0.0, 0.0, 0.0]], [[1.2, 1.1, 0.9], [1.0, 1.0, 1.0]]), 0.6)
    np.testing.assert_array_equal(found.best, [1, 0])
    np.testing.assert_array_equal(found.margin, [0.0, 0.0])


def test_an_image_is_unknown_above_the_share_and_not_at_it():
    found = assign(fits([[0.6, 0.9], [0.61, 0.9]], [[1, 1], [1, 1]]), 0.6)
    np.testing.assert_array_equal(found.unknown, [False, True])
    np.testing.assert_array_equal(found.best, [0, 0])


def test_with_one_category_there_is_no_margin():
    found = assign(fits([[0.1], [0.9]], [[1], [1]]), 0.6)
    assert np.isnan(found.margin).all()
    np.testing.assert_array_equal(found.unknown, [False, True])


def test_a_defect_with_a_minimal_p_value_of_its_image_does_not_change_the_category():
    """A defective image of the first category, whose worst patch is nearer to the second's bank."""
    random = np.random.default_rng(0)
    good = random.normal((10, 30), 1, (40, 64, 2)).astype(np.float32)  # held-out scores by the two banks
    first, second = (patch_reference(good[..., bank]) for bank in (0, 1))
    image = np.stack([random.normal(10, 1, 64), random.normal(60, 1, 64)]).astype(np.float32)
    image[0, :6], image[1, :6] = 90, 35  # the defect
    assert image[0].max() - good[..., 0].max() > image[1].max() - good[..., 1].max()
    (share, level), (other_share, other_level) = fit_of(image[0], first), fit_of(image[1], second)
    assert (share, other_share) == (6 / 64, 1.0)
    found = assign(fits([[share, other_share]], [[level, other_level]]), 0.6)
    assert (found.best[0], found.margin[0], found.unknown[0]) == (0, 58 / 64, False)
