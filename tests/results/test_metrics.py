import numpy as np
import pytest

from helpers import reference
from mvad.anomaly_maps.geometry import anomaly_map
from mvad.data.image_size import ImageSize
from mvad.results.metrics import image_metrics, pixel_metrics


def test_image_metrics_by_hand():
    metrics = image_metrics(np.array([0, 0, 1, 1], np.int8), np.array([0.1, 0.4, 0.35, 0.8], np.float32))
    assert metrics["image_auroc"] == pytest.approx(3 / 4)  # one of four pairs is in the wrong order
    assert metrics["image_ap"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert metrics["image_f1_max"] == pytest.approx(0.8)


def test_scores_need_no_range():
    labels = np.array([0, 1, 0, 1, 1], np.int8)
    scores = np.array([1.0, 9.0, 3.0, 2.0, 1e6], np.float32)
    assert image_metrics(labels, scores) == image_metrics(labels, np.log(scores))


@pytest.mark.parametrize("levels", [2, 5, 10, 1000])
@pytest.mark.parametrize("seed", range(6))
def test_pixel_metrics_are_those_of_the_plain_reference(seed, levels):
    random = np.random.default_rng([seed, levels])
    masks = np.zeros((3, 12, 12), bool)
    masks[0, 2:5, 2:5] = masks[1, 1, 1] = masks[1, 6:9, 0:7] = masks[2, 11, 11] = True
    maps = ((random.random(masks.shape) + 0.5 * masks) * levels).round().astype(np.float32)
    metrics = pixel_metrics(masks, maps)
    assert metrics["pixel_aupro"] == pytest.approx(reference.aupro(masks, maps), abs=1e-9)
    below = maps[masks][:, None] > maps[~masks][None]
    ties = maps[masks][:, None] == maps[~masks][None]
    assert metrics["pixel_auroc"] == pytest.approx(below.mean() + ties.mean() / 2, abs=1e-6)


@pytest.mark.parametrize(
    ("good", "expected"),
    [
        # Of ten good pixels three score 3. The defect's two pixels score 4 and `good` says where the other one lies.
        (3.0, 0.5 + 0.5 / 2),  # tied with them: a slope up to the limit
        (2.5, 0.5),  # just below them: a vertical rise at exactly the limit
        (3.5, 1.0),  # just above them: the rise comes before the first false positive
        (2.0, 0.5),  # tied with good pixels beyond the limit
    ],
)
def test_aupro_where_the_curve_jumps_at_the_limit(good, expected):
    masks = np.zeros((1, 1, 12), bool)
    masks[0, 0, :2] = True
    maps = np.array([[[4, good, 3, 3, 3, 2, 2, 1, 1, 1, 0, 0]]], np.float32)
    assert pixel_metrics(masks, maps)["pixel_aupro"] == pytest.approx(expected, abs=1e-9)
    assert reference.aupro(masks, maps) == pytest.approx(expected, abs=1e-9)


def test_a_small_region_counts_as_much_as_a_large_one():
    masks = np.zeros((1, 32, 32), bool)
    masks[0, :16, :16] = masks[0, 30, 30] = True
    maps = np.zeros((1, 32, 32), np.float32)
    maps[0, :16, :16] = 1
    metrics = pixel_metrics(masks, maps)
    assert metrics["pixel_auroc"] > 0.99
    # The large region is detected at once, the small one only as fast as everything else.
    assert metrics["pixel_aupro"] == pytest.approx(0.5 + 0.5 * 0.15, abs=0.01)


def test_maps_are_upsampled_and_smoothed():
    grid = np.zeros((8, 8), np.float32)
    grid[2, 5] = 1
    heat = anomaly_map(grid, ImageSize.square(64))
    assert heat.shape == (64, 64)
    peak = np.unravel_index(heat.argmax(), heat.shape)
    assert abs(peak[0] - 19.5) <= 1
    assert abs(peak[1] - 43.5) <= 1
    assert heat.sum() == pytest.approx(64, rel=0.01)  # one patch is 8 x 8 pixels
    np.testing.assert_allclose(anomaly_map(np.full((4, 4), 3.0, np.float32), ImageSize.square(32)), 3, rtol=1e-5)
