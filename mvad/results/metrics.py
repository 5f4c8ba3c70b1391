"""Metrics of image scores against labels and of anomaly maps against masks."""

import numpy as np
from numpy.typing import NDArray

MAX_FALSE_POSITIVE_RATE = 0.3  # of AUPRO: Bergmann et al., MVTec AD, IJCV 2021, section 5.3


def image_metrics(labels: NDArray[np.int8], scores: NDArray[np.float32]) -> dict[str, float]:
    """Compute AUROC, average precision, and the best F1 over all thresholds.

    Parameters
    ----------
    labels : (n,) 0 good, 1 defective; both must be present
    scores : (n,) higher is more abnormal
    """
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

    precision, recall, _ = precision_recall_curve(labels, scores)
    total = precision + recall
    f1 = np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)
    return {
        "image_auroc": float(roc_auc_score(labels, scores)),
        "image_ap": float(average_precision_score(labels, scores)),
        "image_f1_max": float(f1.max()),
    }


def pixel_metrics(masks: NDArray[np.bool_], maps: NDArray[np.float32]) -> dict[str, float]:
    """Compute pixel AUROC, and AUPRO up to a false-positive rate of 30 %.

    The per-region overlap is the share of a connected defect region that is detected, averaged over regions. It equals
    the true-positive rate of pixels, each weighted by one over the size of its region (Bergmann et al., IJCV 2021,
    section 5.3). The scores of good pixels, of which there are millions, are sorted by value; scikit-learn's curves,
    which sort indices, give the same numbers but take ten times as long.

    Parameters
    ----------
    masks : (n, height, width) bool, True where defective; there must be both good and defective pixels
    maps : (n, height, width) float32
    """
    good = np.sort(maps[~masks])
    scores = maps[masks]
    weights = np.concatenate([_region_weights(mask)[mask] for mask in masks])
    order = np.argsort(-scores)
    scores, weights = scores[order], weights[order]
    # Good pixels at or above each defective one, and those above it: ties count half in the AUROC (Mann, Whitney).
    at_least = len(good) - np.searchsorted(good, scores, side="left")
    above = len(good) - np.searchsorted(good, scores, side="right")
    auroc = 1 - (at_least.mean() + above.mean()) / 2 / len(good)
    # Overlap against false-positive rate: flat down to the score of a defective pixel, then a rise to the point at
    # which all pixels with that score are counted, both good and defective.
    last_of_ties = np.append(scores[1:] != scores[:-1], True)
    detected = np.concatenate([[0.0], (weights.cumsum() / weights.sum())[last_of_ties]])
    rates = np.stack([above[last_of_ties], at_least[last_of_ties]], axis=1).ravel() / len(good)
    false_positive_rate = np.concatenate([[0.0], rates, [1.0]])
    overlap = np.concatenate([[0.0], np.stack([detected[:-1], detected[1:]], axis=1).ravel(), [1.0]])
    return {
        "pixel_auroc": float(auroc),
        "pixel_aupro": _area(false_positive_rate, overlap, MAX_FALSE_POSITIVE_RATE) / MAX_FALSE_POSITIVE_RATE,
    }


def _area(x: NDArray[np.float64], y: NDArray[np.float64], limit: float) -> float:
    """The area under a curve up to ``limit``, which lies between the first and the last ``x``.

    The curve may rise vertically. Where it does so at the limit itself, the rise has no area: the curve reaches the
    limit at its foot.
    """
    from sklearn.metrics import auc

    within = x <= limit
    x_within, y_within = x[within], y[within]
    if x_within[-1] < limit:
        x_within, y_within = np.append(x_within, limit), np.append(y_within, np.interp(limit, x, y))
    return float(auc(x_within, y_within))


def _region_weights(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """For each pixel, one over the size of its connected region."""
    from scipy.ndimage import label

    regions, _ = label(mask, structure=np.ones((3, 3)))
    sizes = np.bincount(regions.ravel())
    sizes[0] = 1
    return 1 / sizes[regions]
