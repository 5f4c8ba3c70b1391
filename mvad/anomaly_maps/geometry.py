"""Anomaly maps: patch scores brought to the size of the model's input, and from there to the image's own."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mvad.data.image_size import ImageSize

TRUNCATE = 4.0  # standard deviations at which the Gaussian ends


def anomaly_map(patch_scores: NDArray[np.float32], size: ImageSize) -> NDArray[np.float32]:
    """Upsample patch scores, (rows, columns) float32, bilinearly and smooth them with a Gaussian.

    The result is as large as the model's input: (height, width) float32.
    """
    import torch
    from scipy.ndimage import gaussian_filter
    from torch.nn import functional

    grid = torch.from_numpy(np.array(patch_scores, np.float32))[None, None]
    scaled = functional.interpolate(grid, (size.height, size.width), mode="bilinear", align_corners=False)
    values = scaled[0, 0].numpy()
    return gaussian_filter(values, size.smoothing, truncate=TRUNCATE) if size.smoothing else values


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
    (top, bottom), (left, right) = (_extent(*axis) for axis in zip(_axes(size), (height, width), strict=True))
    return Box(left, top, right, bottom)


class _Axis(NamedTuple):
    """Height or width of the model's input: what is seen of it, after how many pixels, of the resized image."""

    margin: int
    seen: int
    resized: int


def _axes(size: ImageSize) -> tuple[_Axis, _Axis]:
    down, across = (_Axis(*axis) for axis in zip(size.margins, size.crop, size.resize, strict=True))
    return down, across


def _extent(axis: _Axis, length: int) -> tuple[int, int]:
    begin = min(round(axis.margin * length / axis.resized), length - 1)
    return begin, max(begin + 1, round((axis.margin + axis.seen) * length / axis.resized))


def on_image(size: ImageSize, box: Box, width: int, height: int) -> Box:
    """Where a box of the model's input lies on an upright image: the whole pixels that it touches."""
    (top, bottom), (left, right) = (
        (
            math.floor((axis.margin + begin) * length / axis.resized),
            min(length, math.ceil((axis.margin + end) * length / axis.resized)),
        )
        for axis, begin, end, length in zip(
            _axes(size), (box.top, box.left), (box.bottom, box.right), (height, width), strict=True
        )
    )
    return Box(min(left, width - 1), min(top, height - 1), right, bottom)


def map_on_image(model_map: NDArray[np.float32], size: ImageSize, width: int, height: int) -> NDArray[np.float32]:
    """Scale a map of the model's input to the pixels of the part of the image that the model saw.

    The map is float32 and as large as the model's input; ``width`` and ``height`` are those of the upright image, or of
    a smaller copy. The result is float32 and as large as `seen_box`; interpolated bilinearly, or averaged where that is
    smaller.
    """
    box = seen_box(size, width, height)
    down, across = _axes(size)
    left, right = _in_input(across, box.left, box.right, width)
    top, bottom = _in_input(down, box.top, box.bottom, height)
    source, part = Image.fromarray(model_map), (left, top, right, bottom)
    return np.asarray(source.resize(box.size, Image.Resampling.BILINEAR, box=part))


def _in_input(axis: _Axis, begin: int, end: int, length: int) -> tuple[float, float]:
    # Whole pixels reach up to half a pixel beyond the input.
    input_begin, input_end = (position * axis.resized / length - axis.margin for position in (begin, end))
    return max(0.0, input_begin), min(float(axis.seen), input_end)
