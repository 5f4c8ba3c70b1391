"""Metrics of image scores against labels."""

import numpy as np
from numpy.typing import NDArray


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
