"""Read image files as RGB pixels of the model's size."""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mvad import storage
from mvad.data.augmentation import NO_FLIPS, Augmentation, allowed_flips, is_square
from mvad.data.image_size import FAST, ImageSize
from mvad.data.images.ignoring import blank
from mvad.data.images.opening import decoding, open_image, reduce_jpeg, upright_size
from mvad.data.images.samples import FULL_DEPTH, may_be_deep, to_rgb
from mvad.errors import ImageError, one_line

Batch = dict[str, NDArray[Any]]  # columns of a batch, one entry per image

MAX_BYTES_PER_PIXEL = 8  # uncompressed 16-bit RGBA
MAX_METADATA_BYTES = 16 << 20
FAST_FACTOR = 2  # sides of what fast decoding gives, at least, in sides of what it is resized to
HEAD_BYTES = 1 << 18  # of a file, which nearly always tell how large its image is
DEPTH_BYTES = 32  # of a file, which tell whether its samples may have more than 8 bits
NO_BIT_DEPTHS: Mapping[str, int] = {}


def load_image(uri: str, size: ImageSize, max_pixels: int) -> tuple[NDArray[np.uint8], int, int]:
    """Read one image in the model's size.

    Returns the pixels of `resize_and_crop`, and the width and height of the upright image before resizing. ImageError
    if the file cannot be read or decoded, or is larger than allowed; the message says which.
    """
    return load_pixels(read_file(uri, max_pixels), size, max_pixels)


def read_image(uri: str, max_pixels: int, *, bit_depth: int = FULL_DEPTH, first_page: bool = False) -> Image.Image:
    """Read an image in its own size, RGB and upright; parameters and ImageError as for `decode`."""
    return decode(read_file(uri, max_pixels), max_pixels, bit_depth=bit_depth, first_page=first_page)


def read_file(uri: str, max_pixels: int) -> bytes:
    """Read an image file; ImageError if it is larger than any image of ``max_pixels`` pixels needs to be."""
    return storage.read_bytes(uri, limit=MAX_BYTES_PER_PIXEL * max_pixels + MAX_METADATA_BYTES)


def file_may_be_deep(uri: str) -> bool:
    """`may_be_deep` of a file, of which only the first bytes are read; False if it cannot be read."""
    try:
        return may_be_deep(storage.read_bytes(uri, DEPTH_BYTES, head=True))
    except ImageError:
        return False


def measure_file(uri: str, max_pixels: int, *, first_page: bool = False) -> tuple[int, int]:
    """Width and height of the upright image in a file, whose pixels are not decoded; ImageError as for `decode`."""
    try:
        return _measure(storage.read_bytes(uri, HEAD_BYTES, head=True), max_pixels, first_page)
    except ImageError:  # the file may say it further on
        return _measure(read_file(uri, max_pixels), max_pixels, first_page)


def _measure(data: bytes, max_pixels: int, first_page: bool) -> tuple[int, int]:
    with decoding(data):
        return upright_size(open_image(data, max_pixels, first_page=first_page))


def decode_resized(
    data: bytes, size: ImageSize, max_pixels: int, *, bit_depth: int | None = FULL_DEPTH, first_page: bool = False
) -> tuple[Image.Image, int, int]:
    """Decode an image file as RGB pixels stretched to ``size.resize``, as ``size.decode`` says.

    Also returns width and height of the upright image in the file. Other parameters and ImageError as for `decode`.
    """
    with decoding(data):
        image = open_image(data, max_pixels, first_page=first_page)
        width, height = upright_size(image)
        if size.decode == FAST:
            reduce_jpeg(image, *(FAST_FACTOR * side for side in reversed(size.resize)))
        return resize(to_rgb(image, data, max_pixels, bit_depth, first_page), size), width, height


def load_pixels(
    data: bytes, size: ImageSize, max_pixels: int, *, bit_depth: int | None = FULL_DEPTH
) -> tuple[NDArray[np.uint8], int, int]:
    """What a model sees of an image file, (height, width, 3) uint8, and the size of the image: `decode_resized`."""
    image, width, height = decode_resized(data, size, max_pixels, bit_depth=bit_depth)
    return np.asarray(crop_centre(image, size)), width, height


def resize_and_crop(image: Image.Image, size: ImageSize) -> NDArray[np.uint8]:
    """Stretch an RGB image to ``size.resize``, antialiased; crop its centre: (height, width, 3) uint8.

    What ``size`` ignores is painted over first.
    """
    return np.asarray(crop_centre(resize(image, size), size))


