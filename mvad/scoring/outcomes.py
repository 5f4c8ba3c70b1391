"""What a model makes of images: scores, and patch scores that are exact where they are kept or decide on a region."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mvad.anomaly_maps.localise import needed_patches
from mvad.anomaly_maps.regions import MapRule, Region, find_regions
from mvad.detectors import Detector
from mvad.detectors.levels import Levels
from mvad.features.extractor import FeatureExtractor
from mvad.runtime.threads import Threads
from mvad.scoring.jobs import SCORING_FAILED
from mvad.scoring.windows import score_windows, settle_windows


class Outcome(NamedTuple):
    """What became of an image: an error, or a score; and what its map shows, where that is asked for and known."""

    error: str
    score: np.float32 | None = None
    patch_scores: NDArray[np.float32] | None = None  # (rows, columns)
    regions: list[Region] | None = None
    anomalous_area: float | None = None


def score_whole(
    rule: MapRule, detector: Detector, features: Tensor, widths: NDArray[np.int32], heights: NDArray[np.int32]
) -> list[Outcome]:
    """Score features of images that went through the network at once; (n,) are the sides of the upright images."""
    scores = (
        detector.score(features) if rule.keeps_all else detector.bounded(features, close_from=rule.region_threshold)
    )
    outcomes = []
    for number, (score, width, height) in enumerate(zip(scores.image, widths, heights, strict=True)):
        grid = None if scores.grid is None else scores.grid[number]
        keeps_map = float(score) > rule.map_threshold
        if grid is not None and not rule.keeps_all:
            needed = needed_patches(grid, rule.size, rule.region_threshold)
            needed |= keeps_map
            grid = detector.settle(features[number], grid, needed)
        outcomes.append(_outcome(rule, score, grid, keeps_map, width, height))
    return outcomes


def score_large(
    pixels: NDArray[np.uint8],
    extract: FeatureExtractor,
    rules: Mapping[int, MapRule],
    detectors: Mapping[int, Detector],
    width: int,
    height: int,
    threads: Threads,
) -> dict[int, Outcome]:
    """Score one (height, width, 3) image window by window with several detectors, by number.

    ``width`` and ``height`` are those of the upright image before it was resized.
    """
    tiles = {number: one.tiles if isinstance(one, Levels) else one for number, one in detectors.items()}
    bounds = {number: -math.inf if rule.keeps_all else rule.region_threshold for number, rule in rules.items()}
    found = score_windows(pixels, extract, tiles, bounds, threads)
    outcomes = {}
    for number, (score, grid) in found.items():
        detector, whole_grid = detectors[number], None
        if isinstance(detector, Levels):
            whole = detector.whole.score(extract.of_whole(pixels)[detector.feature])
            assert whole.grid is not None
            (score,) = detector.combined(np.array([score], np.float32), whole.image).tolist()
            whole_grid = detector.whole_grid(whole.grid[0])
        keeps_map = score > rules[number].map_threshold
        if keeps_map and bounds[number] > -math.inf:
            grid = settle_windows(pixels, extract, tiles[number], grid, np.ones(grid.shape, bool), threads)
        outcomes[number] = _outcome(rules[number], np.float32(score), grid, keeps_map, width, height, whole_grid)
    return outcomes


def _outcome(
    rule: MapRule,
    score: np.float32,
    grid: NDArray[np.float32] | None,
    keeps_map: bool,
    width: int,
    height: int,
    whole_grid: NDArray[np.float32] | None = None,
) -> Outcome:
    """``whole_grid`` are patch scores of the image as a whole, in the unit of ``grid``; its regions count, too."""
    if not np.isfinite(score):
        return Outcome(f"{SCORING_FAILED}: the model gives this image no finite score")
    regions, area = None, None
    if grid is not None and rule.pixel_threshold is not None:
        regions, area = find_regions(grid, rule.size, rule.pixel_threshold, int(width), int(height))
        if whole_grid is not None and rule.size.whole_level is not None:
            others, other_area = find_regions(
                whole_grid, rule.size.whole_level, rule.pixel_threshold, int(width), int(height)
            )
            regions = sorted([*regions, *others], key=lambda one: (-one.peak, one.y, one.x))
            area = max(area, other_area)
        regions = regions[: rule.max_regions]
    return Outcome("", score, grid if keeps_map else None, regions, area)
