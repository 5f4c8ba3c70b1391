"""Turn scores into decisions: k-fold splits, conformal p-values, thresholds and control of the false discovery rate.

Calibration scores are scores of good images, each given by a model that never saw the image. Either the good images are
split into folds, and each fold is scored by a model fitted on the others; or each image is scored by the final memory
bank without the vectors that come from it. A higher score is more abnormal. All guarantees hold for new good images
that are exchangeable with the calibration images, and scored by the models that scored those. The final model is
another one, fitted to all images, so they hold nearly: it has seen more, scores new images a little lower, and gives
fewer false alarms, and more missed defects. What holds for folds without any assumption about the method is twice the
rate, nearly (cross-conformal prediction: Vovk, Annals of Mathematics and Artificial Intelligence 2015; the bound:
Barber, Candes, Ramdas, Tibshirani, Predictive inference with the jackknife+, Annals of Statistics 2021, theorem 4), and
that only if each new image is compared with the model of each fold. Leaving out of a bank is the jackknife, which has
no such bound: it holds as far as one image more or less changes scores little. The bank also lacks what it would have
chosen from the other images in the place of those vectors, which makes calibration scores higher, and alarms fewer.

Images of one group, such as frames of one scene, are not exchangeable with those of another. A group is held out as a
whole, and one of its images, drawn at random, gives its calibration score: `one_per_group`. The guarantees then hold
for an image of a new group, with n the number of groups (subsampling once: Dunn, Wasserman, Ramdas, Distribution-free
prediction sets for two-layer hierarchical models, Journal of the American Statistical Association 2023). The image is
drawn, and not the highest score taken, so that p-values of good images are uniform and batches comparable.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

RULES = ("conformal", "tolerance", "sigma")
MIN_CALIBRATION_SCORES = 2  # of a threshold
TOLERANCE_CONFIDENCE = 0.95
SIGMA_DEVIATIONS = 3.0


class DecisionRule(NamedTuple):
    """The model that scores a category, and the threshold that its calibration scores give.

    A model without calibration has neither threshold nor calibration scores, and its images get no verdict.
    """

    model_id: str | None = None  # None if the category has no model
    calibration: NDArray[np.float32] | None = None  # (n,) calibration scores
    rule: str | None = None  # one of ``RULES``
    threshold: float | None = None  # the score above which an image is flagged
    guarantee: str | None = None  # what the threshold guarantees, as a sentence
    too_few: bool = False  # whether there are too few calibration scores for the requested false-alarm rate
    rate: float | None = None  # the requested false-alarm rate
    uncertain_threshold: float | None = None  # the score above which an image that is not flagged is uncertain
    pixel_threshold: float | None = None  # the value of the map above which a pixel is in a region
    caveat: str | None = None  # why the threshold, or that there is none, needs attention: `wording.calibration_caveat`


def median_and_spread(calibration: NDArray[np.float32]) -> tuple[float, float]:
    """Median of calibration scores, (n,), and the distance from it up to their 90 % quantile, which is not 0."""
    scores = calibration.astype(np.float64)
    median = float(np.median(scores))
    return median, max(float(np.quantile(scores, 0.9)) - median, 1e-3 * abs(median), 1e-12)


def kfold(count: int, n_folds: int, seed: int) -> NDArray[np.int64]:
    """Assign images to folds at random; the sizes of two folds differ by at most one.

    With fewer images than folds, each image is a fold of its own. The same seed gives the same folds. ValueError if
    there are fewer than 2 folds: no image would be held out.

    Returns
    -------
    (count,) int64, the fold of each image, from 0 to min(n_folds, count) - 1
    """
    if n_folds < 2:
        raise ValueError(f"there must be at least 2 folds, not {n_folds}")
    in_order = np.arange(count, dtype=np.int64) % min(n_folds, max(count, 1))
    return np.random.default_rng(seed).permutation(in_order)


def fold_splits(
    groups: NDArray[np.int64], n_folds: int, seed: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield, for each fold of `kfold` in order, the indices of the images to fit on and of those held out.

    ``groups`` are numbers from 0, (n,): images of one group are held out together.
    """
    n_groups = int(groups.max(initial=-1)) + 1
    fold_of = kfold(n_groups, n_folds, seed)[groups]
    for fold in range(min(n_folds, n_groups)):
        yield np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)


def one_per_group(scores: NDArray[Any], groups: NDArray[np.int64], seed: int | Sequence[int]) -> NDArray[Any]:
    """Draw one score of each group, at random but for the seed, in the order of the groups' numbers.

    Takes (n,) scores and (n,) group numbers, and returns (n_groups,) scores: all of them, in their order, if each
    group is one image.
    """
    order = np.random.default_rng(seed).permutation(len(groups))
    _, first = np.unique(groups[order], return_index=True)
    return scores[order[first]]


def p_values(scores: ArrayLike, calibration: ArrayLike) -> NDArray[np.float64]:
    """Compute conformal p-values: how rarely a good image scores as high.

    The p-value is (1 + number of calibration scores >= score) / (n + 1). For a good image exchangeable with the n
    calibration images it is at most a with probability at most a, for every a (Vovk, Gammerman, Shafer, Algorithmic
    learning in a random world, 2005; Bates, Candes, Lei, Romano, Sesia, Testing for outliers with conformal p-values,
    Annals of Statistics 2023). ValueError if a calibration score is not finite.

    Parameters
    ----------
    scores : (m,) NaN where missing
    calibration : (n,)

    Returns
    -------
    (m,) float64, from 1 / (n + 1) to 1; NaN where the score is NaN, and everywhere if n is 0
    """
    scores = np.asarray(scores, np.float64)
    ordered = np.sort(require_finite(calibration))
    if not len(ordered):
        return np.full(scores.shape, np.nan)
    at_least = len(ordered) - np.searchsorted(ordered, scores, side="left")
    return np.where(np.isnan(scores), np.nan, (1 + at_least) / (len(ordered) + 1))


