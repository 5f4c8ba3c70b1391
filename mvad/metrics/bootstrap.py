"""Intervals of metrics by bootstrap over images, for several models on the same resamples.

A resample draws as many good images from the good ones, and as many defective ones from the defective ones, with
replacement: a two-sample bootstrap. Metrics are computed from how often each image was drawn, for many resamples at
once. Intervals are percentiles of the metric over resamples (Efron & Tibshirani, An Introduction to the Bootstrap,
1993, sections 8.3 and 13.3). They say how much a number depends on which images were tested, not on which ones the
model was fitted to.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mvad.metrics.pixel import AUPRO_LIMITS

N_RESAMPLES = 1000
CONFIDENCE = 0.95
CHUNK_NUMBERS = 1 << 22  # of an array with a number per resample and image, or resample and bin

Counts = NDArray[np.float64]  # (resamples, images): how often each image was drawn


class PixelHistograms(NamedTuple):
    """Histograms of the map values of each image of a category: (images, bins), bins from low to high values."""

    good: NDArray[np.float32]  # pixels outside of defects
    defective: NDArray[np.float32]  # pixels of defects
    regions: NDArray[np.float32]  # the same; the pixels of a connected region weigh as much as one pixel together


def resamples(
    labels: NDArray[np.int8], seed: int | list[int], count: int = N_RESAMPLES, numbers: int = CHUNK_NUMBERS
) -> Iterator[Counts]:
    """Draw stratified resamples of images; yields some at a time.

    Parameters
    ----------
    labels : (n,) 0 good, 1 defective
    seed
        Of the resamples, which do not depend on ``numbers``.
    numbers
        Largest size of what is yielded at once: as many resamples as that holds.
    """
    random, n_images = np.random.default_rng(seed), len(labels)
    strata = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    step = max(1, numbers // max(1, n_images))
    for start in range(0, count, step):
        counts = np.empty((min(step, count - start), n_images))
        for row in counts:
            for images in strata:
                row[images] = np.bincount(random.integers(len(images), size=len(images)), minlength=len(images))
        yield counts


class ResampledAuroc:
    """The AUROC of image scores on resamples: the share of pairs in the right order, of which ties count half.

    Parameters
    ----------
    labels : (n,) 0 good, 1 defective; both must be present
    scores : (n,) higher is more abnormal
    """

    def __init__(self, labels: NDArray[np.int8], scores: NDArray[np.float32]) -> None:
        (good,), (self._defective,) = np.nonzero(labels == 0), np.nonzero(labels == 1)
        self._good = good[np.argsort(scores[good], kind="stable")]
        self._below = np.searchsorted(scores[self._good], scores[self._defective], side="left")
        self._up_to = np.searchsorted(scores[self._good], scores[self._defective], side="right")

    def __call__(self, counts: Counts) -> NDArray[np.float64]:
        """Compute the AUROC of each resample: (resamples,)."""
        good, defective = counts[:, self._good], counts[:, self._defective]
        lower = np.concatenate([np.zeros((len(counts), 1)), good.cumsum(axis=1)], axis=1)
        pairs = (lower[:, self._below] + lower[:, self._up_to]) / 2
        return (defective * pairs).sum(axis=1) / (good.sum(axis=1) * defective.sum(axis=1))


def resampled_pixel_metrics(histograms: PixelHistograms, counts: Counts) -> dict[str, NDArray[np.float64]]:
    """Compute ``pixel_ap`` and ``pixel_aupro`` (see `PixelMetrics.result`) of each resample: (resamples,) each.

    The curves are the exact ones at every edge of a bin, and straight in between. A value is NaN if its resample has no
    good or no defective pixel.
    """
    names = ("pixel_ap", "pixel_aupro")
    step = max(1, CHUNK_NUMBERS // max(1, histograms.good.shape[1]))
    parts = [_pixel_metrics(histograms, counts[start : start + step]) for start in range(0, len(counts), step)]
    return {name: np.concatenate(values) for name, values in zip(names, zip(*parts, strict=True), strict=True)}


def _pixel_metrics(histograms: PixelHistograms, counts: Counts) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    false, true, overlap = (_falling(counts @ one.astype(np.float64)) for one in histograms)
    with np.errstate(invalid="ignore", divide="ignore"):
        false_rate, recall, overlap = (one / one[:, -1:] for one in (false, true, overlap))
    mean_true, mean_false = (one[:, 1:] + one[:, :-1] for one in (true, false))
    precision = mean_true / np.maximum(mean_true + mean_false, np.finfo(float).tiny)
    limit = AUPRO_LIMITS["pixel_aupro"]
    return (np.diff(recall) * precision).sum(axis=1), _areas(false_rate, overlap, limit) / limit


def _falling(histograms: NDArray[np.float64]) -> NDArray[np.float64]:
    """How much each of some histograms, (n, bins), holds at or above each bin, highest first, after a 0."""
    return np.concatenate([np.zeros((len(histograms), 1)), histograms[:, ::-1].cumsum(axis=1)], axis=1)


def _areas(x: NDArray[np.float64], y: NDArray[np.float64], limit: float) -> NDArray[np.float64]:
    """The areas under some curves, (n, points), up to ``limit``."""
    widths, rises = np.diff(x), np.diff(y)
    within = np.clip(limit - x[:, :-1], 0, widths)
    ends = y[:, :-1] + rises * np.divide(within, widths, out=np.zeros_like(widths), where=widths > 0)
    areas = (within * (y[:, :-1] + ends) / 2).sum(axis=1)
    return np.where(np.isnan(x[:, -1]) | np.isnan(y[:, -1]), np.nan, areas)


def interval(samples: NDArray[np.float64]) -> tuple[float, float] | None:
    """Compute the percentile interval of a metric from its values on resamples, of those where it is defined.

    None if there is no such value.
    """
    defined = samples[np.isfinite(samples)]
    if not len(defined):
        return None
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return float(low), float(high)
