"""The bootstrap against scikit-learn and the exact pixel metrics, on resamples written out image by image."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from mvad.metrics.bootstrap import PixelHistograms, ResampledAuroc, interval, resampled_pixel_metrics, resamples
from mvad.metrics.pixel import PixelMetrics

LABELS = np.array([0] * 23 + [1] * 17, np.int8)


def written_out(values, counts):
    return np.repeat(values, counts.astype(int), axis=0)


def test_resamples_draw_good_and_defective_images_apart():
    (counts,) = resamples(LABELS, 3, 500)
    assert (counts[:, LABELS == 0].sum(axis=1) == 23).all()
    assert (counts[:, LABELS == 1].sum(axis=1) == 17).all()
    assert counts.mean(axis=0) == pytest.approx(np.ones(40), abs=0.2)
    # Of images drawn n times from n, those drawn k times follow Binomial(n, 1/n).
    assert np.mean(counts[:, LABELS == 0] == 0) == pytest.approx((22 / 23) ** 23, abs=0.02)


def test_resamples_depend_on_the_seed_and_not_on_how_many_come_at_once():
    (expected,) = resamples(LABELS, [1, 7], 50)
    parts = list(resamples(LABELS, [1, 7], 50, numbers=40 * 7))
    assert [len(part) for part in parts] == [7] * 7 + [1]
    assert np.array_equal(np.concatenate(parts), expected)
    (other,) = resamples(LABELS, [2, 7], 50)
    assert not np.array_equal(other, expected)


@pytest.mark.parametrize("decimals", [0, 1, 6])  # with many ties, some, and none
def test_auroc_is_that_of_scikit_learn(decimals):
    random = np.random.default_rng(decimals)
    labels = random.permutation(LABELS)
    scores = (random.normal(size=40) + labels).round(decimals).astype(np.float32)
    (counts,) = resamples(labels, 5, 60)
    expected = [roc_auc_score(written_out(labels, row), written_out(scores, row)) for row in counts]
    assert ResampledAuroc(labels, scores)(counts) == pytest.approx(np.array(expected), abs=1e-12)


def images(seed, n_good=7, n_defective=6, side=64):
    """Masks (None: good) and maps."""
    random = np.random.default_rng(seed)
    for number in range(n_good + n_defective):
        values = random.gamma(4, 0.25, (side, side)).astype(np.float32)
        mask = None
        if number >= n_good:
            mask = np.zeros((side, side), bool)
            for top, left in random.integers(0, side - 20, (2, 2)):
                mask[top : top + 12, left : left + random.integers(6, 20)] = True
            values[mask] += random.gamma(3, 0.4, int(mask.sum())).astype(np.float32)
        yield mask, values


def histograms_of(items, bits):
    counted = []
    for mask, values in items:
        metrics = PixelMetrics(0.0, 8.0, precision_bits=bits)
        metrics.add(mask, values)
        counted.append(metrics.histograms())
    return PixelHistograms(*(np.array(column, np.float32) for column in zip(*counted, strict=True)))


def test_pixel_metrics_are_those_of_the_images_written_out():
    items = list(images(1))
    labels = np.array([mask is not None for mask, _ in items], np.int8)
    (counts,) = resamples(labels, 2, 12)
    found = resampled_pixel_metrics(histograms_of(items, 10), counts)
    for number, row in enumerate(counts.astype(int)):
        exact = PixelMetrics(0.0, 8.0)
        drawn = [item for item, count in zip(items, row, strict=True) for _ in range(count)]
        for mask, values in drawn:
            exact.add(mask, values)
        truth = np.concatenate([np.zeros(v.size, bool) if m is None else m.ravel() for m, v in drawn])
        values = np.concatenate([values.ravel() for _, values in drawn])
        assert found["pixel_ap"][number] == pytest.approx(average_precision_score(truth, values), abs=2e-3)
        assert found["pixel_ap"][number] == pytest.approx(exact.result()["pixel_ap"], abs=2e-3)
        assert found["pixel_aupro"][number] == pytest.approx(exact.result()["pixel_aupro"], abs=1e-4)


def test_coarse_bins_change_little():
    items = list(images(4))
    fine, coarse = (resampled_pixel_metrics(histograms_of(items, bits), np.ones((1, 13))) for bits in (12, 6))
    for name, value in fine.items():
        assert coarse[name] == pytest.approx(value, abs=2e-3)


def test_a_resample_without_defective_pixels_has_no_pixel_metrics():
    histograms = histograms_of(images(5), 6)
    counts = np.array([[1] * 7 + [0] * 6, [1] * 13], float)
    for values in resampled_pixel_metrics(histograms, counts).values():
        assert np.isnan(values).tolist() == [True, False]
        assert interval(values) == (values[1], values[1])
    assert interval(np.full(3, np.nan)) is None


def test_the_interval_is_that_of_percentiles():
    assert interval(np.random.default_rng(0).permutation(1001) / 1000) == pytest.approx((0.025, 0.975))


def test_the_interval_covers_the_true_auroc():
    """Normal scores one standard deviation apart: the AUROC is 0.760."""
    covered = []
    for seed in range(60):
        labels = np.repeat([0, 1], 60).astype(np.int8)
        scores = (np.random.default_rng(seed).normal(size=120) + labels).astype(np.float32)
        (counts,) = resamples(labels, seed, 400)
        low, high = interval(ResampledAuroc(labels, scores)(counts))
        covered.append(low <= 0.7602 <= high)
    assert np.mean(covered) == pytest.approx(0.95, abs=0.08)
