import numpy as np
import pytest
from scipy import stats

from mvad.calibration import measure_drift


def drifted(scores, calibration):
    return measure_drift(scores, calibration).drifted


def test_drift_in_numbers():
    calibration = np.arange(101.0)  # median 50, median absolute deviation 25
    drift = measure_drift(np.append(np.arange(97, 107.0), np.nan), calibration)
    assert drift.n == 10
    assert drift.share_below == 1  # four calibration scores reach the lowest: 5 / 102
    assert drift.median_shift == pytest.approx((101.5 - 50) / (1.4826 * 25))
    assert drift.ks_p_value == pytest.approx(stats.ks_2samp(np.arange(97, 107.0), calibration).pvalue)
    assert drift.drifted


@pytest.mark.parametrize(
    "draw",
    [lambda random, n: random.normal(size=n), lambda random, n: random.gamma(2, size=n).round(1)],
    ids=["normal", "skewed with ties"],
)
@pytest.mark.parametrize(("n_good", "n"), [(10, 10), (200, 50)])
def test_like_batches_have_not_drifted(draw, n_good, n):
    random = np.random.default_rng(0)
    alarms = sum(drifted(draw(random, n), draw(random, n_good)) for _ in range(300))
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
        alarms += drifted(batch, random.normal(size=200))
    assert alarms <= 4


def test_many_barely_defective_images_are_no_drift_in_a_large_batch():
    random = np.random.default_rng(0)
    batches = [np.append(random.normal(size=700), random.normal(2, 1, 300)) for _ in range(30)]
    drifts = [measure_drift(batch, random.normal(size=1000)) for batch in batches]
    assert all(drift.ks_p_value < 1e-6 for drift in drifts)  # another distribution,
    assert not any(drift.drifted for drift in drifts)  # but not as a whole


@pytest.mark.parametrize(("n", "shift", "least"), [(50, 1, 0.8), (50, 6, 1), (100, 1, 0.9), (400, 1, 1)])
@pytest.mark.parametrize("direction", [1, -1])
def test_shifted_batches_have_drifted(n, shift, least, direction):
    random = np.random.default_rng(0)
    drifts = [measure_drift(random.normal(direction * shift, 1, n), random.normal(size=200)) for _ in range(60)]
    assert np.mean([drift.drifted for drift in drifts]) >= least
    assert all(np.sign(drift.median_shift) == direction for drift in drifts if drift.drifted)


def test_a_fall_behind_defective_images_is_found():
    random = np.random.default_rng(0)
    drifts = [
        measure_drift(np.append(random.normal(-1.5, 1, 70), random.normal(8, 1, 30)), random.normal(size=200))
        for _ in range(30)
    ]
    assert all(drift.drifted and drift.median_shift < 0 for drift in drifts)


@pytest.mark.parametrize("shift", [0.4, -0.4])
def test_small_shifts_are_no_drift_however_sure(shift):
    random = np.random.default_rng(0)
    drifts = [measure_drift(random.normal(shift, 1, 2000), random.normal(size=2000)) for _ in range(20)]
    assert all(drift.ks_p_value < 1e-6 and not drift.drifted for drift in drifts)


def test_too_few_scores_say_nothing_about_drift():
    many = np.arange(50.0)
    assert measure_drift(many[:9], many) is None
    assert measure_drift(many, many[:9]) is None
    assert measure_drift(np.append(many[:9], np.nan), many) is None
    assert measure_drift([], []) is None
    assert measure_drift(many[:10], many[:10]) is not None


def test_drift_of_scores_without_spread():
    drift = measure_drift(np.full(30, 5.0), np.full(30, 4.0))
    assert drift.median_shift is None
    assert not drift.drifted
    # Over half the same: by the interquartile range.
    calibration = np.append(np.full(60, 4.0), np.linspace(5, 6, 40))
    drift = measure_drift(calibration + 100, calibration)
    assert drift.drifted
    assert drift.median_shift > 10
    # The scores of both that are not set aside are all the same.
    assert not drifted(np.full(30, 0.0), np.append(np.zeros(30), np.full(10, 100.0)))
