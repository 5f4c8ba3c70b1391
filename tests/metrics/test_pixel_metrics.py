"""Pixel metrics from histograms, against plain NumPy and scikit-learn on all pixels at once."""

import math

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from helpers import pixel_reference
from mvad.metrics import pixel
from mvad.metrics.pixel import PixelMetrics

SHAPES = [(40, 56), (24, 24), (56, 31), (9, 70), (30, 30)]


def measure(masks, maps, *, seen=None, threshold=None, **options):
    """The metrics of images; a mask that marks nothing is that of a good image."""
    low, high = min(values.min() for values in maps), max(values.max() for values in maps)
    metrics = PixelMetrics(float(low), float(high), threshold, **options)
    for number, (mask, values) in enumerate(zip(masks, maps, strict=True)):
        metrics.add(mask if mask.any() else None, values, None if seen is None else seen[number])
    return metrics.result()


def images_of(seed, shapes=SHAPES, n_good=2):
    """Smooth random maps of several sizes, higher in defects, some of which touch the border or each other's corner."""
    random = np.random.default_rng(seed)
    masks, maps = [], []
    for number, shape in enumerate(shapes):
        mask = np.zeros(shape, bool)
        if number >= n_good:
            y, x = random.integers(0, shape[0] - 4), random.integers(0, shape[1] - 4)
            mask[y : y + 4, x : x + 3] = mask[y + 4 :, x + 3 : x + 9] = mask[0, 0] = mask[-2:, -5:] = True
        noise = gaussian_filter(random.random(shape), 2) + 0.05 * random.random(shape)
        masks.append(mask)
        maps.append((noise + 0.1 * gaussian_filter(mask.astype(float), 1.5)).astype(np.float32))
    return masks, maps


def exact(masks, maps, threshold):
    marked, values = pixel_reference.pixels(masks, maps)
    precision, recall, _ = precision_recall_curve(marked, values)
    return {
        "pixel_auroc": roc_auc_score(marked, values),
        "pixel_ap": average_precision_score(marked, values),
        "pixel_f1_max": (2 * precision * recall / np.maximum(precision + recall, 1e-9)).max(),
        "pixel_aupro": pixel_reference.aupro(masks, maps),
        "pixel_aupro_5": pixel_reference.aupro(masks, maps, 0.05),
        "pixel_aupimo": pixel_reference.aupimo(masks, maps, *pixel.AUPIMO_LIMITS),
        "defects_touched": pixel_reference.touched(masks, maps, threshold),
    }


@pytest.mark.parametrize("seed", range(6))
def test_all_metrics_are_the_exact_ones(seed, monkeypatch):
    monkeypatch.setattr(pixel, "AUPIMO_LIMITS", (1e-3, 1e-1))  # rates that these few pixels have
    monkeypatch.setattr(pixel, "CHUNK_PIXELS", 200)
    masks, maps = images_of(seed)
    threshold = float(np.quantile(maps[0], 0.999))
    expected = exact(masks, maps, threshold)
    assert measure(masks, maps, threshold=threshold) == pytest.approx(expected, abs=1e-4)
    assert 0 < expected["defects_touched"] < 1
    assert 0 < expected["pixel_aupimo"] < 1


@pytest.mark.parametrize("levels", [2, 5, 10, 1000])
@pytest.mark.parametrize("seed", range(4))
def test_equal_values_are_ties(seed, levels, monkeypatch):
    monkeypatch.setattr(pixel, "AUPIMO_LIMITS", (1e-2, 3e-1))
    masks, maps = images_of(seed)
    maps = [(values * levels).round() for values in maps]
    assert measure(masks, maps, threshold=levels * 0.6) == pytest.approx(exact(masks, maps, levels * 0.6), abs=1e-9)


@pytest.mark.parametrize("bits", [1, 3, 6])
def test_an_area_from_coarse_bins_is_no_farther_from_the_exact_one_than_the_boxes_of_its_bins(bits):
    masks, maps = images_of(0)
    metrics = measure(masks, maps, precision_bits=bits)
    marked, values = pixel_reference.pixels(masks, maps)
    _, exponents = np.frexp(values - values.min())
    bins = np.floor(np.ldexp(values - values.min(), bits + 1 - exponents)) + exponents * 2.0**bits
    shares = [np.array([(bins[group] == number).mean() for number in np.unique(bins)]) for group in (marked, ~marked)]
    bound = (shares[0] * shares[1]).sum() / 2
    assert 0 < abs(metrics["pixel_auroc"] - pixel_reference.auroc(masks, maps)) <= bound
    assert metrics["pixel_f1_max"] <= exact(masks, maps, 0)["pixel_f1_max"]
    assert bound <= {1: 0.2, 3: 0.05, 6: 0.01}[bits]


