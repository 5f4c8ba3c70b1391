"""Anomaly maps in colours: the colour scale that the images of a category share, and the map over its image."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw

from mvad.anomaly_maps.geometry import map_on_image, seen_box
from mvad.data.image_size import ImageSize

MAX_SCALE_IMAGES = 64  # that a colour scale is computed from
MAX_LEVEL = 255
THRESHOLD_LEVEL = 128
PEAK_PERCENTILE = 99.0  # of the maps' peaks: the top of a scale without threshold
STOPS = {  # level: red, green, blue, opacity; ordered by lightness, so readable without colour vision
    0: (255, 236, 140, 0),
    64: (255, 214, 70, 50),
    128: (255, 145, 20, 140),
    192: (224, 36, 34, 180),
    255: (120, 0, 96, 200),
}
THRESHOLD_COLOUR = (255, 255, 255)
BOX_COLOUR = (255, 0, 170)
TRUTH_COLOUR = (0, 200, 255)
UNSEEN_BRIGHTNESS = 0.45  # of the part of an image that the model did not see, as a share
LEGEND_SIZE = (220, 12)


class Scale(NamedTuple):
    """Map values at which colours begin and end; the middle is the threshold if ``has_threshold``."""

    low: float
    high: float
    has_threshold: bool

    def shares(self, values: NDArray[np.float32]) -> NDArray[np.floating]:
        """Convert map values to shares of the scale from 0 to 1, clipped at both ends; NaN stays NaN."""
        span = self.high - self.low
        return np.clip((values - self.low) / span, 0, 1) if span > 0 else np.where(np.isnan(values), np.nan, 0)

    def levels(self, values: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Convert map values to levels from 0 to 255, clipped at both ends."""
        return (self.shares(values) * MAX_LEVEL).round().astype(np.uint8)


def colour_scale(maps: Sequence[NDArray[np.float32]], scores: Sequence[float], threshold: float | None) -> Scale:
    """Compute the colour scale of a category from the maps of some of its images, in the same way for any method.

    Colours begin at the median of all pixels, most of which are good even in defective images. With a threshold, their
    middle is where the peaks of the maps of flagged images begin: the quantile of all peaks at the rank of the
    threshold among the scores. A pixel above the middle would, nearly, have flagged its image by itself. Without a
    threshold colours end at the 99th percentile of the peaks.

    There must be at least one map. ``scores`` are those of the maps' images; images above ``threshold`` are flagged.
    """
    low = float(np.median(np.concatenate([values.ravel() for values in maps])))
    peaks = np.array([values.max() for values in maps], np.float64)
    if threshold is None or not np.isfinite(threshold):
        return Scale(low, max(float(np.percentile(peaks, PEAK_PERCENTILE)), low), False)
    share_passed = float((np.asarray(scores, np.float64) <= threshold).mean())
    middle = max(float(np.quantile(peaks, share_passed)), low)
    return Scale(low, low + 2 * (middle - low), True)


def threshold_scale(median: float, spread: float, threshold: float) -> Scale:
    """The colours of maps whose peaks are image scores: from the median calibration score, the threshold in the middle.

    ``spread`` is that of the calibration scores: a high false-alarm rate puts the threshold below the median.
    """
    half_range = threshold - median if threshold > median else spread
    return Scale(threshold - half_range, threshold + half_range, True)


def overlay(image: Image.Image, model_map: NDArray[np.float32], size: ImageSize, scale: Scale) -> Image.Image:
    """Draw a map over its image, with a contour at the threshold; what the model did not see is darkened.

    The image is RGB and upright, of any size; the map is as large as the model's input, float32.
    """
    box = seen_box(size, *image.size)
    levels = Image.fromarray(scale.levels(map_on_image(model_map, size, *image.size)))
    result = image.copy()
    if box != (0, 0, *image.size):
        result = result.point(lambda value: round(value * UNSEEN_BRIGHTNESS))
        result.paste(image.crop(box), (box.left, box.top))
    result.paste(_coloured(levels, "RGB"), (box.left, box.top), levels.point(_channel_table(3)))
    if scale.has_threshold:
        result.paste(THRESHOLD_COLOUR, (box.left, box.top), _contour(levels, image.size))
    return result


