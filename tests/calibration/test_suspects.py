"""Which held-out scores are outliers: against values computed by hand, and on scores of good images alone."""

import numpy as np
import pytest

from mvad.calibration import find_suspects, suspects_warning, suspects_with_duplicates
from mvad.calibration.suspects import modified_z_scores, outlier_cutoff


def test_modified_z_scores_are_those_by_hand():
    reference = np.array(
        [1, 2, 3, 4, 5, 6, 7, 8, 100.0]
    )  # median 5; distances 0 1 1 2 2 3 3 4 95, of which 2 is median
    found = modified_z_scores(np.array([5.0, 9.0, 3.0]), reference)
    np.testing.assert_allclose(found, [0, 0.6745 * 4 / 2, -0.6745], rtol=1e-6)
    np.testing.assert_allclose(modified_z_scores(np.array([9.0]), reference, min_mad=4), [0.6745], rtol=1e-6)
    assert np.isnan(modified_z_scores(np.array([9.0]), reference[:7])).all()
    assert np.isnan(modified_z_scores(np.array([9.0]), np.ones(9))).all()


def test_a_suspect_is_beyond_the_cutoff_by_hand():
    reference = np.exp([-4, -3, -2, -1, 0, 1, 2, 3, 4.0])  # logarithms of median 0 and MAD 2
    limit = 3.5 * (1 + 8 / 9) * 2 / 0.6745
    assert outlier_cutoff(9) == pytest.approx(3.5 * (1 + 8 / 9))
    scores = np.exp([limit - 0.01, limit + 0.01, -limit - 1, np.nan])
    assert find_suspects(scores, reference).tolist() == [False, True, False, False]


def test_scores_that_can_be_negative_are_compared_as_they_are():
    reference = np.array([-4, -3, -2, -1, 0, 1, 2, 3, 4.0])
    limit = 3.5 * (1 + 8 / 9) * 2 / 0.6745
    assert find_suspects([limit - 0.01, limit + 0.01, -limit - 1], reference).tolist() == [False, True, False]


def test_a_suspect_is_at_least_a_tenth_above_the_median():
    reference = np.full(1000, 2.0)
    assert find_suspects([2.0, 2.2, 2.5], reference).tolist() == [False, False, True]


@pytest.mark.parametrize("reference", [[], [1.0] * 7, [1.0] * 9 + [np.nan], [-1.0] * 9], ids=str)
def test_what_cannot_be_compared_has_no_suspects(reference):
    assert not find_suspects([1.0, 50.0], reference).any()


@pytest.mark.parametrize("n", [20, 50, 100, 1000])
def test_of_lognormal_scores_very_few_are_suspects(n):
    random = np.random.default_rng(0)
    shares = [find_suspects(s, s).mean() for s in np.exp(0.2 * random.standard_normal((200, n)))]
    assert np.mean(shares) < 0.002


@pytest.mark.parametrize("share", [0.05, 0.1, 0.3])
def test_bad_images_do_not_hide_themselves_by_their_number(share):
    random = np.random.default_rng(0)
    scores = np.exp(0.1 * random.standard_normal(200))
    bad = np.arange(200) < 200 * share
    scores[bad] *= 3
    np.testing.assert_array_equal(find_suspects(scores, scores), bad)


def test_near_duplicates_of_a_suspect_are_suspects_with_it():
    scores = np.array([1.0, 1.1, 0.9, 1, 1, 1.05, 0.95, 1, 9, np.nan, 1.02])
    groups = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 8])
    images, of_images = suspects_with_duplicates(scores, groups, scores[:9])
    assert images.tolist() == [8, 9, 10]
    np.testing.assert_allclose(of_images, [9, 9, 1.02])


def test_a_warning_names_suspects():
    suspects = [{"image_id": f"{n}.png", "score": n / 2, "dropped": False} for n in range(2, 9)]
    assert suspects_warning("cap", suspects[:1]) == (
        "cap: 1 training image scores unlike the others and may not be good: '2.png' (1); look at them, and leave them "
        "out with --drop-suspects if they are not"
    )
    text = suspects_warning("cap", [{**one, "dropped": True} for one in suspects], 100, 1000)
    assert text == (
        "cap: 7 training images left out, by their scores not like the others: '8.png' (4), '7.png' (3.5), '6.png' (3)"
        ", '5.png' (2.5), '4.png' (2) and 2 more; only 100 of 1,000 images were looked at, those that calibrate"
    )
    assert suspects_warning("cap", []) is None
