"""Where the anomaly map of an image is above a threshold, with exact patch scores only where that depends on them.

A pixel of the map is a weighted mean of the scores of patches nearby (bilinear interpolation, then a Gaussian). So the
map cannot exceed a threshold where none of those patches does; and upper bounds of patch scores give upper bounds of
the map.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from mvad.anomaly_maps.geometry import TRUNCATE, Box, anomaly_map
from mvad.data.image_size import ImageSize
from mvad.data.images.ignoring import ignored_pixels

MAX_WHOLE_PIXELS = 1 << 20  # of a map that is computed at once
EIGHT_NEIGHBOURS = np.ones((3, 3), int)
PLACES_AT_FIRST = 16  # that are looked at for the peak of a large map
TOLERANCE = np.float32(1e-6)  # above the rounding error of bounds, relative to them


def reach(size: ImageSize, grid: tuple[int, ...]) -> int:
    """How many patches away the score of a patch still changes the map."""
    stride = max(1, min(size.height // grid[0], size.width // grid[1]))
    return math.ceil(TRUNCATE * size.smoothing / stride) + 1


def near(patches: NDArray[np.bool_], distance: int) -> NDArray[np.bool_]:
    """Patches that are at most so many rows and columns away from some: (rows, columns)."""
    from scipy.ndimage import maximum_filter

    return maximum_filter(patches, 2 * distance + 1, mode="constant") if patches.any() else patches


def needed_patches(bounds: NDArray[np.float32], size: ImageSize, threshold: float) -> NDArray[np.bool_]:
    """The patches whose exact scores decide where the map is above a threshold; ``bounds`` are upper ones."""
    above, bounds = np.zeros(bounds.shape, bool), bounds * (1 + TOLERANCE)
    for place, values in parts_above(bounds, size, threshold):
        rows, columns = np.nonzero(values * (1 + TOLERANCE) > threshold)
        rows = _patch(place.top + rows, size.height, bounds.shape[0])
        above[rows, _patch(place.left + columns, size.width, bounds.shape[1])] = True
    return near(above, reach(size, bounds.shape))


def parts_above(
    grid: NDArray[np.float32], size: ImageSize, threshold: float
) -> Iterator[tuple[Box, NDArray[np.float32]]]:
    """Parts of the map that together hold all that is above the threshold, none of which ends within a region.

    They are -inf where the image is ignored. A large map is not computed where it is low: each part is that of a box
    of patches.
    """
    ignored = ignored_pixels(size)
    for place, values in _parts(grid, size, threshold):
        if ignored is not None:
            values[ignored[place.top : place.bottom, place.left : place.right]] = -np.inf
        yield place, values


def _parts(grid: NDArray[np.float32], size: ImageSize, threshold: float) -> Iterator[tuple[Box, NDArray[np.float32]]]:
    if size.n_pixels <= MAX_WHOLE_PIXELS or not is_aligned(size, grid.shape):
        if (grid > threshold).any():
            yield Box(0, 0, size.width, size.height), anomaly_map(grid, size)
        return
    for box in _disjoint_boxes(near(grid > threshold, reach(size, grid.shape))):
        values, place = map_around(grid, size, box)
        yield place, values


def _disjoint_boxes(patches: NDArray[np.bool_]) -> list[Box]:
    """Boxes of patches that hold all that are marked; those that would touch each other are joined."""
    from scipy.ndimage import find_objects, label

    while True:
        numbers, count = label(patches, EIGHT_NEIGHBOURS)
        found = find_objects(numbers)
        patches = np.zeros(patches.shape, bool)
        for rows, columns in found:
            patches[rows, columns] = True
        if label(patches, EIGHT_NEIGHBOURS)[1] == count:
            return [Box(columns.start, rows.start, columns.stop, rows.stop) for rows, columns in found]


def map_peak(
    settle: Callable[[NDArray[np.float32], NDArray[np.bool_]], NDArray[np.float32]],
    bounds: NDArray[np.float32],
    size: ImageSize,
) -> float:
    """The largest value of the anomaly map of one image, outside of what is ignored.

    The map of the bounds bounds the map. Places are visited by falling bounds, more of them each time, until no bound
    that is left exceeds the largest exact value.

    Parameters
    ----------
    settle
        Takes patch scores and where they are needed exactly, and returns them with exact ones there: `Detector.settle`.
    bounds : (rows, columns) float32
        Upper bounds of patch scores: `Detector.bounded`.
    """
    ignored = ignored_pixels(size)
    if size.n_pixels <= MAX_WHOLE_PIXELS or not is_aligned(size, bounds.shape):
        return _peak_of_whole(settle, bounds, size, ignored)
    distance, peak, count = reach(size, bounds.shape), -np.inf, PLACES_AT_FIRST
    highest = _highest_by_patch(anomaly_map(bounds, size), ignored, bounds.shape) * (1 + TOLERANCE)
    grid, known = bounds, np.zeros(bounds.shape, bool)
    while (highest > peak).any():
        order = np.argpartition(-highest, min(count, highest.size) - 1, axis=None)[:count]
        chosen = np.zeros(bounds.shape, bool)
        chosen.flat[order] = True
        chosen &= highest > peak
        needed = near(chosen, distance) & ~known
        grid, known = settle(grid, needed), known | needed
        for row, column in np.argwhere(chosen).tolist():
            values, place = map_around(grid, size, Box(column, row, column + 1, row + 1))
            if ignored is not None:
                values = np.where(ignored[place.top : place.bottom, place.left : place.right], -np.inf, values)
            peak = max(peak, float(values.max()))
        highest[chosen] = -np.inf
        count *= 2
    return peak


def _peak_of_whole(
    settle: Callable[[NDArray[np.float32], NDArray[np.bool_]], NDArray[np.float32]],
    bounds: NDArray[np.float32],
    size: ImageSize,
    ignored: NDArray[np.bool_] | None,
) -> float:
    """The same for a small map, which is computed as a whole each time."""
    distance, bounds_map = reach(size, bounds.shape), anomaly_map(bounds, size)
    if ignored is not None:
        bounds_map[ignored] = -np.inf
    # Where the bounds are highest, the exact map has a value that the peak is at least as high as.
    first = np.zeros(bounds.shape, bool)
    row, column = np.unravel_index(bounds_map.argmax(), bounds_map.shape)
    first[_patch(row, size.height, bounds.shape[0]), _patch(column, size.width, bounds.shape[1])] = True
    lower_bound = anomaly_map(settle(bounds, near(first, distance)), size)[row, column]
    rows, columns = np.nonzero(bounds_map * (1 + TOLERANCE) >= min(lower_bound, bounds_map[row, column]))
    candidates = np.zeros(bounds.shape, bool)
    candidates[_patch(rows, size.height, bounds.shape[0]), _patch(columns, size.width, bounds.shape[1])] = True
    exact = anomaly_map(settle(bounds, near(candidates, distance)), size)
    return float(max(exact[rows, columns].max(), lower_bound))


def is_aligned(size: ImageSize, grid: tuple[int, ...]) -> bool:
    """Whether each patch has the same whole number of pixels."""
    return size.height % grid[0] == size.width % grid[1] == 0


def _highest_by_patch(
    values: NDArray[np.float32], ignored: NDArray[np.bool_] | None, grid: tuple[int, ...]
) -> NDArray[np.float32]:
    """The largest value among the pixels of each patch: (rows, columns)."""
    if ignored is not None:
        values[ignored] = -np.inf
    rows, columns = grid
    return values.reshape(rows, len(values) // rows, columns, -1).max(axis=(1, 3))


def map_around(grid: NDArray[np.float32], size: ImageSize, box: Box) -> tuple[NDArray[np.float32], Box]:
    """The map in a box of patches, as of the whole image, and the box in pixels of the model's input.

    See `is_aligned`. The map is computed with the patches around the box that it depends on.
    """
    distance = reach(size, grid.shape)
    height, width = size.height // grid.shape[0], size.width // grid.shape[1]
    outer = Box(
        max(0, box.left - distance),
        max(0, box.top - distance),
        min(grid.shape[1], box.right + distance),
        min(grid.shape[0], box.bottom + distance),
    )
    sides = outer.size[1] * height, outer.size[0] * width
    part = ImageSize(resize=sides, crop=sides, smoothing=size.smoothing)
    values = anomaly_map(grid[outer.top : outer.bottom, outer.left : outer.right], part)
    top, left = (box.top - outer.top) * height, (box.left - outer.left) * width
    place = Box(box.left * width, box.top * height, box.right * width, box.bottom * height)
    return values[top : top + place.size[1], left : left + place.size[0]], place


def _patch(pixel: NDArray[np.int64] | np.int64, length: int, count: int) -> NDArray[np.int64]:
    """The row or column of the patch that a pixel lies in."""
    return np.asarray(pixel) * count // length
