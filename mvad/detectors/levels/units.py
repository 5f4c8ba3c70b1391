"""Scores of several levels of one image in units of what good images score there, so that they can be compared.

A level is a way to look at an image: through windows, or squeezed as a whole. Distances at different levels are not
alike: what is usual at one may be far at another. So the score s of an image at a level becomes its rank among the n
scores of good images there: u(s) rises from k / (n + 1) at the k-th smallest of them to (k + 1) / (n + 1) at the next,
in a straight line. Below the smallest and above the largest it goes on in a straight line, by 0.4 for each distance
between the median and the 90 % quantile of the good scores, which is how u rises between these on average. So u rises
strictly, continuously and without end. The score of the image is the largest u of its levels: it is monotone in each,
and of strong anomalies, none are equal.

Good images that the ranks are made of are themselves scored by the ranks of the others, without those of their group
of near duplicates; else no good image could be beyond them, while new ones can.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mvad.calibration import median_and_spread

SLOPE = 0.9 - 0.5  # of ranks between the median and the 90 % quantile of good scores, per distance between these
MIN_GOOD = 2  # scores, without which there is no distribution

Values = NDArray[np.float32]


def in_ranks(scores: ArrayLike, good: Values) -> NDArray[np.float64]:
    """What scores are in units of the good scores (n,) of their level: u above."""
    values = np.asarray(scores, np.float64)
    knots, counts = np.unique(good.astype(np.float64), return_counts=True)
    ranks = np.cumsum(counts) / (len(good) + 1)
    slope = SLOPE / median_and_spread(good)[1]
    beyond = np.maximum(values - knots[-1], 0) + np.minimum(values - knots[0], 0)
    return np.interp(values, knots, ranks) + slope * beyond


def combined_scores(scores: Values, good: Values) -> Values:
    """One score per image, (m,), from those at each level, (levels, m), and of good images, (levels, n)."""
    ranks = [in_ranks(of_level, of_good) for of_level, of_good in zip(scores, good, strict=True)]
    return np.max(ranks, axis=0).astype(np.float32)


def in_first_unit(values: ArrayLike, peaks: Values) -> Values:
    """Values of maps of the second level in units of those of the first.

    ``peaks``, (2, n), are the largest values of maps of good images at each level. Their medians and 90 % quantiles
    become the same.
    """
    (middle, spread), (other_middle, other_spread) = map(median_and_spread, peaks)
    shifted = np.asarray(values, np.float64) - other_middle
    return (middle + shifted * (spread / other_spread)).astype(np.float32)


def combined_peaks(peaks: Values, good: Values) -> Values:
    """The larger peak of the maps of both levels in units of the first, (m,): of (2, m), and of good images (2, n)."""
    return np.maximum(peaks[0], in_first_unit(peaks[1], good))


def combined_left_out(
    scores: Values, peaks: Values, groups: NDArray[np.int64], good_scores: Values, good_peaks: Values
) -> tuple[Values, Values]:
    """`combined_scores` and `combined_peaks` of good images, (m,) each, by those of the other groups.

    ``groups``, (m,), number the columns of ``good_scores`` and ``good_peaks``, which have one of each group.
    """
    found = np.empty((2, scores.shape[1]), np.float32)
    for group in np.unique(groups):
        others, members = np.arange(good_scores.shape[1]) != group, groups == group
        found[0, members] = combined_scores(scores[:, members], good_scores[:, others])
        found[1, members] = combined_peaks(peaks[:, members], good_peaks[:, others])
    return found[0], found[1]