def test_a_few_enormous_values_leave_the_others_apart():
    masks, maps = images_of(1)
    before = measure(masks, maps)
    maps[-1][-1, -1] = 1e5
    assert masks[-1][-1, -1]
    expected = exact(masks, maps, 0)
    metrics = measure(masks, maps)
    assert metrics["pixel_auroc"] == pytest.approx(expected["pixel_auroc"], abs=1e-5)
    assert metrics["pixel_ap"] == pytest.approx(expected["pixel_ap"], abs=1e-4)
    assert metrics["pixel_auroc"] == pytest.approx(before["pixel_auroc"], abs=0.01)


def test_aupimo_at_the_rates_of_the_paper():
    """A million good pixels: rates from 1e-5 to 1e-4 are those of their ten to hundred highest ones."""
    random = np.random.default_rng(3)
    shapes = [(700, 800), (400, 1100), (60, 80), (120, 50)]
    maps = [random.gamma(4, 1, shape).astype(np.float32) for shape in shapes]
    masks = [np.zeros(shape, bool) for shape in shapes]
    for mask, values, height in zip(masks[2:], maps[2:], (12, 5), strict=True):
        mask[:height, 3:33] = True
        values[mask] = random.gamma(16, 1, np.count_nonzero(mask))
    expected = pixel_reference.aupimo(masks, maps)
    assert 0.2 < expected < 0.8
    assert measure(masks, maps)["pixel_aupimo"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("defect", "expected"),
    [
        ([9, 9], 1.0),  # above all good pixels
        ([9, 0], 0.5),  # one of two above them: also at rates that ten pixels do not have
        ([3, 3], 0.0),  # equal to the highest good pixel, which is a rate of 10 %
        ([0, 0], 0.0),
    ],
)
def test_aupimo_below_the_smallest_rate_of_good_images_is_that_without_false_positives(defect, expected):
    masks = [np.zeros((1, 10), bool), np.zeros((2, 3), bool)]
    masks[1][0, :2] = True
    maps = [np.array([[3, 2, 2, 1, 1, 1, 0, 0, 0, 0]], np.float32), np.zeros((2, 3), np.float32)]
    maps[1][0, :2] = defect
    assert measure(masks, maps)["pixel_aupimo"] == pytest.approx(expected)


def test_aupimo_weighs_images_alike_whatever_their_size_and_number_of_regions(monkeypatch):
    monkeypatch.setattr(pixel, "AUPIMO_LIMITS", (0.01, 0.1))
    good = np.zeros((10, 10), np.float32)
    small, large = np.zeros((5, 5), bool), np.zeros((50, 50), bool)
    small[0, 0] = large[:30] = large[40:] = True
    maps = [good, small * np.float32(2), large * np.float32(-1)]
    assert measure([good > 0, small, large], maps)["pixel_aupimo"] == pytest.approx(0.5)


def test_without_good_images_there_is_no_aupimo():
    masks, maps = images_of(2, n_good=0)
    metrics = measure(masks, maps)
    assert "pixel_aupimo" not in metrics
    assert metrics["pixel_auroc"] == pytest.approx(pixel_reference.auroc(masks, maps), abs=1e-5)


def test_an_empty_mask_makes_no_good_image():
    metrics = PixelMetrics(0, 1)
    metrics.add(np.eye(4, dtype=bool), np.eye(4, dtype=np.float32))
    metrics.add(np.zeros((4, 4), bool), np.zeros((4, 4), np.float32))
    assert metrics.result()["pixel_auroc"] == 1
    assert "pixel_aupimo" not in metrics.result()


def test_pixels_that_are_not_seen_count_nowhere(monkeypatch):
    monkeypatch.setattr(pixel, "AUPIMO_LIMITS", (1e-3, 1e-1))
    masks, maps = images_of(4)
    seen = [np.zeros(mask.shape, bool) for mask in masks]
    for part in seen:
        part[3:-2, 5:-4] = True
    cut = [[image[3:-2, 5:-4] for image in images] for images in (masks, maps)]
    whole = [values.copy() for values in maps]
    for values, part in zip(whole, seen, strict=True):
        values[~part] = 99
    threshold = float(np.median(maps[0]))
    expected = measure(*cut, threshold=threshold)
    assert measure(masks, whole, seen=seen, threshold=threshold) == pytest.approx(expected, abs=1e-4)
    metrics = PixelMetrics(0, 1)
    metrics.add(masks[-1], maps[-1], np.zeros(masks[-1].shape, bool))
    assert metrics.result() == {}


