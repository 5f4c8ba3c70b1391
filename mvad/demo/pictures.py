"""Pictures of an uploaded image for the page: the image itself, and its anomaly map as a layer to lie over it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mvad.anomaly_maps.colours import Scale, layer
from mvad.anomaly_maps.geometry import anomaly_map
from mvad.demo.category_models import CategoryModel
from mvad.html.thumbnails import fit_within, webp_uri

MAX_SIDE_PIXELS = 2048  # larger images, and their maps, are shown smaller
WEBP_QUALITY, WEBP_METHOD = 90, 2  # the method is a fast one


def display_image(image: Image.Image) -> str:
    """Encode an upright RGB image as a ``data:`` URI that any browser shows, whatever its file format was."""
    size = fit_within(*image.size, MAX_SIDE_PIXELS)
    return webp_uri(image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0), WEBP_QUALITY, WEBP_METHOD)


def map_layer(patch_scores: NDArray[np.float32], score: float, model: CategoryModel, width: int, height: int) -> str:
    """Draw patch scores, (rows, columns) float32, as a transparent ``data:`` URI to lie over the `display_image`.

    The median pixel keeps its value, the peak becomes the image's score, and values in between are interpolated
    linearly. So the map exceeds the middle of the colours, which is the threshold, if and only if the image is flagged
    (apart from what is lost where a large image is shown smaller). Without a threshold the colours range from the map's
    own median to its peak. ``width`` and ``height`` are those of the upright image.
    """
    square = anomaly_map(patch_scores, model.model.size.crop)
    median, peak = float(np.median(square)), float(square.max())
    scale = model.colour_scale()
    if scale is None:
        scale = Scale(median, peak, False)
    elif peak > median:
        square = median + (square - median) * np.float32(max(score - median, 0.0) / (peak - median))
    shown = layer(square, model.model.size, scale, *fit_within(width, height, MAX_SIDE_PIXELS))
    return webp_uri(shown, WEBP_QUALITY, WEBP_METHOD)
