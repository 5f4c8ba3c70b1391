"""Pictures of an uploaded image: itself, and its anomaly map to lie over it."""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mvad.anomaly_maps.colours import Scale, layer
from mvad.anomaly_maps.geometry import anomaly_map
from mvad.demo.catalogue import Offer

LONGEST = 2048  # pixels of the longer side; a larger image is shown smaller, with its map
QUALITY = 90  # of WebP


def shown_size(width: int, height: int) -> tuple[int, int]:
    """Width and height of an image's pictures: its own, or less if it is very large."""
    shrink = min(1.0, LONGEST / max(width, height))
    return max(1, round(width * shrink)), max(1, round(height * shrink))


def picture(image: Image.Image) -> str:
    """An upright RGB image as a ``data:`` URI that any browser shows, whatever file it came from."""
    return _data_uri(image.resize(shown_size(*image.size), Image.Resampling.BILINEAR, reducing_gap=2.0))


def map_picture(grid: NDArray[np.float32], score: float, offer: Offer, width: int, height: int) -> str:
    """The map of an image as a clear picture to lie over its `picture`.

    The median pixel keeps its value and the peak becomes the image's score, what lies between them in proportion: so
    the map of a flagged image, and of no other, has a part beyond the middle of the colours, where the threshold is
    (but for what is lost where a large image is shown smaller). Without a threshold the colours go from the map's own
    median to its peak.

    Parameters
    ----------
    grid : (rows, columns) float32
    width, height
        Of the upright image.
    """
    square = anomaly_map(grid, offer.model.size.crop)
    low, peak = float(np.median(square)), float(square.max())
    scale = offer.scale()
    if scale is None:
        scale = Scale(low, peak, False)
    elif peak > low:
        square = low + (square - low) * np.float32(max(score - low, 0.0) / (peak - low))
    return _data_uri(layer(square, offer.model.size, scale, *shown_size(width, height)))


def _data_uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=QUALITY, method=2)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
