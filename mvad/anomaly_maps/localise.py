"""Where the anomaly map of an image is above a threshold, with exact patch scores only where that depends on them.

A pixel of the map is a weighted mean of the scores of patches nearby (bilinear interpolation, then a Gaussian). So the
map cannot exceed a threshold where none of those patches does; and upper bounds of patch scores give upper bounds of
the map.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from mvad.anomaly_maps.geometry import SIGMA, TRUNCATE, anomaly_map
from mvad.data.image_size import ImageSize

TOLERANCE = np.float32(1e-6)  # above the rounding error of bounds, relative to them


def reach(size: ImageSize, grid: tuple[int, ...]) -> int:
    """How many patches away the score of a patch still changes the map."""
    stride = max(1, min(size.height // grid[0], size.width // grid[1]))
    return math.ceil(TRUNCATE * SIGMA / stride) + 1


def near(patches: NDArray[np.bool_], distance: int) -> NDArray[np.bool_]:
    """Patches that are at most so many rows and columns away from some: (rows, columns)."""
    from scipy.ndimage import maximum_filter

    return maximum_filter(patches, 2 * distance + 1, mode="constant") if patches.any() else patches


def needed_patches(bounds: NDArray[np.float32], size: ImageSize, threshold: float) -> NDArray[np.bool_]:
    """The patches whose exact scores decide where the map is above a threshold; ``bounds`` are upper ones."""
    return near(bounds * (1 + TOLERANCE) > threshold, 2 * reach(size, bounds.shape))


def map_peak(
    settle: Callable[[NDArray[np.bool_]], NDArray[np.float32]],
    bounds: NDArray[np.float32],
    size: ImageSize,
    ignored: NDArray[np.bool_] | None = None,
) -> float:
    """The largest value of the anomaly map of one image.

    Parameters
    ----------
    settle
        Returns patch scores, (rows, columns), that are exact where it is told that they are needed.
    bounds : (rows, columns) float32
        Upper bounds of patch scores: `Detector.bounded`.
    ignored : (height, width) bool
        The pixels of the model's input that are not looked at.
    """
    distance, bounds_map = reach(size, bounds.shape), anomaly_map(bounds, size)
    if ignored is not None:
        bounds_map[ignored] = -np.inf
    # Where the bounds are highest, the exact map has a value that the peak is at least as high as.
    first = np.zeros(bounds.shape, bool)
    row, column = np.unravel_index(bounds_map.argmax(), bounds_map.shape)
    first[_patch(row, size.height, bounds.shape[0]), _patch(column, size.width, bounds.shape[1])] = True
    lower_bound = anomaly_map(settle(near(first, distance)), size)[row, column]
    rows, columns = np.nonzero(bounds_map * (1 + TOLERANCE) >= min(lower_bound, bounds_map[row, column]))
    candidates = np.zeros(bounds.shape, bool)
    candidates[_patch(rows, size.height, bounds.shape[0]), _patch(columns, size.width, bounds.shape[1])] = True
    exact = anomaly_map(settle(near(candidates, distance)), size)
    return float(max(exact[rows, columns].max(), lower_bound))


def _patch(pixel: NDArray[np.int64] | np.int64, length: int, count: int) -> NDArray[np.int64]:
    """The row or column of the patch that a pixel lies in."""
    return np.asarray(pixel) * count // length
