"""From scores to decisions: thresholds, p-values and drift, by the scores of good images that no model has learnt from.

Calibration scores are scores of good images, each by a model that never saw it: the good images are dealt into folds,
and a fold is scored by a model fitted on the others. A higher score is more abnormal. What is promised here holds for
new good images exchangeable with the calibration images. By folds that is nearly so: each score comes from a model
fitted on fewer images than the final one, and so tends to be a little higher, which errs towards fewer false alarms
(Vovk, Cross-conformal predictors, Annals of Mathematics and Artificial Intelligence 2015).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import scipy  # its parts are loaded when they are used: actors and tasks do without statistics
from numpy.typing import ArrayLike, NDArray

RULES = ("conformal", "tolerance", "sigma")
CONFIDENCE = 0.95  # of the tolerance bound
DEVIATIONS = 3.0  # above the mean: the sigma rule
LEAST_FOR_DRIFT = 10  # scores, of either kind
SET_ASIDE = 0.4  # largest share of a batch that may be defective without its being called moved
OUTLYING = 3.0  # robust deviations above the median: set aside before batches are compared
LEAST_SHIFT = 0.6  # robust deviations, up or down: see drift
DRIFT_LEVEL = 1e-3  # of the rank-sum test


def folds(count: int, n_folds: int, seed: int) -> NDArray[np.int64]:
    """Deal images into folds at random, the sizes of two folds differing by one at most.

    Parameters
    ----------
    count
        Number of images.
    n_folds
        Number of folds, at least 2; with fewer images than that, one image a fold.
    seed
        The same seed deals the same way.

    Returns
    -------
    (count,) int64, from 0 to min(n_folds, count) - 1

    Raises
    ------
    ValueError
        With fewer than 2 folds no image is left out of any fit.
    """
    if n_folds < 2:
        raise ValueError(f"there must be at least 2 folds, not {n_folds}")
    dealt = np.arange(count, dtype=np.int64) % min(n_folds, max(count, 1))
    return np.random.default_rng(seed).permutation(dealt)


def fold_splits(count: int, n_folds: int, seed: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """For each of the `folds`, in their order, the other images and those held out."""
    fold_of = folds(count, n_folds, seed)
    for fold in range(min(n_folds, count)):
        yield np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)


def p_values(scores: ArrayLike, calibration: ArrayLike) -> NDArray[np.float64]:
    """Conformal p-values: how rarely a good image scores as high.

    (1 + number of calibration scores >= score) / (n + 1), which for a good image exchangeable with the n calibration
    images is at most a with probability at most a, for every a (Vovk, Gammerman, Shafer, Algorithmic learning in a
    random world, 2005; Bates, Candes, Lei, Romano, Sesia, Testing for outliers with conformal p-values, Annals of
    Statistics 2023).

    Parameters
    ----------
    scores : (m,) NaN where there is none
    calibration : (n,)

    Returns
    -------
    (m,) float64, from 1 / (n + 1) to 1; NaN for a score that is NaN, and everywhere if n is 0

    Raises
    ------
    ValueError
        A calibration score is not finite.
    """
    scores = np.asarray(scores, np.float64)
    ordered = np.sort(_finite(calibration))
    if not len(ordered):
        return np.full(scores.shape, np.nan)
    at_least = len(ordered) - np.searchsorted(ordered, scores, side="left")
    return np.where(np.isnan(scores), np.nan, (1 + at_least) / (len(ordered) + 1))


def threshold(calibration: ArrayLike, rule: str, rate: float) -> float:
    """The score above which, not at which, an image is flagged.

    ``conformal``
        The k-th smallest of n calibration scores, k = ceil((n + 1)(1 - rate)), or the largest if k > n. From
        ``least_images`` images up, a score is above it if and only if its p-value is at most ``rate``. Averaged over
        calibration sets, a new good image exchangeable with the calibration images is flagged with probability at
        most max(rate, 1 / (n + 1)), whatever the distribution. Given one calibration set that probability varies: for
        independent images and scores without ties it is Beta(n + 1 - k, k) distributed (Vovk, Conditional validity of
        inductive conformal predictors, ACML 2012).
    ``tolerance``
        One-sided normal tolerance bound, mean + f sd (Hahn, Meeker, Statistical intervals, 1991): with 95 % confidence
        over calibration sets at most ``rate`` of good images are above it, if their scores are independent and
        normally distributed.
    ``sigma``
        Mean + 3 population standard deviations; ``rate`` plays no part, and none is promised.

    Parameters
    ----------
    calibration : (n,)
    rule
        One of ``RULES``.
    rate
        Share of good images that may be flagged, between 0 and 1.

    Raises
    ------
    ValueError
        An unknown rule, a rate outside (0, 1), no calibration scores, one that is not finite, or a single one for the
        tolerance bound.
    """
    _check(rule, rate)
    scores = _finite(calibration)
    n = len(scores)
    if n < (2 if rule == "tolerance" else 1):
        raise ValueError(f"too few calibration scores for the rule {rule}: {n}")
    if rule == "conformal":
        return float(np.sort(scores)[rank(n, rate) - 1])
    if rule == "tolerance":
        return float(scores.mean() + _tolerance_factor(n, rate) * scores.std(ddof=1))
    return float(scores.mean() + DEVIATIONS * scores.std())


def least_images(rule: str, rate: float) -> int:
    """Number of calibration images below which a rule cannot keep the rate.

    ceil(1 / rate) - 1 for the conformal rule, as no p-value is below 1 / (n + 1). 2 for the others: the tolerance bound
    widens by itself with fewer images, and the sigma rule keeps no rate with any number.

    Raises
    ------
    ValueError
        An unknown rule or a rate outside (0, 1).
    """
    _check(rule, rate)
    if rule != "conformal":
        return 2
    n = max(int(1 / rate) - 2, 1)  # 1 / rate is rounded: step up to the first n for which the comparison itself holds
    while 1 / (n + 1) > rate:
        n += 1
    return n


def guarantee(rule: str, rate: float, n: int) -> str:
    """What a threshold from n calibration images can promise and what not, in one sentence.

    For the conformal rule the interval is that from the 5 % to the 95 % quantile of the rate given the calibration set,
    Beta(n + 1 - k, k); see ``threshold``.

    Raises
    ------
    ValueError
        An unknown rule or a rate outside (0, 1).
    """
    _check(rule, rate)
    if n < (2 if rule == "tolerance" else 1):
        return f"{_counted(n)} nothing can be promised by the {rule} rule"
    if rule == "sigma":
        return (
            f"the sigma rule promises no rate, and the {_percent(rate)} asked for play no part: mean + 3 standard "
            f"deviations flags {_percent(scipy.stats.norm.sf(DEVIATIONS))} of good images if scores are normal and up "
            f"to {_percent(1 / (1 + DEVIATIONS**2))} if not, and {_counted(n)} both moments are estimates"
        )
    if rule == "tolerance":
        return (
            f"{_counted(n)} at most {_percent(rate)} of good images are flagged with {100 * CONFIDENCE:.0f} % "
            "confidence if their scores are normal, and nothing is promised if they are not"
        )
    k = rank(n, rate)
    low, high = (_percent(share) for share in scipy.stats.beta.ppf([0.05, 0.95], n + 1 - k, k))
    if n < least_images(rule, rate):
        return (
            f"{_counted(n)} the least rate that can be promised is {_percent(1 / (n + 1))}, not {_percent(rate)} (that "
            f"takes {least_images(rule, rate)}): of good images, that share is flagged on average over calibration "
            f"sets; with these, between {low} and {high}"
        )
    return (
        f"of good images, {_percent((n + 1 - k) / (n + 1))} are flagged on average over calibration sets; with these "
        f"{n}, between {low} and {high}"
    )


def control_fdr(p_values: ArrayLike, rate: float) -> NDArray[np.bool_]:
    """Flag images of one batch so that at most ``rate`` of those flagged are good, on average over batches.

    Benjamini, Hochberg, Journal of the Royal Statistical Society B 1995. Conformal p-values of one batch share their
    calibration set and so are dependent, but positively, which the procedure bears (Bates et al. 2023, theorem 2). No
    p-value is below 1 / (n + 1), so that of m images either none is flagged or at least m / (rate (n + 1)): to find
    few defects in a large batch takes many calibration images.

    Parameters
    ----------
    p_values : (m,) NaN where there is none

    Returns
    -------
    (m,) bool, True where flagged; False where NaN

    Raises
    ------
    ValueError
        A rate outside (0, 1).
    """
    _check("conformal", rate)
    values = np.asarray(p_values, np.float64)
    flagged = np.zeros(values.shape, bool)
    there = ~np.isnan(values)
    if there.any():
        # Conformal p-values are fractions, which often meet the level exactly but for rounding.
        flagged[there] = scipy.stats.false_discovery_control(values[there], method="bh") <= rate * (1 + 1e-9)
    return flagged


class Drift(NamedTuple):
    """How the scores of a batch lie against the calibration scores; see ``drift``.

    Attributes
    ----------
    n
        Scores in the batch.
    ks_p_value
        Of the two-sample Kolmogorov-Smirnov test over all scores; small for many defective images, too.
    share_below
        Share of p-values below 0.05.
    median_shift
        Median of the batch less that of the calibration scores, in robust deviations of the latter, without the scores
        that ``drift`` sets aside; None if the calibration scores have no spread.
    drifted
        The batch as a whole has moved.
    """

    n: int
    ks_p_value: float
    share_below: float
    median_shift: float | None
    drifted: bool


def drift(scores: ArrayLike, calibration: ArrayLike) -> Drift | None:
    """Whether a batch as a whole has moved (lighting, camera, focus), and not only its defective images.

    Defective images add scores at the upper end and take none away at the lower. So scores that may be defective are
    set aside: those more than 3 robust deviations above the median of the calibration scores, as long as they are not
    more than the highest 40 % of the batch; calibration scores above the same bound are set aside with them. The robust
    deviation is 1.4826 times the median absolute deviation, or the interquartile range / 1.349 if that is 0. A batch
    has moved if the two-sided rank-sum test (Mann, Whitney) of what is left has p < 0.001 and either

    - up: the lower quartile of the whole batch is more than 0.6 robust deviations above that of the calibration
      scores. Defective images, however high, raise the lower quartile of normally distributed scores by 0.31 robust
      deviations if they are 30 % of the batch, by 0.46 if 40 %. Or
    - down: the median of what is left is more than 0.6 robust deviations lower. A small fall is no drift: calibration
      scores, by models fitted on fewer images, are somewhat higher than those of the batch.

    On a batch of good images distributed as the calibration images ``moved`` is wrong with a probability of at most
    about 0.001, and much less from some 100 images of either kind, where a difference must be large as well as
    significant. For normal scores and 200 calibration images, a shift of one robust deviation is found in about 97 of
    100 batches of 50 and in 99 of 100 batches of 100; with 50 calibration images, in 9 of 10 batches of 50.

    Limits: independent images are assumed, so that a batch of near copies (one lot, frames of a video) moves more
    often. Defective images that score little above good ones are not set aside: if they score some 2 robust deviations
    higher, a batch of 50 with 30 % of them is called moved about once in 12, with 40 % once in 4, and larger batches
    less often. A batch with more than 40 % defective images may be called moved. A change that raises the scores of
    only some good images looks like defects and is not found. Without a robust deviation (the middle half of the
    calibration scores is one value) nothing is called moved.

    Parameters
    ----------
    scores : (m,) of a batch; NaN is left out
    calibration : (n,)

    Returns
    -------
    None for fewer than 10 scores of either kind

    Raises
    ------
    ValueError
        A calibration score is not finite.
    """
    good = _finite(calibration)
    batch = np.sort(np.asarray(scores, np.float64))
    batch = batch[~np.isnan(batch)]
    if min(len(batch), len(good)) < LEAST_FOR_DRIFT:
        return None
    shift, moved = _movement(batch, good)
    return Drift(
        n=len(batch),
        ks_p_value=float(scipy.stats.ks_2samp(batch, good).pvalue),
        share_below=float((p_values(batch, good) < 0.05).mean()),
        median_shift=shift,
        drifted=moved,
    )


def describe_drift(category: str, drift: Drift) -> str:
    """A warning for a person, in one sentence, of a drift that is ``moved``."""
    shift = drift.median_shift or 0.0
    side = "above" if shift >= 0 else "below"
    return (
        f"{category}: the scores of this batch as a whole ({drift.n} images) have moved: their median is "
        f"{abs(shift):.1f} robust deviations {side} that of the calibration images, and "
        f"{100 * drift.share_below:.0f} % have a p-value below 0.05 where 5 % are expected, so that not the product "
        "but what the model sees of it may have changed: check lighting, camera and focus, then fit "
        "again or run mvad update"
    )


def _movement(batch: NDArray[np.float64], good: NDArray[np.float64]) -> tuple[float | None, bool]:
    """Shift of the median in robust deviations, and whether the batch has moved; ``batch`` must be sorted."""
    deviation = _robust_deviation(good)
    if deviation == 0:
        return None, False
    least_kept = batch[math.ceil((1 - SET_ASIDE) * len(batch)) - 1]
    bound = max(np.median(good) + OUTLYING * deviation, least_kept)
    kept, good_kept = batch[batch <= bound], good[good <= bound]
    shift = float((np.median(kept) - np.median(good_kept)) / deviation)
    rise = (np.quantile(batch, 0.25) - np.quantile(good, 0.25)) / deviation
    # The asymptotic test has the correction for ties, which the exact one lacks.
    p_value = scipy.stats.mannwhitneyu(kept, good_kept, alternative="two-sided", method="asymptotic").pvalue
    return shift, bool(p_value < DRIFT_LEVEL and (rise > LEAST_SHIFT or shift < -LEAST_SHIFT))


def _robust_deviation(scores: NDArray[np.float64]) -> float:
    """An estimate of the standard deviation of normal scores that outliers leave alone."""
    deviation = 1.4826 * np.median(np.abs(scores - np.median(scores)))
    return float(deviation if deviation > 0 else scipy.stats.iqr(scores) / 1.349)


def rank(n: int, rate: float) -> int:
    """k of the conformal threshold, at most n: n + 1 less the number of p-values j / (n + 1) that are <= rate."""
    flagged = math.floor((n + 1) * rate)
    # The product is rounded; the comparison below is the one that p-values are put to.
    if (flagged + 1) / (n + 1) <= rate:
        flagged += 1
    elif flagged / (n + 1) > rate:
        flagged -= 1
    return n + 1 - max(flagged, 1)


def _tolerance_factor(n: int, rate: float) -> float:
    """Standard deviations from the mean to the one-sided normal tolerance bound, by the noncentral t distribution."""
    return float(scipy.stats.nct.ppf(CONFIDENCE, n - 1, scipy.stats.norm.isf(rate) * math.sqrt(n)) / math.sqrt(n))


def _check(rule: str, rate: float) -> None:
    if rule not in RULES:
        raise ValueError(f"unknown rule {rule!r}: it must be one of {', '.join(RULES)}")
    if not 0 < rate < 1:
        raise ValueError(f"the rate must be between 0 and 1, not {rate}")


def _finite(calibration: ArrayLike) -> NDArray[np.float64]:
    # One NaN would become the threshold, above which nothing is, and no image would ever be flagged.
    scores = np.asarray(calibration, np.float64)
    if not np.isfinite(scores).all():
        raise ValueError("calibration scores must be finite")
    return scores


def _counted(n: int) -> str:
    return f"with {n} calibration image{'' if n == 1 else 's'}"


def _percent(share: float) -> str:
    """A share in percent: to a tenth, to a figure if that would be none."""
    return f"{100 * share:.1f} %" if share == 0 or share >= 0.0005 else f"{100 * share:.1g} %"
