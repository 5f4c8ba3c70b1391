"""Anomaly maps: grids of patch scores brought to the size of the model's square, and from there to the image's own."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch.nn import functional

from mvad.data.image_size import ImageSize

SIGMA = 4.0  # pixels, arXiv 2106.08265, section 3.3


def anomaly_map(grid: NDArray[np.float32], side: int, sigma: float = SIGMA) -> NDArray[np.float32]:
    """Upsample a grid of patch scores bilinearly and smooth it with a Gaussian.

    Parameters
    ----------
    grid : (rows, columns) float32
    side
        Side in pixels of the square the model saw.
    sigma
        Of the Gaussian, in pixels.

    Returns
    -------
    (side, side) float32
    """
    scaled = functional.interpolate(
        torch.from_numpy(np.array(grid, np.float32))[None, None],
        (side, side),
        mode="bilinear",
        align_corners=False,
    )
    return gaussian_filter(scaled[0, 0].numpy(), sigma)


class Seen(NamedTuple):
    """The part of an upright image that a model saw, in whole pixels; ``right`` and ``bottom`` are just outside."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def height(self) -> int:
        return self.bottom - self.top


def seen_part(size: ImageSize, width: int, height: int) -> Seen:
    """Where the centre that is kept of the resized square lies in an upright image of ``width`` x ``height`` pixels."""
    (left, right), (top, bottom) = _extent(size, width), _extent(size, height)
    return Seen(left, top, right, bottom)


def _extent(size: ImageSize, length: int) -> tuple[int, int]:
    margin = (size.resize - size.crop) // 2
    begin = min(round(margin * length / size.resize), length - 1)
    return begin, max(begin + 1, round((margin + size.crop) * length / size.resize))


def map_on_image(square: NDArray[np.float32], size: ImageSize, width: int, height: int) -> NDArray[np.float32]:
    """Bring a map of the model's square to the pixels of the part of the image that it shows.

    Parameters
    ----------
    square : (crop, crop) float32
    width, height
        Of the upright image, or of a smaller copy of it.

    Returns
    -------
    (rows, columns) float32, as large as `seen_part`; interpolated bilinearly, or averaged where that is smaller
    """
    part = seen_part(size, width, height)
    (left, right) = _in_square(size, part.left, part.right, width)
    (top, bottom) = _in_square(size, part.top, part.bottom, height)
    source = Image.fromarray(square)
    scaled = source.resize((part.width, part.height), Image.Resampling.BILINEAR, box=(left, top, right, bottom))
    return np.asarray(scaled)


def _in_square(size: ImageSize, begin: int, end: int, length: int) -> tuple[float, float]:
    # Whole pixels reach up to half a pixel beyond the square.
    margin = (size.resize - size.crop) // 2
    return (
        max(0.0, begin * size.resize / length - margin),
        min(float(size.crop), end * size.resize / length - margin),
    )
