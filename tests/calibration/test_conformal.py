import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mvad.calibration import (
    RULES,
    control_fdr,
    fold_splits,
    guarantee,
    kfold,
    min_images,
    one_per_group,
    p_values,
    threshold,
)

RATES = (0.001, 0.01, 0.03, 0.05, 0.07, 0.1, 0.15, 0.29, 1 / 3, 0.5, 0.9)


@pytest.mark.parametrize(("count", "n_folds"), [(10, 5), (11, 5), (3, 5), (209, 4), (1, 2), (0, 5)])
def test_folds_are_balanced_and_seeded(count, n_folds):
    fold_of = kfold(count, n_folds, seed=3)
    assert fold_of.dtype == np.int64
    assert fold_of.shape == (count,)
    sizes = np.bincount(fold_of)
    assert len(sizes) == min(n_folds, count)
    assert count == 0 or sizes.max() - sizes.min() <= 1
    np.testing.assert_array_equal(fold_of, kfold(count, n_folds, seed=3))


def test_folds_differ_between_seeds():
    assert (kfold(100, 5, seed=0) != kfold(100, 5, seed=1)).any()
    with pytest.raises(ValueError, match="at least 2"):
        kfold(10, 1, seed=0)


def test_every_image_is_held_out_once():
    splits = list(fold_splits(np.arange(11), 5, seed=3))
    assert [held_out.tolist() for _, held_out in splits] == [
        np.flatnonzero(kfold(11, 5, seed=3) == fold).tolist() for fold in range(5)
    ]
    for rest, held_out in splits:
        assert sorted([*rest, *held_out]) == list(range(11))
    assert len(list(fold_splits(np.arange(3), 5, seed=3))) == 3
    assert not list(fold_splits(np.arange(0), 5, seed=3))


@given(st.lists(st.integers(0, 6), min_size=1, max_size=40), st.integers(2, 8))
@settings(max_examples=60, deadline=None)
def test_groups_are_held_out_as_a_whole(members, n_folds):
    groups = np.unique(members, return_inverse=True)[1]
    splits = list(fold_splits(groups, n_folds, seed=1))
    assert len(splits) == min(n_folds, groups.max() + 1)
    for rest, held_out in splits:
        assert sorted([*rest, *held_out]) == list(range(len(groups)))
        assert not set(groups[rest]) & set(groups[held_out])
    drawn = one_per_group(np.arange(len(groups)), groups, seed=2)
    np.testing.assert_array_equal(groups[drawn], np.arange(groups.max() + 1))
    np.testing.assert_array_equal(drawn, one_per_group(np.arange(len(groups)), groups, seed=2))


def test_images_without_near_duplicates_keep_their_scores_and_order():
    scores = np.random.default_rng(0).normal(size=30).astype(np.float32)
    np.testing.assert_array_equal(one_per_group(scores, np.arange(30), seed=5), scores)


def test_the_promise_holds_for_images_of_new_scenes():
    """Scenes of 1 to 25 frames: n is their number, and not that of images, which would promise what is not kept."""
    random = np.random.default_rng(0)
    alarms = {"images": [], "scenes": []}
    for number in range(3000):
        groups = np.repeat(np.arange(9), random.integers(1, 26, 9))
        scores = random.normal(size=9)[groups] + 0.1 * random.normal(size=len(groups))
        old, new = groups < 8, scores[groups == 8]
        scenes = one_per_group(scores[old], groups[old], seed=number)
        assert len(scenes) == 8
        for name, calibration in (("images", scores[old]), ("scenes", scenes)):
            alarms[name].append((new > threshold(calibration, "conformal", 0.12)).mean())
    assert np.mean(alarms["scenes"]) == pytest.approx(1 / 9, abs=0.015)
    assert np.mean(alarms["images"]) > 0.14


@given(st.lists(st.integers(0, 9), max_size=30), st.lists(st.integers(-1, 10), max_size=10))
@settings(max_examples=100, deadline=None)
def test_p_values_are_those_of_the_definition(calibration, scores):
    values = p_values(np.array(scores, np.float32), np.array(calibration, np.float32))
    if calibration:
        expected = [(1 + sum(c >= s for c in calibration)) / (len(calibration) + 1) for s in scores]
    else:
        expected = [np.nan] * len(scores)
    np.testing.assert_array_equal(values, expected)


