"""Histograms of images, and metrics of runs on common resamples, without Ray: results are handmade."""

import numpy as np
import pytest
from PIL import Image

from helpers.synthetic import SIZE, write_category
from mvad.comparison.intervals import MIN_BINS, image_histograms, of_images
from mvad.metrics.bootstrap import resampled_pixel_metrics
from mvad.results.summary import evaluate
from mvad.storage import to_uri

N_GOOD, N_DEFECTIVE = 6, 5


@pytest.fixture
def results_of(tmp_path):
    """A function from what is added to all patch scores to the results of a category ``cap``, and its summary."""

    def write(offset, outlier=None):
        random, rows = np.random.default_rng(1), []
        for number in range(N_GOOD + N_DEFECTIVE):
            grid = offset + random.gamma(4, 0.25, (8, 8))
            row = {"image_id": f"cap/{number:02}.png", "uri": f"file:///{number}.png", "label": int(number >= N_GOOD)}
            if row["label"]:
                mask = np.zeros((96, 96), np.uint8)
                y, x = random.integers(0, 5, 2)
                mask[12 * y : 12 * y + 30, 12 * x : 12 * x + 24] = 255
                grid[y : y + 3, x : x + 2] += random.gamma(3, 0.4)
                Image.fromarray(mask).save(tmp_path / f"{number}.png")
                row["mask_uri"] = to_uri(tmp_path / f"{number}.png")
            if outlier is not None and number == 0:
                grid[0, 0] = outlier
            rows.append({**row, "grid": grid, "score": float(grid.max())})
        facts = {"cap": write_category(tmp_path / "out", "cap", rows)}
        return to_uri(tmp_path / "out"), evaluate(to_uri(tmp_path / "out"), facts)[0][0]

    return write


@pytest.mark.parametrize(("offset", "outlier"), [(0, None), (10, 0.0), (0, 1e4)])
def test_histograms_give_the_metrics_of_the_summary(results_of, offset, outlier):
    """Also where values are close together and far from the lowest one, or one is far above the others."""
    out, row = results_of(offset, outlier)
    ids, histograms = image_histograms(out, "cap", SIZE)
    assert len(ids) == N_GOOD + N_DEFECTIVE
    assert histograms.good.shape == (len(ids), 512)
    assert (histograms.good + histograms.defective).sum(axis=1).tolist() == [96 * 96] * len(ids)
    for metric, values in resampled_pixel_metrics(histograms, np.ones((1, len(ids)))).items():
        assert values[0] == pytest.approx(row[metric], abs=1e-3), metric


def test_many_images_have_fewer_bins_and_too_many_none(results_of, monkeypatch):
    out, row = results_of(0)
    monkeypatch.setattr("mvad.comparison.intervals.MAX_NUMBERS", 11 * MIN_BINS)
    ids, histograms = image_histograms(out, "cap", SIZE)
    assert histograms.good.shape == (11, MIN_BINS)
    for metric, values in resampled_pixel_metrics(histograms, np.ones((1, len(ids)))).items():
        assert values[0] == pytest.approx(row[metric], abs=0.01)
    monkeypatch.setattr("mvad.comparison.intervals.MAX_NUMBERS", 11 * MIN_BINS - 1)
    assert image_histograms(out, "cap", SIZE) is None


def test_edges_of_bins_that_some_images_choose_serve_all(results_of, monkeypatch):
    out, row = results_of(0)
    monkeypatch.setattr("mvad.comparison.intervals.MAX_EDGE_IMAGES", 2)
    ids, histograms = image_histograms(out, "cap", SIZE)
    assert (histograms.good + histograms.defective).sum() == 11 * 96 * 96
    for metric, values in resampled_pixel_metrics(histograms, np.ones((1, len(ids)))).items():
        assert values[0] == pytest.approx(row[metric], abs=0.01)


def test_images_are_taken_in_another_order_and_those_without_a_map_are_empty(results_of):
    found = image_histograms(results_of(0)[0], "cap", SIZE)
    ids, histograms = found
    some = of_images(found, [ids[2], "cap/none.png", ids[0]])
    assert np.array_equal(some.good[[0, 2]], histograms.good[[2, 0]])
    assert not some.good[1].any()
    assert of_images(None, ids) is None


def test_without_masks_there_are_no_histograms(tmp_path):
    rows = [
        {"image_id": f"{n}.png", "uri": f"file:///{n}.png", "label": 0, "score": 1.0, "grid": np.ones((8, 8))}
        for n in range(3)
    ]
    write_category(tmp_path, "cap", rows)
    assert image_histograms(to_uri(tmp_path), "cap", SIZE) is None
