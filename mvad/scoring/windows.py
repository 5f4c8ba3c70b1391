"""Score an image of many windows: memory holds the features of a few of them at a time, however large the image is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mvad.anomaly_maps.localise import needed_patches
from mvad.data.image_size import Window
from mvad.detectors import Detector
from mvad.features.extractor import FeatureExtractor, grid_of, grid_part
from mvad.runtime.threads import Threads
from mvad.search.aggregation import largest, top_mean


class WindowScores(NamedTuple):
    """Scores of the patches that one window answers for."""

    rows: slice  # in the grid of the image's patches
    columns: slice
    grid: NDArray[np.float32]  # exact, or upper bounds
    image_score: float  # of an image of which these were all patches; -inf if another window's score is higher
    stride: int


class ImageScore(NamedTuple):
    """The score of one image, and the scores of its patches, (rows, columns)."""

    score: float
    grid: NDArray[np.float32]  # exact where they decide where the map is above the threshold, else upper bounds


def score_windows(
    image: NDArray[np.uint8],
    extract: FeatureExtractor,
    detectors: Mapping[int, Detector],
    thresholds: Mapping[int, float],
    threads: Threads,
) -> dict[int, ImageScore]:
    """Score a (height, width, 3) image with several detectors, by number.

    The score of the image is that of the window that holds its farthest patch, or the mean of the largest patch scores
    of all windows (`Detector.top_count`). ``thresholds`` are those that maps are compared with; -inf makes all patch
    scores exact. If bounds leave it open where a map is above its threshold, the windows concerned go through the
    network once more.
    """
    windows = extract.size.windows
    outcomes = threads.map(
        lambda share: _bounds(image, extract, detectors, thresholds, share), threads.shares(windows, extract.chunk)
    )
    scores = {}
    for number, detector in detectors.items():
        parts = [part for outcome in outcomes for part in outcome[number]]
        grid = np.empty(grid_of(extract.size, parts[0].stride), np.float32)
        for part in parts:
            grid[part.rows, part.columns] = part.grid
        count = detector.top_count(grid.size)
        score = _score_of_farthest(parts) if count is None else float(top_mean(grid, count))
        needed = needed_patches(grid, extract.size, thresholds[number])
        if needed.any() and thresholds[number] > -math.inf:
            grid = settle_windows(image, extract, detector, grid, needed, threads)
        scores[number] = ImageScore(score, grid)
    return scores


def _score_of_farthest(parts: Sequence[WindowScores]) -> float:
    scored = (part for part in parts if part.image_score > -math.inf)
    return max(scored, key=lambda part: part.grid.max()).image_score


def _bounds(
    image: NDArray[np.uint8],
    extract: FeatureExtractor,
    detectors: Mapping[int, Detector],
    thresholds: Mapping[int, float],
    windows: Sequence[Window],
) -> dict[int, list[WindowScores]]:
    """Scores of some windows, one after the other, by number of the detector.

    The patch scores that decide the score of these windows together are exact: a bound is left only where it is below
    all of those that decide so far.
    """
    scores: dict[int, list[WindowScores]] = {number: [] for number in detectors}
    deciding = {number: np.empty(0, np.float32) for number in detectors}
    for parts in extract.parts(image, windows):
        for number, detector in detectors.items():
            part = parts[detector.feature]
            features = part.features[None].contiguous()
            n_patches = math.prod(grid_of(extract.size, part.stride))
            count, known = detector.top_count(n_patches) or 1, deciding[number]
            at_least = float(known.min()) if len(known) == count else -math.inf
            is_exact = thresholds[number] == -math.inf
            found = detector.score(features) if is_exact else detector.bounded(features, at_least, n_patches)
            assert found.grid is not None  # of methods that use windows
            scores[number].append(
                WindowScores(part.rows, part.columns, found.grid[0], float(found.image[0]), part.stride)
            )
            deciding[number] = largest(np.concatenate([known, found.grid[found.grid >= at_least]]), count)
    return scores


def settle_windows(
    image: NDArray[np.uint8],
    extract: FeatureExtractor,
    detector: Detector,
    bounds: NDArray[np.float32],
    needed: NDArray[np.bool_],
    threads: Threads,
) -> NDArray[np.float32]:
    """Patch scores of an image that are exact where they are needed, and elsewhere the bounds: (rows, columns) each.

    Windows that answer for a patch that is needed go through the network once more.
    """
    grid, stride = bounds.copy(), extract.size.height // len(bounds)
    windows = [window for window in extract.size.windows if needed[grid_part(window, stride)].any()]

    def settle(share: Sequence[Window]) -> None:
        for parts in extract.parts(image, share):
            part = parts[detector.feature]
            place = part.rows, part.columns
            grid[place] = detector.settle(part.features.contiguous(), grid[place], needed[place])

    threads.map(settle, threads.shares(windows, extract.chunk))
    return grid