def test_a_score_that_is_missing_has_no_p_value():
    values = p_values([np.nan, 5.0, np.inf, -np.inf], [1.0, 2.0, 3.0])
    np.testing.assert_array_equal(values, [np.nan, 0.25, 0.25, 1.0])


@pytest.mark.parametrize("rate", RATES)
def test_flagged_by_threshold_is_flagged_by_p_value(rate):
    random = np.random.default_rng(0)
    for n in [*range(min_images("conformal", rate), min_images("conformal", rate) + 60), 1999]:
        # Ties among the scores and between the two sets.
        calibration = random.integers(0, 2 * n, n).astype(np.float32)
        scores = np.concatenate([calibration, random.integers(0, 2 * n, 50).astype(np.float32)])
        flagged = scores > threshold(calibration, "conformal", rate)
        np.testing.assert_array_equal(flagged, p_values(scores, calibration) <= rate)


@pytest.mark.parametrize(
    ("n", "rate", "k"),
    [(99, 0.01, 99), (98, 0.01, 98), (199, 0.01, 198), (19, 0.05, 19), (10, 0.05, 10), (99, 0.07, 93), (1, 0.5, 1)],
)
def test_conformal_threshold_is_the_kth_smallest(n, rate, k):
    scores = np.random.default_rng(0).permutation(np.arange(1, n + 1))
    assert threshold(scores, "conformal", rate) == k


@pytest.mark.parametrize("rate", RATES)
def test_min_images(rate):
    n = min_images("conformal", rate)
    assert 1 / (n + 1) <= rate
    assert n == 1 or 1 / n > rate
    assert min_images("tolerance", rate) == min_images("sigma", rate) == 2


def test_min_images_by_hand():
    assert [min_images("conformal", rate) for rate in (0.001, 0.01, 0.05, 0.1, 0.3)] == [999, 99, 19, 9, 3]


@pytest.mark.parametrize(("n", "rate"), [(99, 0.01), (209, 0.05), (40, 0.1), (20, 0.01)])
def test_conformal_false_alarms(n, rate):
    """No more than guaranteed on average, and distributed as guaranteed given the calibration set."""
    random = np.random.default_rng(0)
    # The p-values of uniform scores: the share of good images above a threshold is known.
    rates = np.array([1 - threshold(random.random(n), "conformal", rate) for _ in range(4000)])
    k = min(math.ceil(round((n + 1) * (1 - rate), 9)), n)
    expected = stats.beta(n + 1 - k, k)
    assert expected.mean() <= max(rate, 1 / (n + 1)) + 1e-12
    assert abs(rates.mean() - expected.mean()) < 6 * expected.std() / math.sqrt(len(rates))
    assert stats.kstest(rates, expected.cdf).pvalue > 1e-6
    low, high = expected.ppf([0.05, 0.95])
    assert ((rates >= low) & (rates <= high)).mean() == pytest.approx(0.9, abs=0.03)
    low_and_high = re.search(r"\(this set: (\S+) to (\S+) %\)", guarantee("conformal", rate, n)).groups()
    assert [float(share) for share in low_and_high] == pytest.approx([100 * low, 100 * high], abs=0.051)


def test_p_values_of_good_images_are_valid_whatever_the_distribution():
    random = np.random.default_rng(1)
    values = np.concatenate([p_values(random.gamma(0.5, size=5), random.gamma(0.5, size=30)) for _ in range(2000)])
    for level in (0.05, 0.1, 0.5):
        assert (values <= level).mean() <= level + 0.02


