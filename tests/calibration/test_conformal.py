import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mvad.calibration import (
    RULES,
    Drift,
    control_fdr,
    describe_drift,
    drift,
    folds,
    guarantee,
    least_images,
    p_values,
    threshold,
)

RATES = (0.001, 0.01, 0.03, 0.05, 0.07, 0.1, 0.15, 0.29, 1 / 3, 0.5, 0.9)


def moved(scores, calibration):
    return drift(scores, calibration).drifted


@pytest.mark.parametrize(("count", "n_folds"), [(10, 5), (11, 5), (3, 5), (209, 4), (1, 2), (0, 5)])
def test_folds_are_balanced_and_seeded(count, n_folds):
    found = folds(count, n_folds, seed=3)
    assert found.dtype == np.int64
    assert found.shape == (count,)
    sizes = np.bincount(found)
    assert len(sizes) == min(n_folds, count)
    assert count == 0 or sizes.max() - sizes.min() <= 1
    np.testing.assert_array_equal(found, folds(count, n_folds, seed=3))


def test_folds_differ_between_seeds():
    assert (folds(100, 5, seed=0) != folds(100, 5, seed=1)).any()
    with pytest.raises(ValueError, match="at least 2"):
        folds(10, 1, seed=0)


@given(st.lists(st.integers(0, 9), max_size=30), st.lists(st.integers(-1, 10), max_size=10))
@settings(max_examples=100, deadline=None)
def test_p_values_are_those_of_the_definition(calibration, scores):
    found = p_values(np.array(scores, np.float32), np.array(calibration, np.float32))
    if calibration:
        expected = [(1 + sum(c >= s for c in calibration)) / (len(calibration) + 1) for s in scores]
    else:
        expected = [np.nan] * len(scores)
    np.testing.assert_array_equal(found, expected)


def test_a_score_that_is_missing_has_no_p_value():
    found = p_values([np.nan, 5.0, np.inf, -np.inf], [1.0, 2.0, 3.0])
    np.testing.assert_array_equal(found, [np.nan, 0.25, 0.25, 1.0])


@pytest.mark.parametrize("rate", RATES)
def test_flagged_by_threshold_is_flagged_by_p_value(rate):
    random = np.random.default_rng(0)
    for n in [*range(least_images("conformal", rate), least_images("conformal", rate) + 60), 1999]:
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
def test_least_images(rate):
    n = least_images("conformal", rate)
    assert 1 / (n + 1) <= rate
    assert n == 1 or 1 / n > rate
    assert least_images("tolerance", rate) == least_images("sigma", rate) == 2


def test_least_images_by_hand():
    assert [least_images("conformal", rate) for rate in (0.001, 0.01, 0.05, 0.1, 0.3)] == [999, 99, 19, 9, 3]


@pytest.mark.parametrize(("n", "rate"), [(99, 0.01), (209, 0.05), (40, 0.1), (20, 0.01)])
def test_conformal_false_alarms(n, rate):
    """On average no more than promised, and given the calibration set distributed as promised."""
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
    said = guarantee("conformal", rate, n)
    assert f"between {100 * low:.1f} % and {100 * high:.1f} %" in said


def test_p_values_of_good_images_are_valid_whatever_the_distribution():
    random = np.random.default_rng(1)
    found = np.concatenate([p_values(random.gamma(0.5, size=5), random.gamma(0.5, size=30)) for _ in range(2000)])
    for level in (0.05, 0.1, 0.5):
        assert (found <= level).mean() <= level + 0.02


@pytest.mark.parametrize(
    ("n", "rate", "factor"),
    # Hahn, Meeker, Statistical intervals, one-sided tolerance bounds: 95 % confidence of 95 % and 99 % content.
    [(10, 0.05, 2.911), (20, 0.05, 2.396), (50, 0.05, 2.065), (10, 0.01, 3.981), (2, 0.01, 37.094)],
)
def test_tolerance_factor_is_that_of_the_tables(n, rate, factor):
    scores = np.random.default_rng(n).normal(7, 2, n)
    found = (threshold(scores, "tolerance", rate) - scores.mean()) / scores.std(ddof=1)
    assert found == pytest.approx(factor, abs=6e-4)


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
        for call in (lambda rate: threshold([1.0, 2.0], rule, rate), lambda rate: least_images(rule, rate)):
            with pytest.raises(ValueError, match="rate"):
                call(rate)
    with pytest.raises(ValueError, match="finite"):
        threshold([1.0, np.nan], rule, 0.01)


def test_unknown_rules_are_named():
    for call in (
        lambda: threshold([1.0], "iqr", 0.1),
        lambda: least_images("iqr", 0.1),
        lambda: guarantee("iqr", 0.1, 5),
    ):
        with pytest.raises(ValueError, match=r"'iqr'.*conformal, tolerance, sigma"):
            call()
    with pytest.raises(ValueError, match="too few"):
        threshold([1.0], "tolerance", 0.1)
    assert threshold([1.0], "conformal", 0.1) == threshold([1.0], "sigma", 0.1) == 1


