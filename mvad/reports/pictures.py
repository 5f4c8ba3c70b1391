"""The pictures of a report: small images with the annotated defect outlined, and with their anomaly maps."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mvad import results
from mvad.anomaly_maps.colours import Scale, draw_boxes, mark, overlay
from mvad.anomaly_maps.regions import regions_in_words
from mvad.data.image_size import ImageSize
from mvad.data.images import FULL_DEPTH, read_image, read_mask
from mvad.errors import ImageError
from mvad.html.thumbnails import fit_within, webp_uri
from mvad.reports.category import Category
from mvad.results.stored_maps import read_scale, stored_map

MAX_SIDE = 208  # pixels of a thumbnail
MIN_SIDE = 24  # pixels that the shorter side of a very long image keeps
QUALITY = 70  # of WebP
N_THREADS = 4  # for reading and decoding; each holds one image in full size
GREY = (128, 128, 128)  # in place of a missing source image
COLUMNS = ("image_id", "uri", "mask_uri", "width", "height", "patch_scores", "patch_grid", "regions")


@dataclass(frozen=True)
class Picture:
    """The thumbnails of one image as ``data:`` URIs."""

    image_id: str
    image: str | None  # None if the source cannot be read
    map: str | None  # None if no map was kept
    width: int  # of the thumbnails, in pixels
    height: int
    marked: bool  # whether the annotated defect is outlined in ``image``
    peak: str | None  # where the map is highest, in words
    regions: str | None  # where it is above the pixel threshold, in words; None if that is not known
    problem: str | None  # why the source, its mask or its map cannot be shown


def category_pictures(source: str, category: Category, max_pixels: int) -> dict[str, Picture]:
    """Pictures of the images that a category shows, by image id; ``source`` is the URI of the results."""
    if not category.shown_ids:
        return {}
    size = category.size
    scale = read_scale(source, category.name, size) if size else None
    rows = results.read_images(source, category.name, category.shown_ids, COLUMNS).to_pylist()
    with ThreadPoolExecutor(N_THREADS) as pool:
        bit_depth = category.facts.get("bit_depth", FULL_DEPTH)
        pictures = pool.map(lambda row: _picture(row, size, scale, max_pixels, bit_depth), rows)
        return {picture.image_id: picture for picture in pictures}


def _picture(
    row: dict[str, Any], size: ImageSize | None, scale: Scale | None, max_pixels: int, bit_depth: int
) -> Picture:
    """The picture of a score row; without ``size`` or ``scale`` it has no map."""
    width, height = fit_within(row["width"] or MAX_SIDE, row["height"] or MAX_SIDE, MAX_SIDE, MIN_SIDE)
    image: Image.Image | None = None
    map_image: Image.Image | None = None
    peak, marked, problems = None, False, []
    try:
        image = read_image(row["uri"], max_pixels, bit_depth=bit_depth, first_page=True)
        if row["width"] is None:  # it was not scored
            width, height = fit_within(*image.size, MAX_SIDE, MIN_SIDE)
        elif image.size != (row["width"], row["height"]):
            raise ImageError("its size has changed since it was scored")
        image = image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)
    except ImageError as error:
        image = None
        problems.append(f"source image: {error}")
    if size is not None and scale is not None:
        try:
            square = stored_map(row, size)
            if square is not None:
                map_image = overlay(image or Image.new("RGB", (width, height), GREY), square, size, scale)
                peak = _peak(square, size)
        except ImageError as error:
            problems.append(str(error))
    if image is not None and row["mask_uri"]:
        try:
            image, marked = mark(image, read_mask(row["mask_uri"], max_pixels)), True
        except ImageError as error:
            problems.append(f"mask: {error}")
    if image is not None and row["regions"]:
        image = image.copy()
        draw_boxes(image, row["regions"], row["width"], row["height"])
    regions = None if row["regions"] is None else regions_in_words(row["regions"])
    uri, map_uri = (None if picture is None else webp_uri(picture, QUALITY) for picture in (image, map_image))
    return Picture(row["image_id"], uri, map_uri, width, height, marked, peak, regions, "; ".join(problems) or None)


def _peak(square: NDArray[np.float32], size: ImageSize) -> str:
    peak = np.unravel_index(np.argmax(square), square.shape)
    down, across = (
        (int(pixel) + 0.5 + margin) / length
        for pixel, margin, length in zip(peak, size.margins, size.resize, strict=True)
    )
    return f"highest {across:.0%} from the left and {down:.0%} from the top"
