"""The size of the model's input, by category: the shape of the images that it is fitted to."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from mvad import storage
from mvad.data.image_size import ImageSize
from mvad.data.images import measure_file
from mvad.errors import ImageError, UsageError
from mvad.features.backbone_spec import BackboneSpec
from mvad.model_checks import check_size
from mvad.pipeline.measuring import measure_categories
from mvad.storage.text import shown_name

if TYPE_CHECKING:
    from mvad.options import MethodOptions

Sides = tuple[int, int]  # height and width in pixels


def measure_sizes(
    images: pa.Table, options: MethodOptions, spec: BackboneSpec, *, windows: bool, one_for_all: bool = False
) -> dict[str, ImageSize]:
    """The input size of each category of a manifest: that of its training images, or if it has none of all its images.

    ``windows`` says whether the methods can look through windows. With ``one_for_all``, all categories get the size
    that suits all images together. UsageError if the backbone cannot take images of a size, or they are too large.
    """
    categories = pc.unique(images["category"]).to_pylist()
    found: dict[str, list[Sides]] = {category: [] for category in categories}
    if options.keeps_shape:
        found = measure_categories(images, image_sides, options)
    if one_for_all:
        of_all = list(itertools.chain.from_iterable(found.values()))
        found = dict.fromkeys(categories, of_all)
    return {
        category: input_size(sides, options, spec, windows=windows, category=category)
        for category, sides in found.items()
    }


def input_size(
    sides: Sequence[Sides], options: MethodOptions, spec: BackboneSpec, *, windows: bool, category: str
) -> ImageSize:
    """The input size for images of some sides; for other parameters and errors see `measure_sizes`."""
    size = options.size_for(*_typical(sides), spec.cell, windows=windows)
    spec.check_size(size)
    if size.whole_level is not None:
        spec.check_size(size.whole_level)
    try:
        check_size(size)
    except ValueError as error:
        raise UsageError(
            f"the images of {shown_name(category)} are too large for a model ({error}); give a smaller --scale."
        ) from error
    return size


def image_sides(
    uris: Sequence[str], max_pixels: int, first_page: bool, keys: storage.Keys | None = None
) -> list[Sides]:
    """Height and width of the upright images that can be read, with the ``keys`` of object storage."""

    def measure(uri: str) -> Sides | None:
        try:
            width, height = measure_file(uri, max_pixels, first_page=first_page)
        except ImageError:
            return None
        return height, width

    return [sides for sides in storage.parallel_map(measure, uris) if sides is not None]


def _typical(sides: Sequence[Sides]) -> tuple[float, float]:
    """Height and width with the median aspect ratio and area of some images; 1 x 1 if there is none."""
    if not sides:
        return 1, 1
    half_aspect = statistics.median(math.log(width / height) for height, width in sides) / 2
    side = math.exp(statistics.median(math.log(height * width) for height, width in sides) / 2)
    return side * math.exp(-half_aspect), side * math.exp(half_aspect)
