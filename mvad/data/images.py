"""Decode image files to RGB pixels of the model's size."""

import functools
import io
import re
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageChops

from mvad import storage
from mvad.data.augmentation import allowed_flips, vary
from mvad.data.image_size import ImageSize
from mvad.errors import ImageError, UsageError, one_line

Batch = dict[str, NDArray[Any]]  # columns of a batch, one entry per image

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
MAX_MASK_PIXELS = 1_000_000_000
MAX_BYTES_PER_PIXEL = 8  # uncompressed 16-bit RGBA
MAX_METADATA_BYTES = 16 << 20
MAX_JPEG_SCANS = 500  # far more than encoders write; a scan has few bytes, but decoding it takes a pass over the image
JPEG_SCAN = re.compile(rb"\xff\xda\x00[\x08\x0a\x0c\x0e]")  # marker and header length of a scan of 1 to 4 components
UPRIGHT = {  # what turns an image upright, by its EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def load_image(uri: str, size: ImageSize, max_pixels: int) -> tuple[NDArray[np.uint8], int, int]:
    """Read one image in the model's size.

    Returns the pixels of `resize_and_crop`, and the width and height of the upright image before resizing. ImageError
    if the file cannot be read or decoded, or is larger than allowed; the message says which.
    """
    image = read_image(uri, max_pixels)
    return resize_and_crop(image, size), image.width, image.height


def read_image(uri: str, max_pixels: int) -> Image.Image:
    """Read an image in its own size, RGB and upright; ImageError as for `load_image`."""
    return decode(read_file(uri, max_pixels), max_pixels)


def read_mask(uri: str, max_pixels: int = MAX_MASK_PIXELS) -> Image.Image:
    """Read a ground-truth mask in its own size, grey (mode L), black where good; ImageError as for `load_image`.

    A URI that ends in ``/`` is that of a folder of masks, one per defect of the image: they are read as one.
    """
    if uri.endswith("/"):
        return _read_masks(uri, max_pixels)
    return read_image(uri, max_pixels).convert("L")


def _read_masks(folder: str, max_pixels: int) -> Image.Image:
    try:
        uris = sorted(file.uri for file in storage.list_files(folder))
    except UsageError as error:
        raise ImageError(f"the masks cannot be listed: {error}") from error
    if not uris:
        raise ImageError("the folder of masks is empty")
    return functools.reduce(ImageChops.lighter, (read_mask(uri, max_pixels) for uri in uris))


def load_mask(uri: str, size: ImageSize) -> NDArray[np.bool_]:
    """Read a mask in the model's size: (crop, crop) bool, True where defective; ImageError as for `load_image`."""
    resized = read_mask(uri).resize((size.resize, size.resize), Image.Resampling.NEAREST)
    return np.asarray(crop_centre(resized, size.crop)) > 0


def read_file(uri: str, max_pixels: int) -> bytes:
    """Read an image file; ImageError if it is larger than any image of ``max_pixels`` pixels needs to be."""
    return storage.read_bytes(uri, limit=MAX_BYTES_PER_PIXEL * max_pixels + MAX_METADATA_BYTES)


def resize_and_crop(image: Image.Image, size: ImageSize) -> NDArray[np.uint8]:
    """Stretch an RGB image to ``size.resize`` pixels square, antialiased; crop its centre: (crop, crop, 3) uint8."""
    return np.asarray(crop_centre(_resize(image, size), size.crop))


def _resize(image: Image.Image, size: ImageSize) -> Image.Image:
    return image.resize((size.resize, size.resize), Image.Resampling.BILINEAR)


def crop_centre(image: Image.Image, side: int) -> Image.Image:
    """Crop the square of ``side`` pixels in the centre of an image."""
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def decode_batch(batch: Batch, size: ImageSize, max_pixels: int, flips: str = "none") -> Batch:
    """Read and decode a batch of images.

    It has the columns ``uri`` and, optionally, ``variant``: 0 for the image itself, otherwise the seed of a random
    variant of it (`augmentation.vary`) with ``flips``: ``auto`` or one of `options.FLIPS`. Returned are also ``pixels``
    (n, crop, crop, 3) uint8, ``width`` and ``height`` int32 before resizing, ``file_size`` int64 in bytes, and
    ``error``. An image that cannot be used has a reason, in one line, as its ``error``; its pixels and numbers are 0.
    Otherwise ``error`` is empty.
    """
    count = len(batch["uri"])
    pixels = np.zeros((count, size.crop, size.crop, 3), np.uint8)
    sizes = np.zeros((count, 2), np.int32)
    n_bytes = np.zeros(count, np.int64)
    errors = np.full(count, "", object)

    @functools.lru_cache(maxsize=1)  # the variants of an image are next to each other
    def load(uri: str) -> tuple[Image.Image, int, int, int]:
        data = read_file(uri, max_pixels)
        image = decode(data, max_pixels)
        return _resize(image, size), image.width, image.height, len(data)

    @functools.lru_cache(maxsize=1)
    def flips_of(uri: str) -> str:
        return allowed_flips(load(uri)[0]) if flips == "auto" else flips

    for row, (uri, variant) in enumerate(zip(batch["uri"], batch.get("variant", [0] * count), strict=True)):
        try:
            image, *sizes[row], n_bytes[row] = load(uri)
        except ImageError as error:
            errors[row] = one_line(error)
            continue
        if variant:
            image = vary(image, int(variant), flips_of(uri))
        pixels[row] = np.asarray(crop_centre(image, size.crop))
    width, height = sizes.T
    return {**batch, "pixels": pixels, "width": width, "height": height, "file_size": n_bytes, "error": errors}


def decode(data: bytes, max_pixels: int) -> Image.Image:
    """Decode an image file to 8-bit RGB, upright.

    16-bit grey keeps its full range (65,535 becomes 255). Transparent parts become black. The first of several frames
    is taken. Embedded colour profiles are not applied. ImageError if the data are empty, not an image of a known
    format, damaged, or of more than ``max_pixels`` pixels.
    """
    if not data:
        raise ImageError("the file is empty")
    try:
        with warnings.catch_warnings():
            # The size is checked below, against the user's limit; Pillow's warnings about odd metadata help nobody.
            warnings.simplefilter("ignore")
            Image.MAX_IMAGE_PIXELS = None
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            if image.width * image.height > max_pixels:
                raise ImageError(
                    f"decodes to {image.width} x {image.height} pixels, more than --max-pixels {max_pixels}"
                )
            if image.format in ("JPEG", "MPO") and len(JPEG_SCAN.findall(data)) > MAX_JPEG_SCANS:
                raise ImageError(f"has more than {MAX_JPEG_SCANS} scans, which would take very long to decode")
            return _to_rgb(_upright(image))
    except ImageError:
        raise
    except Image.UnidentifiedImageError:
        raise ImageError(f"not an image of a known kind ({', '.join(FORMATS)})") from None
    except Exception as error:  # decoders raise nearly anything on damaged data
        raise ImageError(f"cannot be decoded: {error or type(error).__name__}") from error


def _upright(image: Image.Image) -> Image.Image:
    # Not ImageOps.exif_transpose: it also rewrites the EXIF data, which fails if an unrelated entry is odd.
    image.load()
    transpose = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return image if transpose is None else image.transpose(transpose)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ImageError("has floating-point pixels, whose range is unknown; convert it to 8 or 16 bits")
    if image.mode.startswith("I"):
        return Image.fromarray((np.clip(np.asarray(image), 0, 65535) / 257).round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, image).convert("RGB")
    return image.convert("RGB")
