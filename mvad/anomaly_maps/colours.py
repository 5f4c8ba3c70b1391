"""Anomaly maps as pictures: a scale of colours that the images of a category share, and the map over the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw

from mvad.anomaly_maps.geometry import map_on_image, seen_part
from mvad.data.image_size import ImageSize

SCALE_IMAGES = 64  # at most, that a scale is made from
LEVELS = 255
MIDDLE = 128  # the level of the threshold
PEAK = 99.0  # percentile of the maps' peaks that is the top of a scale without threshold
STOPS = {  # level: red, green, blue, opacity; hot but not rainbow, so that order can be seen without colour vision
    0: (255, 236, 140, 0),
    64: (255, 214, 70, 50),
    128: (255, 145, 20, 140),
    192: (224, 36, 34, 180),
    255: (120, 0, 96, 200),
}
OUTLINE = (255, 255, 255)
TRUTH = (0, 200, 255)
UNSEEN = 0.45  # of its brightness that the part of an image keeps which the model did not see


class Scale(NamedTuple):
    """Map values that colours begin and end at; the middle is the threshold if ``judged``."""

    low: float
    high: float
    judged: bool

    @property
    def middle(self) -> float:
        return (self.low + self.high) / 2

    def levels(self, values: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Map values as levels from 0 to 255, cut off at both ends."""
        span = self.high - self.low
        share = (values - self.low) / span if span > 0 else np.zeros_like(values)
        return (np.clip(share, 0, 1) * LEVELS).round().astype(np.uint8)


def colour_scale(maps: Sequence[NDArray[np.float32]], scores: Sequence[float], threshold: float | None) -> Scale:
    """The scale of a category from the maps of some of its images, the same for any method.

    Colours begin at the median of all pixels, most of which are good even in defective images. With a threshold, their
    middle is where the peaks of the maps of flagged images begin: the quantile of all peaks at the rank of the
    threshold among the scores. What is warmer than the middle would by itself have flagged its image, nearly so.
    Without a threshold they end at the 99th percentile of the peaks.

    Parameters
    ----------
    maps : (rows, columns) float32 each; at least one
    scores
        Of the images the maps are of.
    threshold
        That scores are flagged above.
    """
    low = float(np.median(np.concatenate([values.ravel() for values in maps])))
    peaks = np.array([values.max() for values in maps], np.float64)
    if threshold is None or not np.isfinite(threshold):
        return Scale(low, max(float(np.percentile(peaks, PEAK)), low), False)
    quiet = float((np.asarray(scores, np.float64) <= threshold).mean())
    middle = max(float(np.quantile(peaks, quiet)), low)
    return Scale(low, low + 2 * (middle - low), True)


def overlay(image: Image.Image, square: NDArray[np.float32], size: ImageSize, scale: Scale) -> Image.Image:
    """A map over its image, with an outline where it passes the threshold; what the model did not see is darkened.

    Parameters
    ----------
    image
        RGB and upright, of any size.
    square : (crop, crop) float32
        The map of the model's square.
    """
    part = seen_part(size, *image.size)
    levels = Image.fromarray(scale.levels(map_on_image(square, size, *image.size)))
    colours = Image.merge("RGB", [levels.point(_table(channel)) for channel in range(3)])
    result = image.copy()
    if part != (0, 0, *image.size):
        result = result.point(lambda value: round(value * UNSEEN))
        result.paste(image.crop(part), (part.left, part.top))
    result.paste(colours, (part.left, part.top), levels.point(_table(3)))
    if scale.judged:
        lines = outline(levels.point(lambda level: 255 * (level >= MIDDLE)), max(1, max(image.size) // 300))
        result.paste(OUTLINE, (part.left, part.top), lines)
    return result


def layer(square: NDArray[np.float32], size: ImageSize, scale: Scale, width: int, height: int) -> Image.Image:
    """A map to lie over an upright image of ``width`` x ``height`` pixels: as `overlay`, on a clear ground (RGBA)."""
    part = seen_part(size, width, height)
    levels = Image.fromarray(scale.levels(map_on_image(square, size, width, height)))
    seen = Image.merge("RGBA", [levels.point(_table(channel)) for channel in range(4)])
    if scale.judged:
        lines = outline(levels.point(lambda level: 255 * (level >= MIDDLE)), max(1, max(width, height) // 300))
        seen.paste((*OUTLINE, LEVELS), (0, 0), lines)
    result = Image.new("RGBA", (width, height), (0, 0, 0, round(LEVELS * (1 - UNSEEN))))
    result.paste(seen, (part.left, part.top))
    return result


def _table(channel: int) -> list[int]:
    """The 256 values of one channel of the colours, or of their opacity."""
    values = [stop[channel] for stop in STOPS.values()]
    return np.interp(np.arange(LEVELS + 1), list(STOPS), values).round().astype(int).tolist()


def outline(region: Image.Image, thickness: int) -> Image.Image:
    """The edge of the white region of a black and white image (mode L), ``thickness`` pixels wide."""
    edge = Image.new("L", region.size)
    for x, y in ((thickness, 0), (-thickness, 0), (0, thickness), (0, -thickness)):
        moved = region.crop((x, y, x + region.width, y + region.height))  # black beyond the border
        edge = ImageChops.lighter(edge, ImageChops.subtract(region, moved))
    return edge


def mark(image: Image.Image, mask: Image.Image) -> Image.Image:
    """An image with an outline around the defect of a mask (mode L, not black where defective) of any size."""
    region = mask.resize(image.size, Image.Resampling.NEAREST).point(lambda value: 255 * (value > 0))
    result = image.copy()
    result.paste(TRUTH, (0, 0), outline(region, max(1, max(image.size) // 150)))
    return result


def legend(width: int = 220, height: int = 12) -> Image.Image:
    """The colours from low to high over grey, with a line at the middle."""
    levels = Image.fromarray(np.tile(np.linspace(0, LEVELS, width).astype(np.uint8), (height, 1)))
    bar = Image.new("RGB", (width, height), (150, 150, 150))
    colours = Image.merge("RGB", [levels.point(_table(channel)) for channel in range(3)])
    bar.paste(colours, (0, 0), levels.point(_table(3)))
    ImageDraw.Draw(bar).line([(width // 2, 0), (width // 2, height)], fill=OUTLINE)
    return bar
