"""Regions: the connected parts of an image where its anomaly map is above the pixel threshold."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mvad.anomaly_maps.geometry import Box, on_image
from mvad.anomaly_maps.localise import EIGHT_NEIGHBOURS, parts_above
from mvad.data.image_size import ImageSize
from mvad.data.images.ignoring import ignored_pixels


class Region(NamedTuple):
    """A box in the upright image's own pixels, and what the map is in the part of it that is above the threshold."""

    x: int  # left
    y: int  # top
    width: int
    height: int
    area: int  # of the part above the threshold
    peak: float  # of the map
    mean: float


class MapRule(NamedTuple):
    """What is found in the anomaly maps of a model's images, and which maps are kept."""

    size: ImageSize
    pixel_threshold: float | None  # the value of the map above which a pixel is in a region; None: no regions
    map_threshold: float  # images that score above this keep their patch scores
    max_regions: int = 20

    @property
    def region_threshold(self) -> float:
        """The pixel threshold; infinite if there is none."""
        return math.inf if self.pixel_threshold is None else self.pixel_threshold

    @property
    def keeps_all(self) -> bool:
        """Whether every image keeps its patch scores."""
        return self.map_threshold == -math.inf


def regions_in_words(regions: Sequence[Mapping[str, Any]]) -> str:
    """How many regions there are, and where the one with the largest peak is."""
    if not regions:
        return "no region above the pixel threshold"
    first = regions[0]
    count = f"{len(regions)} regions; the strongest" if len(regions) > 1 else "1 region:"
    return f"{count} {first['width']} x {first['height']} pixels at x {first['x']}, y {first['y']}"


def find_regions(
    grid: NDArray[np.float32],
    size: ImageSize,
    threshold: float,
    width: int,
    height: int,
) -> tuple[list[Region], float]:
    """The regions of an image, largest peak first, and the share of what is looked at that they cover.

    Parameters
    ----------
    grid : (rows, columns) float32
        Patch scores; upper bounds will do where the map stays below the threshold: `localise.needed_patches`.
    width, height
        Of the upright image.
    """
    from scipy.ndimage import find_objects, label

    scale = math.prod(length / resized for length, resized in zip((height, width), size.resize, strict=True))
    ignored = ignored_pixels(size)
    regions, n_above = [], 0
    for place, values in parts_above(grid, size, threshold):
        numbers, _ = label(values > threshold, EIGHT_NEIGHBOURS)
        for number, (rows, columns) in enumerate(find_objects(numbers), start=1):
            inside = values[rows, columns][numbers[rows, columns] == number]
            n_above += len(inside)
            box = Box(
                place.left + columns.start, place.top + rows.start, place.left + columns.stop, place.top + rows.stop
            )
            on = on_image(size, box, width, height)
            area = min(max(1, round(len(inside) * scale)), math.prod(on.size))
            peak, mean = float(inside.max()), float(inside.mean(dtype=np.float64))
            regions.append(Region(on.left, on.top, *on.size, area, peak, mean))
    looked_at = size.n_pixels - (0 if ignored is None else int(ignored.sum()))
    return sorted(regions, key=lambda one: (-one.peak, one.y, one.x)), n_above / max(1, looked_at)