def test_a_region_that_is_seen_in_two_parts_is_one_region():
    mask, seen = np.ones((2, 1, 5), bool)
    seen[0, 2] = False
    metrics = PixelMetrics(0, 1, threshold=0.5)
    metrics.add(mask, np.array([[0, 0, 0, 0, 1]], np.float32), seen)
    metrics.add(None, np.zeros((1, 4), np.float32))
    assert metrics.result()["defects_touched"] == 1
    assert metrics.result()["pixel_aupro"] == pytest.approx(0.25 + 0.75 * 0.15, abs=1e-9)


def test_the_order_of_images_does_not_matter():
    masks, maps = images_of(5)
    assert measure(masks[::-1], maps[::-1], threshold=0.5) == pytest.approx(measure(masks, maps, threshold=0.5))


def test_constant_maps_say_nothing():
    masks, _ = images_of(0)
    maps = [np.full(mask.shape, 7, np.float32) for mask in masks]
    metrics = measure(masks, maps, threshold=7)
    share = pixel_reference.pixels(masks, maps)[0].mean()
    assert metrics["pixel_auroc"] == pytest.approx(0.5)
    assert metrics["pixel_ap"] == pytest.approx(share)
    assert metrics["pixel_aupro"] == pytest.approx(0.15)
    assert (metrics["pixel_aupimo"], metrics["defects_touched"]) == (0, 1)


def test_values_outside_of_the_range_are_taken_for_its_ends():
    mask = np.array([[True, False, False, True]])
    metrics = PixelMetrics(0, 1)
    metrics.add(mask, np.array([[5, 1, -3, 0]], np.float32))
    clipped = PixelMetrics(0, 1)
    clipped.add(mask, np.array([[1, 1, 0, 0]], np.float32))
    assert metrics.result() == clipped.result()
    assert metrics.result()["pixel_auroc"] == 0.5


@pytest.mark.parametrize("ends", [(1, 0), (math.nan, 1), (0, math.inf)])
def test_a_range_must_be_one(ends):
    with pytest.raises(ValueError, match="cannot range from"):
        PixelMetrics(*ends)


@pytest.mark.parametrize("mask", [np.zeros((3, 3), bool), np.ones((3, 3), bool)])
def test_without_good_or_without_defective_pixels_there_are_no_metrics(mask):
    metrics = PixelMetrics(0, 1)
    metrics.add(mask, np.eye(3, dtype=np.float32))
    assert metrics.result() == {}


def test_nothing_is_kept_of_an_image_but_counts():
    def bytes_held():
        return sum(np.asarray(value).nbytes for value in vars(metrics).values())

    metrics = PixelMetrics(0, 1, threshold=0.5)
    before = bytes_held()
    random = np.random.default_rng(0)
    for side in (10, 300, 2000):
        metrics.add(random.random((side, side)) > 0.9, random.random((side, side), np.float32))
        metrics.add(None, random.random((side, side), np.float32))
    assert bytes_held() == before == pytest.approx(40 << 20, rel=1e-4)
    assert all(isinstance(value, np.ndarray | np.number | int | float) for value in vars(metrics).values())


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
    masks = [np.zeros((1, 12), bool)]
    masks[0][0, :2] = True
    maps = [np.array([[4, good, 3, 3, 3, 2, 2, 1, 1, 1, 0, 0]], np.float32)]
    assert measure(masks, maps)["pixel_aupro"] == pytest.approx(expected, abs=1e-9)
    assert pixel_reference.aupro(masks, maps) == pytest.approx(expected, abs=1e-9)


def test_a_small_region_counts_as_much_as_a_large_one():
    mask = np.zeros((32, 32), bool)
    mask[:16, :16] = mask[30, 30] = True
    values = np.zeros((32, 32), np.float32)
    values[:16, :16] = 1
    metrics = measure([mask], [values])
    assert metrics["pixel_auroc"] > 0.99
    # The large region is detected at once, the small one only as fast as everything else.
    assert metrics["pixel_aupro"] == pytest.approx(0.5 + 0.5 * 0.15, abs=0.01)