def test_promises():
    said = guarantee("conformal", 0.01, 209)
    assert said.startswith("of good images, 1.0 % are flagged on average over calibration sets; with these 209, ")
    said = guarantee("conformal", 0.01, 40)
    assert "least rate that can be promised is 2.4 %, not 1.0 % (that takes 99)" in said
    assert "least rate" not in guarantee("conformal", 0.01, 99)
    assert "0.01 % are flagged" in guarantee("conformal", 0.0001, 20000)
    assert "95 % confidence if their scores are normal" in guarantee("tolerance", 0.01, 40)
    assert "promises no rate" in guarantee("sigma", 0.01, 40)
    for rule in RULES:
        assert "nothing can be promised" in guarantee(rule, 0.01, 0)


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
    # With 99 calibration images and 30 in the batch, three at the least p-value are just enough for 0.1.
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


def test_drift_in_numbers():
    calibration = np.arange(101.0)  # median 50, median absolute deviation 25
    found = drift(np.append(np.arange(97, 107.0), np.nan), calibration)
    assert found.n == 10
    assert found.share_below == 1  # the least of them is reached by four: 5 / 102
    assert found.median_shift == pytest.approx((101.5 - 50) / (1.4826 * 25))
    assert found.ks_p_value == pytest.approx(stats.ks_2samp(np.arange(97, 107.0), calibration).pvalue)
    assert found.drifted


@pytest.mark.parametrize(
    "draw",
    [lambda random, n: random.normal(size=n), lambda random, n: random.gamma(2, size=n).round(1)],
    ids=["normal", "skewed with ties"],
)
@pytest.mark.parametrize(("n_good", "n"), [(10, 10), (200, 50)])
def test_like_batches_have_not_moved(draw, n_good, n):
    random = np.random.default_rng(0)
    alarms = sum(moved(draw(random, n), draw(random, n_good)) for _ in range(300))
    assert alarms <= 4  # 0.3 expected


@pytest.mark.parametrize("n", [50, 400])
@pytest.mark.parametrize("height", [4, 8, 1000])
@pytest.mark.parametrize("share", [0.1, 0.3, 0.4])
def test_many_defective_images_are_no_drift(n, height, share):
    random = np.random.default_rng(0)
    bad = int(share * n)
    alarms = 0
    for _ in range(30):
        batch = np.append(random.normal(size=n - bad), random.normal(height, 1, bad))
        alarms += moved(batch, random.normal(size=200))
    assert alarms <= 4


def test_many_barely_defective_images_are_no_drift_in_a_large_batch():
    random = np.random.default_rng(0)
    batches = [np.append(random.normal(size=700), random.normal(2, 1, 300)) for _ in range(30)]
    found = [drift(batch, random.normal(size=1000)) for batch in batches]
    assert all(each.ks_p_value < 1e-6 for each in found)  # another distribution,
    assert not any(each.drifted for each in found)  # but not as a whole


@pytest.mark.parametrize(("n", "shift", "least"), [(50, 1, 0.8), (50, 6, 1), (100, 1, 0.9), (400, 1, 1)])
@pytest.mark.parametrize("direction", [1, -1])
def test_shifted_batches_have_moved(n, shift, least, direction):
    random = np.random.default_rng(0)
    found = [drift(random.normal(direction * shift, 1, n), random.normal(size=200)) for _ in range(60)]
    assert np.mean([each.drifted for each in found]) >= least
    assert all(np.sign(each.median_shift) == direction for each in found if each.drifted)


def test_a_fall_behind_defective_images_is_found():
    random = np.random.default_rng(0)
    found = [
        drift(np.append(random.normal(-1.5, 1, 70), random.normal(8, 1, 30)), random.normal(size=200))
        for _ in range(30)
    ]
    assert all(each.drifted and each.median_shift < 0 for each in found)


@pytest.mark.parametrize("shift", [0.4, -0.4])
def test_small_shifts_are_no_drift_however_sure(shift):
    random = np.random.default_rng(0)
    found = [drift(random.normal(shift, 1, 2000), random.normal(size=2000)) for _ in range(20)]
    assert all(each.ks_p_value < 1e-6 and not each.drifted for each in found)


def test_too_few_scores_say_nothing_about_drift():
    many = np.arange(50.0)
    assert drift(many[:9], many) is None
    assert drift(many, many[:9]) is None
    assert drift(np.append(many[:9], np.nan), many) is None
    assert drift([], []) is None
    assert drift(many[:10], many[:10]) is not None


def test_drift_of_scores_without_spread():
    found = drift(np.full(30, 5.0), np.full(30, 4.0))
    assert found.median_shift is None
    assert not found.drifted
    # Over half the same: by the interquartile range.
    calibration = np.append(np.full(60, 4.0), np.linspace(5, 6, 40))
    found = drift(calibration + 100, calibration)
    assert found.drifted
    assert found.median_shift > 10
    # What is left of both after setting aside is one value.
    assert not moved(np.full(30, 0.0), np.append(np.zeros(30), np.full(10, 100.0)))


def test_the_warning_names_the_direction():
    up = describe_drift("bottle", Drift(120, 1e-9, 0.45, 1.26, True))
    assert up.startswith("bottle: ")
    assert "120 images" in up
    assert "1.3 robust deviations above" in up
    assert "45 %" in up
    down = describe_drift("bottle", Drift(120, 1e-9, 0.0, -1.26, True))
    assert "1.3 robust deviations below" in down
    for said in (up, down):
        assert "lighting" in said
        assert "mvad update" in said
        assert "\n" not in said
