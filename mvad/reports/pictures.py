"""The pictures of a report: small images with the annotated defect outlined, with their anomaly maps, and details.

A detail shows an image's own pixels around its largest region, where a small image would hide it.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mvad import results
from mvad.anomaly_maps.colours import Scale, draw_boxes, mark, overlay
from mvad.anomaly_maps.geometry import Box
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
DETAIL_SIDES = 192, 512  # pixels of a detail: twice its region, within these
SMALL = 4  # times a small region fits into its image
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
    detail: str | None  # its own pixels in `place`; None if the region is not small, or the page would grow too large
    place: Box | None  # of the detail, in pixels of the image


def category_pictures(source: str, category: Category, max_pixels: int, max_detail_bytes: int) -> dict[str, Picture]:
    """Pictures of the images that a category shows, by image id; ``source`` is the URI of the results.

    Details are left out, those of the last images first, where all together would have more than ``max_detail_bytes``.
    """
    made = pictures_of(source, category.name, category.facts, category.shown_ids, max_pixels)
    order = [image_id for image_id in category.shown_ids if image_id in made]
    return dict(zip(order, with_few_details([made[image_id] for image_id in order], max_detail_bytes), strict=True))


def pictures_of(
    source: str, category: str, facts: Mapping[str, Any], image_ids: Sequence[str], max_pixels: int
) -> dict[str, Picture]:
    """Pictures of some images of a category, by image id; ``facts`` are what ``run.json`` in ``source`` says of it."""
    if not image_ids:
        return {}
    size = ImageSize(**facts["size"]) if facts.get("size") else None
    scale = read_scale(source, category, size) if size else None
    rows = results.read_images(source, category, image_ids, COLUMNS).to_pylist()
    with ThreadPoolExecutor(N_THREADS) as pool:
        bit_depth = facts.get("bit_depth", FULL_DEPTH)
        pictures = pool.map(lambda row: _picture(row, size, scale, max_pixels, bit_depth), rows)
        return {picture.image_id: picture for picture in pictures}


def with_few_details(pictures: Sequence[Picture], max_bytes: int) -> list[Picture]:
    """The same pictures, without the details of the last ones if all together would have more than ``max_bytes``."""
    n_bytes, kept = 0, []
    for picture in pictures:
        n_bytes += len(picture.detail or "")
        kept.append(replace(picture, detail=None) if n_bytes > max_bytes else picture)
    return kept


def missing_picture(image_id: str, problem: str) -> Picture:
    """What stands for an image that cannot be shown at all."""
    return Picture(image_id, None, None, MAX_SIDE, MAX_SIDE, False, None, None, problem, None, None)


def _picture(
    row: dict[str, Any], size: ImageSize | None, scale: Scale | None, max_pixels: int, bit_depth: int
) -> Picture:
    """The picture of a score row; without ``size`` or ``scale`` it has no map."""
    width, height = fit_within(row["width"] or MAX_SIDE, row["height"] or MAX_SIDE, MAX_SIDE, MIN_SIDE)
    image: Image.Image | None = None
    map_image: Image.Image | None = None
    peak, marked, problems, detail, place = None, False, [], None, None
    try:
        image = read_image(row["uri"], max_pixels, bit_depth=bit_depth, first_page=True)
        if row["width"] is None:  # it was not scored
            width, height = fit_within(*image.size, MAX_SIDE, MIN_SIDE)
        elif image.size != (row["width"], row["height"]):
            raise ImageError("its size has changed since it was scored")
        place = _detail(row["regions"] or (), *image.size)
        detail = None if place is None else webp_uri(image.crop(place), QUALITY)
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
    problem = "; ".join(problems) or None
    return Picture(row["image_id"], uri, map_uri, width, height, marked, peak, regions, problem, detail, place)


def _detail(regions: Sequence[Mapping[str, Any]], width: int, height: int) -> Box | None:
    """The place around the largest region of an image, in its pixels; None if it can be seen without."""
    if not regions or max(width, height) <= 2 * MAX_SIDE:
        return None
    region = max(regions, key=lambda one: one["area"])
    if SMALL * max(region["width"], region["height"]) > max(width, height):
        return None
    ends = []
    for start, length, whole in ((region["x"], region["width"], width), (region["y"], region["height"], height)):
        side = min(max(2 * length, DETAIL_SIDES[0]), DETAIL_SIDES[1], whole)
        first = min(max(0, start + length // 2 - side // 2), whole - side)
        ends.append((first, first + side))
    (left, right), (top, bottom) = ends
    return Box(left, top, right, bottom)


def _peak(square: NDArray[np.float32], size: ImageSize) -> str:
    peak = np.unravel_index(np.argmax(square), square.shape)
    down, across = (
        (int(pixel) + 0.5 + margin) / length
        for pixel, margin, length in zip(peak, size.margins, size.resize, strict=True)
    )
    return f"highest {across:.0%} from the left and {down:.0%} from the top"