@pytest.mark.parametrize(
    ("n", "rate", "factor"),
    # Hahn, Meeker, Statistical intervals, one-sided tolerance bounds: 95 % confidence of 95 % and 99 % content.
    [(10, 0.05, 2.911), (20, 0.05, 2.396), (50, 0.05, 2.065), (10, 0.01, 3.981), (2, 0.01, 37.094)],
)
def test_tolerance_factor_is_that_of_the_tables(n, rate, factor):
    scores = np.random.default_rng(n).normal(7, 2, n)
    computed = (threshold(scores, "tolerance", rate) - scores.mean()) / scores.std(ddof=1)
    assert computed == pytest.approx(factor, abs=6e-4)


def test_tolerance_bound_holds_with_its_confidence():
    random = np.random.default_rng(0)
    rates = np.array([stats.norm.sf(threshold(random.normal(size=15), "tolerance", 0.05)) for _ in range(2000)])
    assert (rates <= 0.05).mean() == pytest.approx(0.95, abs=0.025)


def test_sigma_is_three_population_deviations_whatever_the_rate():
    scores = np.array([1.0, 2.0, 3.0, 6.0], np.float32)
    expected = 3 + 3 * math.sqrt((4 + 1 + 0 + 9) / 4)
    assert threshold(scores, "sigma", 0.01) == threshold(scores, "sigma", 0.5) == pytest.approx(expected)


@pytest.mark.parametrize("rule", RULES)
def test_what_cannot_be_a_threshold(rule):
    with pytest.raises(ValueError, match="too few"):
        threshold([], rule, 0.01)
    for rate in (0, 1, -0.1, 2, math.nan):
        for call in (lambda rate: threshold([1.0, 2.0], rule, rate), lambda rate: min_images(rule, rate)):
            with pytest.raises(ValueError, match="rate"):
                call(rate)
    with pytest.raises(ValueError, match="finite"):
        threshold([1.0, np.nan], rule, 0.01)


def test_unknown_rules_are_named():
    for call in (
        lambda: threshold([1.0], "iqr", 0.1),
        lambda: min_images("iqr", 0.1),
        lambda: guarantee("iqr", 0.1, 5),
    ):
        with pytest.raises(ValueError, match=r"'iqr'.*conformal, tolerance, sigma"):
            call()
    with pytest.raises(ValueError, match="too few"):
        threshold([1.0], "tolerance", 0.1)
    assert threshold([1.0], "conformal", 0.1) == threshold([1.0], "sigma", 0.1) == 1


def test_benjamini_hochberg_by_hand():
    # Benjamini, Hochberg 1995, section 3.2: of 15 hypotheses, the four smallest are rejected at 0.05.
    values = np.array(
        [
            0.0001,
            0.0004,
            0.0019,
            0.0095,
            0.0201,
            0.0278,
            0.0298,
            0.0344,
            0.0459,
            0.3240,
            0.4262,
            0.5719,
            0.6528,
            0.7590,
            1,
        ]
    )
    order = np.random.default_rng(0).permutation(15)
    np.testing.assert_array_equal(control_fdr(values[order], 0.05), (values <= 0.0095)[order])
    with_gaps = np.insert(values, 3, np.nan)
    np.testing.assert_array_equal(control_fdr(with_gaps, 0.05), with_gaps <= 0.0095)


def test_fdr_of_few_and_of_equal_p_values():
    assert control_fdr([], 0.1).shape == (0,)
    assert not control_fdr([np.nan, np.nan], 0.1).any()
    np.testing.assert_array_equal(control_fdr([0.1, np.nan], 0.1), [True, False])
    # With 99 calibration images and 30 in the batch, three at the smallest p-value are just enough for 0.1.
    assert control_fdr([0.01] * 3 + [0.9] * 27, 0.1).sum() == 3
    assert control_fdr([0.01] * 2 + [0.9] * 28, 0.1).sum() == 0
    with pytest.raises(ValueError, match="rate"):
        control_fdr([0.5], 1.0)


def test_fdr_of_conformal_p_values_is_kept():
    random = np.random.default_rng(0)
    shares = []
    for _ in range(400):
        values = p_values(np.append(random.normal(size=80), random.normal(5, 1, 20)), random.normal(size=200))
        flagged = control_fdr(values, 0.1)
        shares.append(flagged[:80].sum() / max(flagged.sum(), 1))
    assert 0.03 < np.mean(shares) < 0.11
