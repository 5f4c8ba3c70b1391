"""Metrics of scores against labels and of maps against masks, by scikit-learn."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_auc_score

FALSE_POSITIVE_LIMIT = 0.3  # of AUPRO: Bergmann et al., MVTec AD, IJCV 2021, section 5.3


def image_metrics(labels: NDArray[np.int8], scores: NDArray[np.float32]) -> dict[str, float]:
    """AUROC, average precision and the best F1 over all thresholds.

    Parameters
    ----------
    labels : (n,) 0 good, 1 defective; both must be there
    scores : (n,) higher is more abnormal
    """
    precision, recall, _ = precision_recall_curve(labels, scores)
    both = precision + recall
    f1 = np.divide(2 * precision * recall, both, out=np.zeros_like(both), where=both > 0)
    return {
        "image_auroc": float(roc_auc_score(labels, scores)),
        "image_ap": float(average_precision_score(labels, scores)),
        "image_f1_max": float(f1.max()),
    }


def pixel_metrics(masks: NDArray[np.bool_], maps: NDArray[np.float32]) -> dict[str, float]:
    """Pixel AUROC, and AUPRO up to a false-positive rate of 30 %.

    The per-region overlap is the share of a connected defect region that is found, averaged over regions; that is the
    true-positive rate of pixels weighted by one over the size of their region (Bergmann et al., IJCV 2021, section
    5.3). Only the scores of good pixels are sorted, of which there are millions; scikit-learn's curves, which sort
    places, take ten times as long for the same numbers.

    Parameters
    ----------
    masks : (n, height, width) bool, True where defective; some pixels of both kinds must be there
    maps : (n, height, width) float32
    """
    good = np.sort(maps[~masks])
    scores = maps[masks]
    weights = np.concatenate([_region_weights(mask)[mask] for mask in masks])
    order = np.argsort(-scores)
    scores, weights = scores[order], weights[order]
    # Good pixels above and at each defective one: ties count half for the AUROC (Mann, Whitney).
    at_least = len(good) - np.searchsorted(good, scores, side="left")
    above = len(good) - np.searchsorted(good, scores, side="right")
    auroc = 1 - (at_least.mean() + above.mean()) / 2 / len(good)
    # Overlap against false-positive rate: level up to the score of a defective pixel, and up from there to where all
    # pixels of that score are counted, good and defective.
    last = np.append(scores[1:] != scores[:-1], True)
    reached = np.concatenate([[0.0], (weights.cumsum() / weights.sum())[last]])
    false_rate = np.concatenate([[0.0], np.stack([above[last], at_least[last]], axis=1).ravel() / len(good), [1.0]])
    overlap = np.concatenate([[0.0], np.stack([reached[:-1], reached[1:]], axis=1).ravel(), [1.0]])
    within = false_rate < FALSE_POSITIVE_LIMIT
    edge = np.interp(FALSE_POSITIVE_LIMIT, false_rate, overlap)
    area = auc(np.append(false_rate[within], FALSE_POSITIVE_LIMIT), np.append(overlap[within], edge))
    return {"pixel_auroc": float(auroc), "pixel_aupro": float(area / FALSE_POSITIVE_LIMIT)}


def _region_weights(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """For every pixel, one over the size of its connected region."""
    regions, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    sizes = np.bincount(regions.ravel())
    sizes[0] = 1
    return 1 / sizes[regions]
