"""Metrics of anomaly maps against masks, at each image's own resolution, one image at a time."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

AUPRO_LIMITS = {"pixel_aupro": 0.3, "pixel_aupro_5": 0.05}  # largest false-positive rate
AUPIMO_LIMITS = 1e-5, 1e-4  # of the false-positive rate that images share: arXiv 2401.01984
PRECISION_BITS = 15
N_DOUBLINGS = 32  # of the distance from ``low`` that have bins of their own
FLOAT32_FRACTION_BITS = 23
CHUNK_PIXELS = 1 << 20


class PixelMetrics:
    """Pixel metrics of a category from histograms of its map values: 40 MiB, however many images and however large.

    Values share a bin, and count as equal, if the exponent and the first ``precision_bits`` binary digits of their
    distance from ``low`` are the same: they differ by less than 2**-15 of it. So bins are narrow where good pixels end,
    even if a few values are a thousand times higher. Distances below 2**-31 of the largest one share a bin.

    The curves are the exact ones at every edge of a bin, and straight in between. As they only rise, an area below
    them (AUROC, AUPRO, AUPIMO) is wrong by at most half of what each bin adds to the one axis times what it adds to the
    other, summed over bins, as a share of the area's range. Average precision and F1 take thresholds at edges only.

    Parameters
    ----------
    low, high
        The range of map values; values outside are taken for the nearer end.
    threshold
        Pixels with at least this value are predicted to be defective; None: not known.
    """

    def __init__(
        self, low: float, high: float, threshold: float | None = None, *, precision_bits: int = PRECISION_BITS
    ) -> None:
        if not -np.inf < low <= high < np.inf:
            raise ValueError(f"map values cannot range from {low} to {high}")
        self._low, self._threshold = np.float32(low), threshold
        self._shift = FLOAT32_FRACTION_BITS - precision_bits
        n_bins = N_DOUBLINGS << precision_bits
        self._last = n_bins - 1
        self._offset = self._last - int(self._keys(np.array([high], np.float32))[0])
        self._good, self._defective = np.zeros((2, n_bins), np.int64)
        # Pixels of a region weigh as much as one pixel together, and so do those of an image.
        self._regions, self._good_images, self._defective_images = np.zeros((3, n_bins))
        self._n_good_images = self._n_regions = self._n_touched = 0

    def add(
        self, mask: NDArray[np.bool_] | None, values: NDArray[np.float32], seen: NDArray[np.bool_] | None = None
    ) -> None:
        """Count the pixels of an image.

        Parameters
        ----------
        mask : (height, width) bool, True where defective; None for a good image
        values : (height, width) float32, finite: the anomaly map
        seen : (height, width) bool, False where the model did not look: these pixels count nowhere; default: all True

        A mask that marks no seen pixel makes no good image of its image: it may have a defect.
        """
        n_seen = values.size if seen is None else int(np.count_nonzero(seen))
        if not n_seen:
            return
        if mask is not None and mask.any():
            self._add_defects(mask, values, seen)
        self._n_good_images += mask is None
        for rows in _strips(values):
            strip = values[rows]
            if mask is not None:
                strip = strip[~mask[rows] if seen is None else seen[rows] & ~mask[rows]]
            elif seen is not None:
                strip = strip[seen[rows]]
            bins = self._bins(strip.ravel())
            np.add.at(self._good, bins, 1)
            if mask is None:
                np.add.at(self._good_images, bins, 1 / n_seen)

    def _add_defects(
        self, mask: NDArray[np.bool_], values: NDArray[np.float32], seen: NDArray[np.bool_] | None
    ) -> None:
        from scipy.ndimage import find_objects, label

        (box,) = find_objects(mask.view(np.uint8))
        regions, n_regions = label(mask[box], np.ones((3, 3)))
        if seen is not None:
            regions[~seen[box]] = 0
        values = values[box]
        sizes, touched = np.zeros((2, n_regions + 1), np.int64)
        for rows in _strips(values):
            sizes += np.bincount(regions[rows].ravel(), minlength=n_regions + 1)
            if self._threshold is not None:
                touched[regions[rows][values[rows] >= self._threshold]] = 1
        n_defective = sizes[1:].sum()
        self._n_regions += int(np.count_nonzero(sizes[1:]))
        self._n_touched += int(touched[1:].sum())
        for rows in _strips(values):
            marked = regions[rows] > 0
            bins = self._bins(values[rows][marked])
            np.add.at(self._defective, bins, 1)
            np.add.at(self._regions, bins, 1 / sizes[regions[rows][marked]])
            np.add.at(self._defective_images, bins, 1 / n_defective)

    def _bins(self, values: NDArray[np.float32]) -> NDArray[np.intp]:
        return np.clip(self._keys(values) + self._offset, 0, self._last).astype(np.intp)

    def _keys(self, values: NDArray[np.float32]) -> NDArray[np.int32]:
        """Exponent and leading digits of the distance from ``low``: the bits of floating-point numbers are in order."""
        return np.subtract(values, self._low, dtype=np.float32).view(np.int32) >> self._shift

    def histograms(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """What was counted, from low to high values, (bins,) each: good pixels, defective ones, and these by region.

        The pixels of a region weigh as much as one pixel together.
        """
        return self._good, self._defective, self._regions

    def result(self) -> dict[str, float]:
        """Compute the metrics of the images that were added; empty unless there are good and defective pixels.

        ``pixel_auroc``, ``pixel_ap``, ``pixel_f1_max``
            As scikit-learn's ``roc_auc_score``, ``average_precision_score``, and the best F1 over all thresholds.
        ``pixel_aupro``, ``pixel_aupro_5``
            Area below the curve of per-region overlap against false-positive rate, up to a rate of 30 % and 5 %, as a
            share. The per-region overlap is the share of a connected defect region that is detected, averaged over
            regions; it equals the true-positive rate of pixels, each weighted by one over the size of its region
            (Bergmann et al., MVTec AD, IJCV 2021, section 5.3).
        ``pixel_aupimo``
            The true-positive rate of an image, averaged over the logarithm of the false-positive rate from 1e-5 to
            1e-4 and over defective images. The false-positive rate is the mean of those of good images, so it is absent
            without any (Bertoldo et al., AUPIMO, arXiv 2401.01984). The mean of the areas of images is the area of
            their mean curve. Below the smallest rate of good images, the true-positive rate is the one at a rate of 0.
        ``defects_touched``
            Share of defect regions with a pixel that reaches ``threshold``; absent without a threshold.
        """
        if not self._good.any() or not self._defective.any():
            return {}
        false, true = _counts(self._good), _counts(self._defective)
        false_positive_rate, recall = false / false[-1], true / true[-1]
        overlap = _rates(self._regions)
        precision = true[1:] / np.maximum(true[1:] + false[1:], 1)
        metrics = {
            "pixel_auroc": _area(false_positive_rate, recall, 1.0),
            "pixel_ap": float(np.sum(np.diff(recall) * precision)),
            "pixel_f1_max": float(np.max(2 * true / (true + false + true[-1]))),
        }
        for name, limit in AUPRO_LIMITS.items():
            metrics[name] = _area(false_positive_rate, overlap, limit) / limit
        if self._n_good_images:
            metrics["pixel_aupimo"] = _aupimo(_rates(self._good_images), _rates(self._defective_images))
        if self._threshold is not None:
            metrics["defects_touched"] = self._n_touched / self._n_regions
        return metrics


def _strips(values: NDArray[np.float32]) -> Iterator[slice]:
    """Rows of an image, few enough for arrays of their pixels to be small."""
    height, width = values.shape
    step = max(1, CHUNK_PIXELS // width)
    return (slice(start, start + step) for start in range(0, height, step))


def _counts(histogram: NDArray[np.number]) -> NDArray[np.number]:
    """How much a histogram holds at or above each bin, highest first, after a 0."""
    return np.concatenate([np.zeros(1, histogram.dtype), histogram[::-1].cumsum()])


def _rates(histogram: NDArray[np.float64]) -> NDArray[np.float64]:
    counts = _counts(histogram)
    return counts / counts[-1]


def _aupimo(false_positive_rate: NDArray[np.float64], recall: NDArray[np.float64]) -> float:
    """The area below a curve that begins at 0, over the logarithm of its false-positive rate, as a share."""
    low, high = np.log(AUPIMO_LIMITS)
    is_zero = false_positive_rate == 0
    without_false = recall[is_zero][-1]
    rates = np.log(false_positive_rate[~is_zero])
    x = np.concatenate([[min(low, rates[0]), rates[0]], rates])
    y = np.concatenate([[without_false, without_false], recall[~is_zero]])
    return (_area(x, y, high) - _area(x, y, low)) / float(high - low)


def _area(x: NDArray[np.float64], y: NDArray[np.float64], limit: float) -> float:
    """The area under a curve up to ``limit``, which lies between the first and the last ``x``.

    The curve may rise vertically. Where it does so at the limit itself, the rise has no area: the curve reaches the
    limit at its foot.
    """
    within = x <= limit
    x_within, y_within = x[within], y[within]
    if x_within[-1] < limit:
        x_within, y_within = np.append(x_within, limit), np.append(y_within, np.interp(limit, x, y))
    return float(np.sum(np.diff(x_within) * (y_within[1:] + y_within[:-1])) / 2)