def resize(image: Image.Image, size: ImageSize) -> Image.Image:
    """Stretch an RGB image to ``size.resize``, antialiased; what ``size`` ignores is painted over first."""
    height, width = size.resize
    image = blank(image, size)
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BILINEAR)


def crop_centre(image: Image.Image, size: ImageSize) -> Image.Image:
    """Crop the centre that the model sees of an image that has been resized."""
    if image.size == (size.width, size.height):
        return image
    top, left = size.margins
    return image.crop((left, top, left + size.width, top + size.height))


def vary_resized(
    image: Image.Image, size: ImageSize, augmentation: Augmentation, seed: int, flips: str, width: int, height: int
) -> Image.Image:
    """A random variant of an image that has been resized from ``width`` x ``height``: `Augmentation.apply`."""
    turnable = is_square(width, height) and image.width == image.height
    image = augmentation.apply(image, seed, flips, is_square=turnable)
    # What is ignored looks the same in every image.
    return image if augmentation.kinds is None else blank(image, size)


def decode_batch(
    batch: Batch,
    size: ImageSize,
    max_pixels: int,
    augmentation: Augmentation = NO_FLIPS,
    *,
    bit_depths: Mapping[str, int] = NO_BIT_DEPTHS,
    first_page: bool = False,
) -> Batch:
    """Read and decode a batch of images.

    It has the columns ``uri``, ``category`` for ``bit_depths`` by category (default: `FULL_DEPTH`) and, optionally,
    ``variant``: 0 for the image itself, otherwise the seed of a random variant of it (`Augmentation.apply`).
    ``first_page`` is as for `decode`. Returned are also ``pixels``
    (n, height, width, 3) uint8, ``width`` and ``height`` int32 before resizing, ``file_size`` int64 in bytes, and
    ``error``. An image that cannot be used has a reason, in one line, as its ``error``; its pixels and numbers are 0.
    Otherwise ``error`` is empty.
    """
    count = len(batch["uri"])
    pixels = np.zeros((count, size.height, size.width, 3), np.uint8)
    sizes = np.zeros((count, 2), np.int32)
    n_bytes = np.zeros(count, np.int64)
    errors = np.full(count, "", object)

    @functools.lru_cache(maxsize=1)  # the variants of an image are next to each other
    def load(uri: str, bit_depth: int) -> tuple[Image.Image, int, int, int]:
        data = read_file(uri, max_pixels)
        decoded = decode_resized(data, size, max_pixels, bit_depth=bit_depth, first_page=first_page)
        return *decoded, len(data)

    @functools.lru_cache(maxsize=1)
    def flips_of(uri: str, bit_depth: int) -> str:
        return allowed_flips(load(uri, bit_depth)[0]) if augmentation.looks_at_flips else augmentation.flips

    categories, variants = batch.get("category", [""] * count), batch.get("variant", [0] * count)
    for row, (uri, category, variant) in enumerate(zip(batch["uri"], categories, variants, strict=True)):
        bit_depth = bit_depths.get(category, FULL_DEPTH)
        try:
            image, *sizes[row], n_bytes[row] = load(uri, bit_depth)
        except ImageError as error:
            errors[row] = one_line(error)
            continue
        if variant:
            image = vary_resized(
                image, size, augmentation, int(variant), flips_of(uri, bit_depth), *sizes[row].tolist()
            )
        pixels[row] = np.asarray(crop_centre(image, size))
    width, height = sizes.T
    return {**batch, "pixels": pixels, "width": width, "height": height, "file_size": n_bytes, "error": errors}


def decode(
    data: bytes, max_pixels: int, *, bit_depth: int | None = FULL_DEPTH, first_page: bool = False
) -> Image.Image:
    """Decode an image file to 8-bit RGB, upright.

    Samples of more than 8 bits are scaled to the range that the file states, or else to that of ``bit_depth`` bits
    (`samples`; if it is None, that is an ImageError). Transparent parts become black. Embedded colour profiles are not
    applied. ImageError if the data are empty, not an image of a known format, damaged, of more than ``max_pixels``
    pixels, of several pages (unless ``first_page``), or have values outside of the range.
    """
    with decoding(data):
        image = open_image(data, max_pixels, first_page=first_page)
        return to_rgb(image, data, max_pixels, bit_depth, first_page)
