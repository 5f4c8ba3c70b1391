"""Anomaly maps: patch scores brought to the size of the model's input square, and from there to the image's own."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mvad.data.image_size import ImageSize

SIGMA = 4.0  # of the Gaussian in pixels, arXiv 2106.08265, section 3.3


def anomaly_map(patch_scores: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Upsample patch scores, (rows, columns) float32, bilinearly and smooth them with a Gaussian of `SIGMA` pixels.

    The result is (side, side) float32, where ``side`` is that of the model's input square in pixels.
    """
    import torch
    from scipy.ndimage import gaussian_filter
    from torch.nn import functional

    grid = torch.from_numpy(np.array(patch_scores, np.float32))[None, None]
    scaled = functional.interpolate(grid, (side, side), mode="bilinear", align_corners=False)
    return gaussian_filter(scaled[0, 0].numpy(), SIGMA)


class Box(NamedTuple):
    """A part of an upright image in whole pixels; ``right`` and ``bottom`` are just outside."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def size(self) -> tuple[int, int]:
        return self.right - self.left, self.bottom - self.top


def seen_box(size: ImageSize, width: int, height: int) -> Box:
    """Return the part of an upright image of ``width`` x ``height`` pixels that the model saw: the cropped centre."""
    (left, right), (top, bottom) = _extent(size, width), _extent(size, height)
    return Box(left, top, right, bottom)


def _extent(size: ImageSize, length: int) -> tuple[int, int]:
    margin = (size.resize - size.crop) // 2
    begin = min(round(margin * length / size.resize), length - 1)
    return begin, max(begin + 1, round((margin + size.crop) * length / size.resize))


def map_on_image(model_map: NDArray[np.float32], size: ImageSize, width: int, height: int) -> NDArray[np.float32]:
    """Scale a map of the model's input square to the pixels of the part of the image that the model saw.

    The map is (crop, crop) float32; ``width`` and ``height`` are those of the upright image, or of a smaller copy.
    The result is float32 and as large as `seen_box`; interpolated bilinearly, or averaged where that is smaller.
    """
    box = seen_box(size, width, height)
    left, right = _in_square(size, box.left, box.right, width)
    top, bottom = _in_square(size, box.top, box.bottom, height)
    source, part = Image.fromarray(model_map), (left, top, right, bottom)
    return np.asarray(source.resize(box.size, Image.Resampling.BILINEAR, box=part))


def _in_square(size: ImageSize, begin: int, end: int, length: int) -> tuple[float, float]:
    # Whole pixels reach up to half a pixel beyond the square.
    margin = (size.resize - size.crop) // 2
    square_begin, square_end = (position * size.resize / length - margin for position in (begin, end))
    return max(0.0, square_begin), min(float(size.crop), square_end)
