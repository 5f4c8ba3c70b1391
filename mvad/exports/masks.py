"""Regions as masks: pictures as large as the image, from the maps that results keep."""

import io
from typing import Any

import numpy as np
from PIL import Image

from mvad.anomaly_maps.export import full_map
from mvad.data.image_size import ImageSize
from mvad.errors import ImageError
from mvad.results.stored_maps import stored_map


def mask_png(row: dict[str, Any], size: ImageSize, threshold: float, max_pixels: int) -> bytes:
    """Draw an 8-bit grey PNG, as large as the upright image: 255 where the map is above the threshold, else 0.

    ``row`` is the score row, with its map, and ``size`` the geometry of the model's input. ImageError if the map is
    damaged or missing, or the image has more than ``max_pixels`` pixels.
    """
    model_map = stored_map(row, size)
    if model_map is None:
        raise ImageError("kept no map")
    is_above = full_map(row, model_map, size, max_pixels) > threshold  # not where the model did not look: NaN
    file = io.BytesIO()
    Image.fromarray(is_above.astype(np.uint8) * np.uint8(255)).save(file, "PNG", compress_level=4)
    return file.getvalue()
