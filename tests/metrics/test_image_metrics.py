import numpy as np
import pytest

from mvad.metrics.image import image_metrics


def test_image_metrics_by_hand():
    metrics = image_metrics(np.array([0, 0, 1, 1], np.int8), np.array([0.1, 0.4, 0.35, 0.8], np.float32))
    assert metrics["image_auroc"] == pytest.approx(3 / 4)  # one of four pairs is in the wrong order
    assert metrics["image_ap"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert metrics["image_f1_max"] == pytest.approx(0.8)


def test_scores_need_no_range():
    labels = np.array([0, 1, 0, 1, 1], np.int8)
    scores = np.array([1.0, 9.0, 3.0, 2.0, 1e6], np.float32)
    assert image_metrics(labels, scores) == image_metrics(labels, np.log(scores))
