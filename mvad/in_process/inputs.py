"""Images as people have them in Python: paths, file contents, PIL images and arrays."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mvad import storage
from mvad.data.image_size import ImageSize
from mvad.data.images import (
    FULL_DEPTH,
    decode,
    decode_resized,
    file_may_be_deep,
    largest_value,
    may_be_deep,
    measure_file,
    read_file,
    resize,
)
from mvad.data.images.opening import decoding, open_image, upright, upright_size
from mvad.data.images.samples import on_black
from mvad.errors import ImageError, UsageError

ImageLike: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image | NDArray[np.uint8]"
SINGLE = (str, os.PathLike, bytes, bytearray, Image.Image)
EIGHT_BITS = ("1", "L", "P", "RGB", "RGBA", "RGBX", "LA", "La", "PA", "RGBa", "CMYK", "YCbCr", "LAB", "HSV")


@dataclass(frozen=True)
class Reading:
    """How image files are read: see `images.decode`."""

    max_pixels: int
    bit_depth: int = FULL_DEPTH
    first_page: bool = False


def is_single(images: object) -> bool:
    """Whether these are one image, and not several."""
    if isinstance(images, np.ndarray):
        return images.ndim <= 3 and images.dtype.kind not in "OU"  # those are paths
    return isinstance(images, SINGLE)


def as_list(images: object) -> list[ImageLike]:
    """Several images as a list; UsageError if they are not images."""
    if not isinstance(images, Iterable):
        raise UsageError(f"a {type(images).__name__} is no image; give {_KINDS}, or a list of them.")
    found = list(images)
    for image in found:
        check(image)
    return found


_KINDS = "a path, the bytes of a file, a PIL image, or an array of (height, width, 3) uint8 RGB pixels"


def check(image: object) -> None:
    """UsageError if this is not an image, whatever its content."""
    if isinstance(image, SINGLE):
        return
    if not isinstance(image, np.ndarray):
        raise UsageError(f"a {type(image).__name__} is no image; give {_KINDS}.")
    has_shape = image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)
    if image.dtype != np.uint8 or not has_shape or not image.size:
        shape = " x ".join(map(str, image.shape))
        raise UsageError(f"an array of {shape} {image.dtype} is no image; give (height, width, 3) uint8 RGB pixels.")


def name_of(image: ImageLike, number: int) -> str:
    """What an image is called: its path, or its number."""
    return os.fspath(image) if isinstance(image, str | os.PathLike) else f"image {number}"


def _uri_of(image: ImageLike) -> str | None:
    """The URI of an image that is a path or a URI; else None."""
    return storage.to_uri(os.fspath(image)) if isinstance(image, str | os.PathLike) else None


def file_of(image: ImageLike, reading: Reading) -> bytes | None:
    """The content of the image's file; None if there are only pixels. ImageError if it cannot be read."""
    uri = _uri_of(image)
    if uri is not None:
        return read_file(uri, reading.max_pixels)
    return bytes(image) if isinstance(image, bytes | bytearray) else None


def largest_sample(image: ImageLike, reading: Reading) -> int:
    """The largest sample value of an image file of more than 8 bits whose range it does not state; otherwise 0."""
    uri = _uri_of(image)
    if uri is not None and not file_may_be_deep(uri):
        return 0
    try:
        data = file_of(image, reading)
        if data is None or not may_be_deep(data):
            return 0
        return largest_value(data, reading.max_pixels, first_page=reading.first_page)
    except ImageError:
        return 0


def sides_of(image: ImageLike, reading: Reading) -> tuple[int, int] | None:
    """Height and width of the upright image; None if it cannot be read."""
    uri = _uri_of(image)
    try:
        if uri is not None:
            width, height = measure_file(uri, reading.max_pixels, first_page=reading.first_page)
        elif (data := file_of(image, reading)) is None:
            width, height = _pixels(image, reading).size
        else:
            with decoding(data):
                width, height = upright_size(open_image(data, reading.max_pixels, first_page=reading.first_page))
    except ImageError:
        return None
    return height, width


def read_resized(image: ImageLike, size: ImageSize, reading: Reading) -> tuple[Image.Image, int, int]:
    """The image stretched to ``size.resize``, as a job reads it, and width and height of the upright one.

    ImageError if it cannot be used.
    """
    data = file_of(image, reading)
    if data is not None:
        return decode_resized(
            data, size, reading.max_pixels, bit_depth=reading.bit_depth, first_page=reading.first_page
        )
    picture = _pixels(image, reading)
    return resize(picture, size), picture.width, picture.height


def read_whole(image: ImageLike, reading: Reading) -> Image.Image:
    """The upright image in its own size, RGB; ImageError if it cannot be used."""
    data = file_of(image, reading)
    if data is None:
        return _pixels(image, reading)
    return decode(data, reading.max_pixels, bit_depth=reading.bit_depth, first_page=reading.first_page)


def _pixels(image: object, reading: Reading) -> Image.Image:
    """An RGB image of pixels, upright; ImageError if there are too many, or they have more than 8 bits."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(np.ascontiguousarray(image))
    assert isinstance(image, Image.Image)
    if image.width * image.height > reading.max_pixels:
        raise ImageError(f"has {image.width} x {image.height} pixels, more than max_pixels {reading.max_pixels}")
    if image.mode not in EIGHT_BITS:
        raise ImageError(f"is a PIL image of mode {image.mode}, whose range is not known; give the path of its file")
    with decoding(b""):
        return on_black(upright(image))
