"""Score an image of many windows: memory holds the features of a few of them at a time, however large the image is."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mvad.anomaly_maps.localise import needed_patches
from mvad.data.image_size import ImageSize, Window, grid_of, grid_part
from mvad.detectors import Detector
from mvad.features.extractor import FeatureExtractor, Part
from mvad.runtime.threads import Threads
from mvad.search.aggregation import largest, top_mean
from mvad.search.patch_space import grid_places

Value = TypeVar("Value", bound=np.generic)
Group = Sequence[Mapping[str, Part]]  # what each window of a group answers for, by kind of features
Place = tuple[slice, slice]  # rows and columns of the grid of an image's patches


_grid_places = functools.lru_cache(maxsize=4)(grid_places)  # images of a category have one grid
FLOATS_PER_GROUP = 1 << 20  # of features of some windows, which are searched together: so banks stay in cache


class GroupScores(NamedTuple):
    """Scores of the patches that the windows of one group answer for."""

    places: list[Place]  # of each window
    scores: NDArray[np.float32]  # (patches,), window by window: exact, or upper bounds
    image_score: float  # of an image of which these were all patches; -inf if another group's score is higher
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
        groups = [group for outcome in outcomes for group in outcome[number]]
        grid = np.empty(grid_of(extract.size, groups[0].stride), np.float32)
        for group in groups:
            _put(grid, group.places, group.scores)
        count = detector.top_count(grid.size)
        score = _score_of_farthest(groups) if count is None else float(top_mean(grid, count))
        if thresholds[number] > -math.inf:
            needed = needed_patches(grid, extract.size, thresholds[number])
            if needed.any():
                grid = settle_windows(image, extract, detector, grid, needed, threads)
        scores[number] = ImageScore(score, grid)
    return scores


def _score_of_farthest(groups: Sequence[GroupScores]) -> float:
    scored = (group for group in groups if group.image_score > -math.inf)
    return max(scored, key=lambda group: group.scores.max()).image_score


def _groups(parts: Iterator[Mapping[str, Part]], at_least: int) -> Iterator[Group]:
    """Group what windows answer for: so many windows or more, of `FLOATS_PER_GROUP` features at least."""
    group: list[Mapping[str, Part]] = []
    floats = 0
    for window in parts:
        group.append(window)
        floats += max(part.features.numel() for part in window.values())
        if len(group) >= at_least and floats >= FLOATS_PER_GROUP:
            yield group
            group, floats = [], 0
    if group:
        yield group


def _join(group: Group, detector: Detector, size: ImageSize) -> tuple[Tensor, list[Place]]:
    """The patches that the windows of a group answer for, (patches, 1, channels), and where they are."""
    parts = [parts[detector.feature] for parts in group]
    features, places = torch.cat([part.features.flatten(0, 1) for part in parts]), [part[:2] for part in parts]
    if detector.needs_places:
        of_image = _grid_places(*grid_of(size, parts[0].stride))
        features = detector.placed(features, torch.cat([of_image[place].flatten(0, 1) for place in places]))
    return features[:, None], places


def _take(grid: NDArray[Value], places: Sequence[Place]) -> NDArray[Value]:
    """Values at some places of a grid, one after the other: (patches, 1)."""
    return np.concatenate([grid[place].ravel() for place in places])[:, None]


def _put(grid: NDArray[np.float32], places: Sequence[Place], values: NDArray[np.float32]) -> None:
    """Put values, in the order of `_take`, into a grid."""
    values, start = values.ravel(), 0
    for place in places:
        part = grid[place]
        part[...] = values[start : start + part.size].reshape(part.shape)
        start += part.size


def sample_windows(
    image: NDArray[np.uint8],
    extract: FeatureExtractor,
    detectors: Mapping[str, Detector],
    needed: NDArray[np.bool_],
    threads: Threads,
) -> dict[str, NDArray[np.float32]]:
    """Exact scores of some patches, (n,), of a (height, width, 3) image by detectors, by name.

    ``needed`` is (rows, columns). Only windows that answer for one of these patches go through the network.
    """
    grids = {name: np.zeros(needed.shape, np.float32) for name in detectors}

    def score(group: Group) -> None:
        for name, detector in detectors.items():
            features, places = _join(group, detector, extract.size)
            scores, wanted = _take(grids[name], places), _take(needed, places)
            scores[wanted] = detector.patch_scores(features, wanted)
            _put(grids[name], places, scores)

    _visit(image, extract, needed, threads, score)
    return {name: grid[needed] for name, grid in grids.items()}


def _bounds(
    image: NDArray[np.uint8],
    extract: FeatureExtractor,
    detectors: Mapping[int, Detector],
    thresholds: Mapping[int, float],
    windows: Sequence[Window],
) -> dict[int, list[GroupScores]]:
    """Scores of some windows, group by group, by number of the detector.

    The patch scores that decide the score of these windows together are exact: a bound is left only where it is below
    all of those that decide so far.
    """
    scores: dict[int, list[GroupScores]] = {number: [] for number in detectors}
    deciding = {number: np.empty(0, np.float32) for number in detectors}
    for group in _groups(extract.parts(image, windows), extract.chunk):
        for number, detector in detectors.items():
            features, places = _join(group, detector, extract.size)
            stride = group[0][detector.feature].stride
            n_patches = math.prod(grid_of(extract.size, stride))
            count, known = detector.top_count(n_patches) or 1, deciding[number]
            at_least = float(known.min()) if len(known) == count else -math.inf
            threshold, patches = thresholds[number], features[None]
            if threshold == -math.inf:
                found = detector.score(patches)
            else:
                found = detector.bounded(patches, at_least, n_patches, close_from=threshold)
            assert found.grid is not None  # of methods that use windows
            scores[number].append(GroupScores(places, found.grid.ravel(), float(found.image[0]), stride))
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
    grid = bounds.copy()

    def settle(group: Group) -> None:
        features, places = _join(group, detector, extract.size)
        _put(grid, places, detector.settle(features, _take(grid, places), _take(needed, places)))

    _visit(image, extract, needed, threads, settle)
    return grid


def _visit(
    image: NDArray[np.uint8],
    extract: FeatureExtractor,
    needed: NDArray[np.bool_],
    threads: Threads,
    work: Callable[[Group], None],
) -> None:
    """Do the work on each chunk of the windows that answer for a patch that is needed, (rows, columns)."""
    stride = extract.size.height // len(needed)
    windows = [window for window in extract.size.windows if needed[grid_part(window, stride)].any()]

    def visit(share: Sequence[Window]) -> None:
        for group in _groups(extract.parts(image, share), extract.chunk):
            work(group)

    threads.map(visit, threads.shares(windows, extract.chunk))
