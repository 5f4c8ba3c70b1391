"""Pictures of images under review: all of an image, a part of it in its own pixels, its map."""

from __future__ import annotations

from typing import Any

from PIL import Image

from mvad.anomaly_maps.colours import draw_boxes, layer
from mvad.data.images import read_image
from mvad.errors import ImageError
from mvad.html.image_memory import MAX_BYTES, ImageMemory, picture_bytes
from mvad.html.thumbnails import encode, fit_within
from mvad.results.stored_maps import stored_map
from mvad.review.folder import NightsFolder

MAX_SIDE = 1600  # pixels of a picture of all of an image
MAX_PART = 1024  # pixels of a part in its own pixels
QUALITY, METHOD = 85, 2  # of WebP; the method is a fast one
Box = tuple[int, int, int, int]  # left, top, width, height in the upright image's pixels


def image_picture(
    row: dict[str, Any], memory: ImageMemory, max_pixels: int, max_side: int, part: Box | None, bit_depth: int
) -> bytes:
    """The image of a score row as WebP, shrunk to ``max_side`` pixels, or a ``part`` of it that is not shrunk.

    ImageError if it cannot be read, or has another size than when it was scored.
    """
    n_pixels = (row["width"] or 0) * (row["height"] or 0) or max_pixels
    with memory.reserve(n_pixels * MAX_BYTES):
        image = read_image(row["uri"], max_pixels, bit_depth=bit_depth, first_page=True)
        if row["width"] is not None and image.size != (row["width"], row["height"]):
            raise ImageError("its size has changed since it was scored")
        if part is None:
            size = fit_within(*image.size, min(max_side, MAX_SIDE))
            return _webp(image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0))
        left, top, width, height = part
        width, height = min(width, MAX_PART, image.width), min(height, MAX_PART, image.height)
        left, top = max(0, min(left, image.width - width)), max(0, min(top, image.height - height))
        return _webp(image.crop((left, top, left + width, top + height)))


def map_picture(folder: NightsFolder, row: dict[str, Any], memory: ImageMemory) -> bytes | None:
    """The map of an image with the boxes of its regions, as transparent WebP to lie over it; None if none was kept.

    ImageError if the map is damaged.
    """
    known = folder.scale(row)
    if known is None or not row["width"] or not row["height"]:
        return None
    size, scale = known
    with memory.reserve(picture_bytes(row["width"], row["height"])):
        square = stored_map(folder.patch_scores(row), size)
        if square is None:
            return None
        shown = layer(square, size, scale, *fit_within(row["width"], row["height"], MAX_SIDE))
        draw_boxes(shown, row["regions"] or (), row["width"], row["height"])
        return _webp(shown)


def _webp(image: Image.Image) -> bytes:
    return encode(image, "WEBP", quality=QUALITY, method=METHOD)
