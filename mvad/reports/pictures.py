"""Thumbnails of images for a page: small, with the marked defect outlined, and with the anomaly map over them."""

from __future__ import annotations

import base64
import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mvad import results
from mvad.anomaly_maps.colours import Scale, mark, overlay
from mvad.data.image_size import ImageSize
from mvad.data.images import read_image, read_mask
from mvad.errors import ImageError
from mvad.results.stored_maps import stored_map

SIDE = 208  # pixels, of the longer side
SHORTEST = 24  # of the shorter side of a very long image
QUALITY = 70  # of WebP
THREADS = 4  # reading and decoding; each holds one image in its own size
GREY = (128, 128, 128)  # where the source image is missing
COLUMNS = ("image_id", "uri", "mask_uri", "width", "height", "patch_scores", "patch_grid")


@dataclass(frozen=True)
class Picture:
    """The thumbnails of one image, as data URIs, and why one is missing.

    Attributes
    ----------
    image, map
        None where the source cannot be read, or no map was kept.
    width, height
        Of the thumbnails, in pixels.
    marked
        Whether the defect is outlined in ``image``.
    peak
        Where the map is highest, in words.
    problem
        Why the source, its mask or its map cannot be shown; None if nothing is wrong.
    """

    image_id: str
    image: str | None
    map: str | None
    width: int
    height: int
    marked: bool
    peak: str | None
    problem: str | None


def pictures(
    out: str, category: str, image_ids: list[str], size: ImageSize | None, scale: Scale | None, max_pixels: int
) -> dict[str, Picture]:
    """Thumbnails of some images of a category in OUT (a URI), by image id.

    Parameters
    ----------
    size, scale
        The model's geometry and the colours of its maps; without either there are no maps.
    """
    rows = results.read_images(out, category, image_ids, COLUMNS).to_pylist()
    with ThreadPoolExecutor(THREADS) as pool:
        made = pool.map(lambda row: _picture(row, size, scale, max_pixels), rows)
        return {picture.image_id: picture for picture in made}


def _picture(row: dict[str, Any], size: ImageSize | None, scale: Scale | None, max_pixels: int) -> Picture:
    shape = _shape(row["width"], row["height"])
    problems = []
    image, marked, square = None, False, None
    try:
        image = read_image(row["uri"], max_pixels)
        if image.size != (row["width"], row["height"]):
            raise ImageError("has changed since it was scored: it has another size")
        image = image.resize(shape, Image.Resampling.BILINEAR, reducing_gap=2.0)
    except ImageError as error:
        image = None
        problems.append(f"source image: {error}")
    if size is not None and scale is not None:
        try:
            square = stored_map(row, size)
        except ImageError as error:
            problems.append(str(error))
    over = None
    if square is not None and size is not None and scale is not None:
        over = overlay(image or Image.new("RGB", shape, GREY), square, size, scale)
    if image is not None and row["mask_uri"]:
        try:
            image, marked = mark(image, read_mask(row["mask_uri"], max_pixels)), True
        except ImageError as error:
            problems.append(f"mask: {error}")
    return Picture(
        image_id=row["image_id"],
        image=None if image is None else data_uri(image),
        map=None if over is None else data_uri(over),
        width=shape[0],
        height=shape[1],
        marked=marked,
        peak=None if square is None or size is None else _peak(square, size),
        problem="; ".join(problems) or None,
    )


def _shape(width: int, height: int) -> tuple[int, int]:
    """Width and height of a thumbnail; it is never larger than its image, and a very long one is shown less long."""
    shrink = min(1.0, SIDE / max(width, height))
    return tuple(max(round(length * shrink), min(length, SHORTEST)) for length in (width, height))  # type: ignore[return-value]


def _peak(square: NDArray[np.float32], size: ImageSize) -> str:
    margin = (size.resize - size.crop) // 2
    y, x = np.unravel_index(np.argmax(square), square.shape)
    across, down = ((place + 0.5 + margin) / size.resize for place in (int(x), int(y)))
    return f"highest {across:.0%} from the left and {down:.0%} from the top"


def data_uri(image: Image.Image) -> str:
    """An image as WebP in a ``data:`` URI."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=QUALITY, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