def threshold(calibration: ArrayLike, rule: str, rate: float) -> float:
    """Compute the score above which (not at which) an image is flagged.

    ``conformal``
        The k-th smallest of n calibration scores, k = ceil((n + 1)(1 - rate)), or the largest if k > n. With at least
        ``min_images`` scores, a score is above the threshold if and only if its p-value is at most ``rate``. Averaged
        over calibration sets, a new good image exchangeable with the calibration images is flagged with probability at
        most max(rate, 1 / (n + 1)), whatever the distribution. For a given calibration set that probability varies: if
        images are independent and scores have no ties, it is Beta(n + 1 - k, k) distributed (Vovk, Conditional
        validity of inductive conformal predictors, ACML 2012).
    ``tolerance``
        The one-sided normal tolerance bound, mean + f sd with f from the noncentral t distribution (Hahn, Meeker,
        Statistical intervals, 1991): with 95 % confidence over calibration sets, at most ``rate`` of good images are
        above it if their scores are independent and normally distributed.
    ``sigma``
        Mean + 3 population standard deviations. It ignores ``rate`` and guarantees none.

    ``calibration`` has shape (n,); ``rate`` is the share of good images that may be flagged. ValueError if the rule is
    unknown, the rate is outside (0, 1), there are no calibration scores (or just one, for the tolerance bound), or one
    of them is not finite.
    """
    _check_rule(rule)
    _check_rate(rate)
    scores = require_finite(calibration)
    n = len(scores)
    if n < (2 if rule == "tolerance" else 1):
        raise ValueError(f"too few calibration scores for the rule {rule}: {n}")
    if rule == "conformal":
        return float(np.sort(scores)[rank(n, rate) - 1])
    if rule == "tolerance":
        from scipy.stats import nct, norm

        factor = float(nct.ppf(TOLERANCE_CONFIDENCE, n - 1, norm.isf(rate) * math.sqrt(n)) / math.sqrt(n))
        return float(scores.mean() + factor * scores.std(ddof=1))
    return float(scores.mean() + SIGMA_DEVIATIONS * scores.std())


def min_images(rule: str, rate: float) -> int:
    """Return the number of calibration images below which a rule cannot keep the rate.

    It is ceil(1 / rate) - 1 for the conformal rule, because no p-value is below 1 / (n + 1), and 2 for the others: the
    tolerance bound widens by itself with fewer images, and the sigma rule keeps no rate with any number of them.
    ValueError if the rule is unknown or the rate is outside (0, 1).
    """
    _check_rule(rule)
    _check_rate(rate)
    if rule != "conformal":
        return 2
    n = max(int(1 / rate) - 2, 1)  # 1 / rate is rounded: step up to the first n for which the comparison itself holds
    while 1 / (n + 1) > rate:
        n += 1
    return n


def control_fdr(p_values: ArrayLike, rate: float) -> NDArray[np.bool_]:
    """Flag images of a batch so that on average over batches at most ``rate`` of the flagged images are good.

    This is the procedure of Benjamini and Hochberg (Journal of the Royal Statistical Society B 1995). Conformal
    p-values of one batch share their calibration set and so are dependent, but positively, for which the procedure
    holds (Bates et al. 2023, theorem 2). No p-value is below 1 / (n + 1), so of m images either none or at least
    m / (rate (n + 1)) are flagged: finding a few defects in a large batch takes many calibration images.

    Takes (m,) p-values, NaN where missing, and returns (m,) bool, True where flagged, False where NaN. ValueError if
    the rate is outside (0, 1).
    """
    from scipy.stats import false_discovery_control

    _check_rate(rate)
    values = np.asarray(p_values, np.float64)
    flagged = np.zeros(values.shape, bool)
    valid = ~np.isnan(values)
    if valid.any():
        # Conformal p-values are fractions, which often meet the level exactly but for rounding.
        flagged[valid] = false_discovery_control(values[valid], method="bh") <= rate * (1 + 1e-9)
    return flagged


def rank(n: int, rate: float) -> int:
    """Return k of the conformal threshold, at most n: n + 1 minus the number of p-values j / (n + 1) <= rate."""
    flagged = math.floor((n + 1) * rate)
    # The product is rounded; p-values are tested by the comparison below.
    if (flagged + 1) / (n + 1) <= rate:
        flagged += 1
    elif flagged / (n + 1) > rate:
        flagged -= 1
    return n + 1 - max(flagged, 1)


def require_finite(calibration: ArrayLike) -> NDArray[np.float64]:
    """Convert calibration scores to float64; ValueError if one is not finite."""
    # A single NaN would become the threshold, and no image would ever be flagged.
    scores = np.asarray(calibration, np.float64)
    if not np.isfinite(scores).all():
        raise ValueError("calibration scores must be finite")
    return scores


def _check_rule(rule: str) -> None:
    if rule not in RULES:
        raise ValueError(f"unknown rule {rule!r}: it must be one of {', '.join(RULES)}")


def _check_rate(rate: float) -> None:
    if not 0 < rate < 1:
        raise ValueError(f"the rate must be between 0 and 1, not {rate}")
