"""The bit depth of images whose files do not state it, by category: measured on the images that it is fitted to.

Scores must not depend on what else is in an image or a batch, so the range of values is the same for all images of a
category, and the model records it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from mvad import storage
from mvad.data.images import BIT_DEPTHS, file_may_be_deep, largest_value, read_file
from mvad.errors import ImageError
from mvad.pipeline.measuring import measure_categories

if TYPE_CHECKING:
    from mvad.options import BitDepthOptions


def measure_bit_depths(images: pa.Table, options: BitDepthOptions) -> dict[str, int]:
    """The bit depth of each category of a manifest: that of ``--bit-depth``, or measured in tasks.

    It is measured on the category's training images, or if there are none on all of its images.
    """
    if options.bit_depth != "auto":
        return dict.fromkeys(pc.unique(images["category"]).to_pylist(), int(options.bit_depth))
    return measure_categories(images, measure_bit_depth, options)


def measure_bit_depth(uris: Sequence[str], max_pixels: int, first_page: bool, keys: storage.Keys | None = None) -> int:
    """The smallest of `BIT_DEPTHS` that holds the values of images whose files do not state their range.

    Images that cannot be read, with the ``keys`` of object storage, do not count.
    """
    deep = itertools.compress(uris, storage.parallel_map(file_may_be_deep, uris))
    return depth_of(_largest_value(uri, max_pixels, first_page) for uri in deep)


def depth_of(largest_values: Iterable[int]) -> int:
    """The smallest of `BIT_DEPTHS` that holds some values, below 2^16."""
    largest = max(largest_values, default=0)
    return next(depth for depth in BIT_DEPTHS if largest < 1 << depth)


def _largest_value(uri: str, max_pixels: int, first_page: bool) -> int:
    try:
        return largest_value(read_file(uri, max_pixels), max_pixels, first_page=first_page)
    except ImageError:
        return 0