def layer(model_map: NDArray[np.float32], size: ImageSize, scale: Scale, width: int, height: int) -> Image.Image:
    """Draw a map to lay over an upright image of ``width`` x ``height`` pixels: as `overlay`, but transparent RGBA."""
    box = seen_box(size, width, height)
    levels = Image.fromarray(scale.levels(map_on_image(model_map, size, width, height)))
    seen = _coloured(levels, "RGBA")
    if scale.has_threshold:
        seen.paste((*THRESHOLD_COLOUR, MAX_LEVEL), (0, 0), _contour(levels, (width, height)))
    result = Image.new("RGBA", (width, height), (0, 0, 0, round(MAX_LEVEL * (1 - UNSEEN_BRIGHTNESS))))
    result.paste(seen, (box.left, box.top))
    return result


def _coloured(levels: Image.Image, mode: str) -> Image.Image:
    return Image.merge(mode, [levels.point(_channel_table(channel)) for channel in range(len(mode))])


def _channel_table(channel: int) -> list[int]:
    """Return the values of one channel, red, green, blue or opacity, for the 256 levels."""
    values = [stop[channel] for stop in STOPS.values()]
    return np.interp(np.arange(MAX_LEVEL + 1), list(STOPS), values).round().astype(int).tolist()


def _contour(levels: Image.Image, image_size: tuple[int, int]) -> Image.Image:
    return outline(levels.point(lambda level: 255 * (level >= THRESHOLD_LEVEL)), max(1, max(image_size) // 300))


def outline(region: Image.Image, thickness: int) -> Image.Image:
    """Return the edge of the white region of a black and white image (mode L), ``thickness`` pixels wide."""
    edge = Image.new("L", region.size)
    for x, y in ((thickness, 0), (-thickness, 0), (0, thickness), (0, -thickness)):
        shifted = region.crop((x, y, x + region.width, y + region.height))  # black beyond the border
        edge = ImageChops.lighter(edge, ImageChops.subtract(region, shifted))
    return edge


def mark(image: Image.Image, mask: Image.Image) -> Image.Image:
    """Outline the defect of a mask (mode L, not black where defective, of any size) on a copy of the image."""
    region = mask.resize(image.size, Image.Resampling.NEAREST).point(lambda value: 255 * (value > 0))
    result = image.copy()
    result.paste(TRUTH_COLOUR, (0, 0), outline(region, max(1, max(image.size) // 150)))
    return result


def draw_boxes(picture: Image.Image, boxes: Iterable[Mapping[str, Any]], width: int, height: int) -> None:
    """Draw the boxes of regions on a picture of an upright image of ``width`` x ``height`` pixels, in place."""
    pen, thickness = ImageDraw.Draw(picture), max(1, max(picture.size) // 300)
    for box in boxes:
        left, right = (x * picture.width / width for x in (box["x"], box["x"] + box["width"]))
        top, bottom = (y * picture.height / height for y in (box["y"], box["y"] + box["height"]))
        pen.rectangle((left - thickness, top - thickness, right, bottom), outline=BOX_COLOUR, width=thickness)


def legend() -> Image.Image:
    """Draw the colours from low to high over grey, with a line at the middle."""
    width, height = LEGEND_SIZE
    levels = Image.fromarray(np.tile(np.linspace(0, MAX_LEVEL, width).astype(np.uint8), (height, 1)))
    bar = Image.new("RGB", (width, height), (150, 150, 150))
    bar.paste(_coloured(levels, "RGB"), (0, 0), levels.point(_channel_table(3)))
    ImageDraw.Draw(bar).line([(width // 2, 0), (width // 2, height)], fill=THRESHOLD_COLOUR)
    return bar
