"""Regions: connected parts of the map above the pixel threshold, as boxes in the image's own pixels."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter, label

from mvad.anomaly_maps import localise
from mvad.anomaly_maps.geometry import anomaly_map, map_on_image
from mvad.anomaly_maps.localise import map_peak, needed_patches, reach
from mvad.anomaly_maps.regions import find_regions
from mvad.data.image_size import ImageSize, tiled_size
from mvad.data.images.ignoring import encode_ignore, ignored_pixels

SIZE = ImageSize(resize=(64, 128), crop=(64, 128))
smoothings = pytest.mark.parametrize("smoothing", [0.0, 1.5, 4.0, 12.0])


def spots(shape=(8, 16), places=((2, 3, 5.0), (6, 12, 4.0))):
    grid = np.full(shape, 0.1, np.float32)
    for row, column, value in places:
        grid[row, column] = value
    return grid


def test_a_map_is_smoothed_as_far_as_the_size_says():
    grid = spots()
    interpolated = anomaly_map(grid, replace(SIZE, smoothing=0.0))
    assert interpolated.max() == pytest.approx(5.0, rel=0.2)
    for smoothing in (1.0, 4.0):
        expected = gaussian_filter(interpolated.astype(float), smoothing)
        np.testing.assert_allclose(anomaly_map(grid, replace(SIZE, smoothing=smoothing)), expected, rtol=1e-5)


def plain(grid, size, threshold):
    """Boxes, areas, peaks and means of the whole map's regions, in pixels of the model's input."""
    values = anomaly_map(grid, size)
    numbers, count = label(values > threshold, np.ones((3, 3)))
    found = []
    for number in range(1, count + 1):
        y, x = np.nonzero(numbers == number)
        inside = values[numbers == number]
        found.append((x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1, len(x), inside.max(), inside.mean(dtype=float)))
    return sorted(found, key=lambda one: -one[5])


def test_regions_are_those_of_the_map_largest_peak_first():
    found, area = find_regions(spots(), SIZE, 1.0, 128, 64)
    expected = plain(spots(), SIZE, 1.0)
    assert len(found) == 2
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert area == pytest.approx((anomaly_map(spots(), SIZE) > 1.0).mean())


def test_boxes_are_in_the_pixels_of_the_image():
    at_own_size, _ = find_regions(spots(), SIZE, 1.0, 128, 64)
    larger, area = find_regions(spots(), SIZE, 1.0, 1280, 320)
    for one, other in zip(at_own_size, larger, strict=True):
        assert (other.x, other.y) == (10 * one.x, 5 * one.y)
        assert (other.width, other.height) == (10 * one.width, 5 * one.height)
        assert other.area == pytest.approx(50 * one.area)
    on_image = map_on_image(anomaly_map(spots(), SIZE), SIZE, 1280, 320) > 1.0
    assert on_image.mean() == pytest.approx(area, rel=0.1)


def test_a_crop_is_taken_into_account():
    size = ImageSize.square(128, 64)
    (region,), _ = find_regions(spots((8, 8), [(0, 0, 9.0)]), size, 1.0, 256, 256)
    assert (region.x, region.y) == (64, 64)


def test_nothing_above_the_threshold_is_no_region():
    assert find_regions(spots(), SIZE, 100.0, 128, 64) == ([], 0.0)


@smoothings
@pytest.mark.parametrize("seed", range(3))
def test_parts_of_a_large_map_give_the_regions_of_the_whole(seed, smoothing, monkeypatch):
    random = np.random.default_rng(seed)
    size = replace(tiled_size(320, 480, 64, 0.125), smoothing=smoothing)
    grid = random.random((40, 60), np.float32) ** 8 * 5
    threshold = float(np.quantile(anomaly_map(grid, size), 0.9))
    whole, area = find_regions(grid, size, threshold, 480, 320)
    monkeypatch.setattr(localise, "MAX_WHOLE_PIXELS", 0)
    parts, area_of_parts = find_regions(grid, size, threshold, 480, 320)
    assert len(whole) > 5
    assert [one[:5] for one in parts] == [one[:5] for one in whole]
    np.testing.assert_allclose([one[5:] for one in parts], [one[5:] for one in whole], rtol=1e-5)
    assert area_of_parts == area


@smoothings
@pytest.mark.parametrize("seed", range(3))
def test_bounds_need_exact_scores_only_where_they_decide(seed, smoothing):
    """Regions from bounds that are exact where `needed_patches` says are those of the exact scores."""
    random = np.random.default_rng(seed)
    blocks = random.random((8, 12), np.float32) ** 20 * 5
    exact = np.kron(blocks, np.ones((5, 5), np.float32)) * random.uniform(0.7, 1, (40, 60)).astype(np.float32)
    bounds = exact * (1 + 0.3 * random.random(exact.shape, np.float32))
    size = replace(tiled_size(320, 480, 64, 0.125), smoothing=smoothing)
    needed = needed_patches(bounds, size, 1.6)
    assert 0 < needed.mean() < 1
    settled = np.where(needed, exact, bounds)
    assert find_regions(settled, size, 1.6, 480, 320) == find_regions(exact, size, 1.6, 480, 320)
    assert not needed_patches(bounds, size, 9.0).any()


def test_no_exact_score_is_needed_where_smoothing_brings_a_high_patch_below_the_threshold():
    bounds = np.ones((40, 60), np.float32)
    bounds[20, 30] = 3
    size = replace(tiled_size(320, 480, 64, 0.125), smoothing=4.0)
    assert anomaly_map(bounds, size).max() < 2.5
    assert not needed_patches(bounds, size, 2.5).any()
    assert needed_patches(bounds, size, 1.5).any()


@smoothings
@pytest.mark.parametrize("seed", range(3))
def test_the_peak_of_a_map_from_bounds_is_that_of_the_exact_map(seed, smoothing, monkeypatch):
    random = np.random.default_rng(seed)
    exact = random.random((20, 30), np.float32)
    bounds = exact * (1 + 0.2 * random.random(exact.shape, np.float32))
    size, settled = ImageSize(resize=(160, 240), crop=(160, 240), smoothing=smoothing), []

    def settle(grid, needed):
        settled.append(needed)
        return np.where(needed, exact, grid)

    for at_once in (localise.MAX_WHOLE_PIXELS, 0):
        monkeypatch.setattr(localise, "MAX_WHOLE_PIXELS", at_once)
        settled.clear()
        assert map_peak(settle, bounds, size) == pytest.approx(anomaly_map(exact, size).max(), rel=1e-6)
        assert smoothing > 4 or not np.logical_or.reduce(settled).all()  # a wide Gaussian needs all


@smoothings
def test_a_patch_changes_the_map_no_farther_than_it_reaches(smoothing):
    size = ImageSize(resize=(256, 256), crop=(256, 256), smoothing=smoothing)
    for side in (32, 16):
        grid = np.zeros((side, side), np.float32)
        before = anomaly_map(grid, size)
        grid[8, 8] = 1
        changed = np.argwhere(anomaly_map(grid, size) != before) * side // 256
        assert np.abs(changed - 8).max() <= reach(size, grid.shape)


def test_what_is_ignored_is_in_no_region_and_no_peak():
    mask = Image.new("L", (128, 64))
    mask.paste(255, (0, 0, 64, 64))
    size = replace(SIZE, ignore=encode_ignore(mask))
    assert ignored_pixels(size)[:, :64].all()
    assert not ignored_pixels(size)[:, 64:].any()
    (region,), area = find_regions(spots(), size, 1.0, 128, 64)
    (_, other), _ = find_regions(spots(), SIZE, 1.0, 128, 64)
    assert region == other
    assert area == pytest.approx(other.area / (64 * 64))
    peak = map_peak(lambda grid, needed: spots(), spots(), size)
    assert peak == pytest.approx(anomaly_map(spots(), SIZE)[:, 64:].max())
