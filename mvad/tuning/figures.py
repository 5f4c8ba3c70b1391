"""The figure to choose by, its interval, and the rule of choice."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mvad.metrics.bootstrap import N_RESAMPLES, ResampledAuroc, interval

MIN_GAIN = 0.005  # of the figure: less is not worth a change
MAX_AUROC_LOSS = 0.002  # of the image AUROC, whatever is gained elsewhere


class Evidence(NamedTuple):
    """What a model gives n images: held-out good ones, and the same with defects."""

    scores: NDArray[np.float32]  # (n,)
    good: NDArray[np.int64]  # (n, bins): pixels of the maps outside of defects, by falling value
    defective: NDArray[np.int64]  # (n, bins): pixels of defects


class Figures(NamedTuple):
    """Figures of a candidate: of the images themselves, then of each bootstrap sample of them, (1 + samples,)."""

    figure: NDArray[np.float64]  # mean of the other two
    image_auroc: NDArray[np.float64]
    pixel_ap: NDArray[np.float64]

    def interval(self, other: "Figures | None" = None) -> tuple[float, float]:
        """Where the figure, or its difference to another candidate's, lies in 95 % of the samples."""
        values = self.figure if other is None else self.figure - other.figure
        return interval(values[1:]) or (np.nan, np.nan)


def bootstrap_weights(n_images: int, seed: int) -> NDArray[np.float64]:
    """How often each held-out image is in each sample: once in the first, which is all of them; (1 + samples, n)."""
    random = np.random.default_rng(seed)
    drawn = random.multinomial(n_images, np.full(n_images, 1 / n_images), N_RESAMPLES)
    return np.concatenate([np.ones((1, n_images)), drawn])


def figures(
    evidence: Evidence, held_out: NDArray[np.int64], kinds: NDArray[np.int64], weights: NDArray[np.float64]
) -> Figures:
    """The figures of a candidate.

    The image AUROC of each kind of defect is that of all good images against those with this defect; the pixel average
    precision that of all their pixels. Both are averaged over the kinds, so that an easy kind, or one with large
    masks, does not outweigh the others. The figure is their mean: the AUROC says whether defective images are found,
    but is the same for all candidates where it is near 1; the average precision says by how much defects stand out,
    and still differs there. Samples are of held-out images, each with all its defects: these share an image, so they
    are not independent.

    Parameters
    ----------
    held_out, kinds : (n,)
        The held-out image that each image is, from 0, and its kind of defect, -1 for good.
    weights : (1 + samples, n_held_out)
        See `bootstrap_weights`.
    """
    is_good, of_images = kinds < 0, weights[:, held_out]
    aurocs, precisions = [], []
    for kind in np.unique(kinds[~is_good]):
        of_kind = kinds == kind
        rows = is_good | of_kind
        with np.errstate(invalid="ignore"):  # not a number for samples without this kind
            aurocs.append(ResampledAuroc(of_kind[rows].astype(np.int8), evidence.scores[rows])(of_images[:, rows]))
        precisions.append(_average_precision(evidence.good[rows], evidence.defective[rows], of_images[:, rows]))
    auroc, precision = (_mean(values) for values in (aurocs, precisions))
    figure = auroc if np.isnan(precision[0]) else (auroc + precision) / 2
    return Figures(figure, auroc, precision)


def _average_precision(
    good: NDArray[np.int64], defective: NDArray[np.int64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Average precision of pixels in bins of falling value, for each sample; NaN without a defective one."""
    true = np.cumsum(weights @ defective, axis=1)
    false = np.cumsum(weights @ good, axis=1)
    precision = true / np.maximum(true + false, 1e-9)
    steps = np.diff(true, axis=1, prepend=0)
    return _ratio((steps * precision).sum(axis=1), true[:, -1])


def _ratio(numerator: NDArray[np.float64], denominator: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(numerator, denominator, out=np.full(len(numerator), np.nan), where=denominator > 0)


def _mean(values: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """The mean over kinds of those that a sample has."""
    stacked = np.stack(values)
    known = ~np.isnan(stacked)
    return _ratio(np.where(known, stacked, 0).sum(axis=0), known.sum(axis=0).astype(float))


def is_better(candidate: Figures, incumbent: Figures) -> bool:
    """Whether a candidate is better beyond the interval of the difference, worthwhile, and loses no image AUROC."""
    gain = candidate.figure[0] - incumbent.figure[0]
    loss = incumbent.image_auroc[0] - candidate.image_auroc[0]
    return bool(candidate.interval(incumbent)[0] > 0 and gain >= MIN_GAIN and loss <= MAX_AUROC_LOSS)


def choose(candidates: Sequence[Figures], costs: Sequence[tuple[int, ...]]) -> int:
    """The number of the candidate to use; the first is in use, and stays unless another is better (`is_better`).

    Of those that are better, the one with the highest figure, or the cheapest of those that tie with it: that it does
    not beat beyond the interval of the difference.
    """
    better = [number for number in range(1, len(candidates)) if is_better(candidates[number], candidates[0])]
    if not better:
        return 0
    best = max(better, key=lambda number: candidates[number].figure[0])
    tied = [number for number in better if candidates[best].interval(candidates[number])[0] <= 0]
    return min(tied, key=lambda number: (costs[number], -candidates[number].figure[0], number))
