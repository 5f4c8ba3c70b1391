"""Detect that a batch has drifted: that it scores differently as a whole, and not just in its defective images."""

import importlib
import math
import threading
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mvad.calibration.conformal import p_values, require_finite

MIN_SCORES = 10  # of the batch, and of the calibration
MAX_DEFECTIVE_SHARE = 0.4  # with a larger share of defective images, a batch may count as drifted
OUTLIER_DEVIATIONS = 3.0  # scores further above the calibration median are set aside
MIN_SHIFT_DEVIATIONS = 0.6  # smaller shifts are no drift, however significant
MAX_P_VALUE = 1e-3  # of the rank-sum test


class Drift(NamedTuple):
    """How the scores of a batch compare with the calibration scores; see `measure_drift`."""

    n: int  # number of scores in the batch
    ks_p_value: (
        float  # of the two-sample Kolmogorov-Smirnov test on all scores; many defective images make it small, too
    )
    share_below: float  # share of conformal p-values below 0.05
    # Median of the batch minus that of the calibration scores, in robust deviations of the latter, without the scores
    # that `measure_drift` sets aside; None if the calibration scores have no spread.
    median_shift: float | None
    drifted: bool  # whether the batch as a whole has drifted


def import_ahead() -> None:
    """Import what `measure_drift` needs, in a thread: it takes a second, in which a driver has nothing else to do."""
    threading.Thread(target=importlib.import_module, args=("scipy.stats",), name="imports", daemon=True).start()


def measure_drift(scores: ArrayLike, calibration: ArrayLike) -> Drift | None:
    """Test whether a batch has drifted as a whole (lighting, camera, focus), and not just in its defective images.

    Defective images add scores at the upper end and take none away at the lower end. So scores that may be defective
    are set aside: those more than 3 robust deviations above the median of the calibration scores, but never more than
    the highest 40 % of the batch; calibration scores above the same bound are set aside with them. The robust deviation
    is 1.4826 times the median absolute deviation, or the interquartile range / 1.349 if that is 0. A batch has drifted
    if the two-sided rank-sum test (Mann, Whitney) of the remaining scores gives p < 0.001, and one of these holds:

    - up: the lower quartile of the whole batch is more than 0.6 robust deviations above that of the calibration
      scores. Defective images, however high they score, raise the lower quartile of normally distributed scores by
      0.31 robust deviations if they are 30 % of the batch, and by 0.46 if they are 40 %.
    - down: the median of the remaining scores is more than 0.6 robust deviations lower. A small fall is no drift:
      calibration scores, given by models fitted on fewer images, are slightly higher than those of the batch.

    For a batch of good images distributed like the calibration images, ``drifted`` is wrong with a probability of at
    most about 0.001, and of much less with some 100 images or more of either kind, where a difference must be large as
    well as significant. For normal scores and 200 calibration images, a shift of one robust deviation is detected in
    about 97 of 100 batches of 50 images and in 99 of 100 batches of 100; with 50 calibration images, in 9 of 10 batches
    of 50.

    Limits: images are assumed to be independent, so a batch of near copies (one lot, frames of a video) counts as
    drifted more often. Defective images that score only slightly above good ones are not set aside: if they score some
    2 robust deviations higher, a batch of 50 with 30 % of them counts as drifted about once in 12 times, with 40 % once
    in 4, and larger batches less often. A batch with more than 40 % defective images may count as drifted. A change
    that raises the scores of only some good images looks like defects and is not detected. If there is no robust
    deviation (the middle half of the calibration scores is a single value), nothing counts as drifted.

    Takes (m,) scores of a batch, of which NaN is ignored, and (n,) calibration scores. Returns None if there are fewer
    than 10 of either. ValueError if a calibration score is not finite.
    """
    good = require_finite(calibration)
    batch = np.sort(np.asarray(scores, np.float64))
    batch = batch[~np.isnan(batch)]
    if min(len(batch), len(good)) < MIN_SCORES:
        return None
    from scipy.stats import ks_2samp

    shift, drifted = _median_shift(batch, good)
    return Drift(
        n=len(batch),
        ks_p_value=float(ks_2samp(batch, good).pvalue),
        share_below=float((p_values(batch, good) < 0.05).mean()),
        median_shift=shift,
        drifted=drifted,
    )


def _median_shift(batch: NDArray[np.float64], good: NDArray[np.float64]) -> tuple[float | None, bool]:
    """Return the shift of the median in robust deviations, and whether it is a drift; ``batch`` must be sorted."""
    from scipy.stats import iqr, mannwhitneyu

    deviation = float(1.4826 * np.median(np.abs(good - np.median(good))) or iqr(good) / 1.349)
    if deviation == 0:
        return None, False
    always_kept = batch[math.ceil((1 - MAX_DEFECTIVE_SHARE) * len(batch)) - 1]
    bound = max(np.median(good) + OUTLIER_DEVIATIONS * deviation, always_kept)
    kept, good_kept = batch[batch <= bound], good[good <= bound]
    shift = float((np.median(kept) - np.median(good_kept)) / deviation)
    rise = (np.quantile(batch, 0.25) - np.quantile(good, 0.25)) / deviation
    # The asymptotic test corrects for ties; the exact one does not.
    p_value = mannwhitneyu(kept, good_kept, alternative="two-sided", method="asymptotic").pvalue
    return shift, bool(p_value < MAX_P_VALUE and (rise > MIN_SHIFT_DEVIATIONS or shift < -MIN_SHIFT_DEVIATIONS))
