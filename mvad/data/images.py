"""Bytes of an image file to RGB pixels of the model's size."""

from __future__ import annotations

import functools
import io
import re
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from mvad import storage
from mvad.data.augmentation import allowed_flips, vary
from mvad.data.image_size import ImageSize
from mvad.errors import ImageError

Batch = dict[str, NDArray[Any]]  # columns of a batch in the flow, one entry an image

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
MASK_PIXELS = 1_000_000_000
JPEG_SCANS = 500  # far above what encoders write; a scan is few bytes, yet a pass over the whole image
SCAN_START = re.compile(rb"\xff\xda\x00[\x08\x0a\x0c\x0e]")  # marker and length of a header with 1 to 4 components
UPRIGHT = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def load_image(uri: str, size: ImageSize, max_pixels: int) -> tuple[NDArray[np.uint8], int, int]:
    """Read one image.

    Returns
    -------
    pixels : (crop, crop, 3) uint8
        RGB, stretched to ``size.resize`` squared with antialiasing, then its centre.
    width, height : int
        Of the image as a person sees it, in pixels, before resizing.

    Raises
    ------
    ImageError
        The file cannot be read or decoded, or is larger than allowed; the message says which.
    """
    image, width, height, _ = _load_resized(uri, size, max_pixels)
    return np.asarray(centre(image, size.crop)), width, height


def read_image(uri: str, max_pixels: int) -> Image.Image:
    """Read an image in its own size, RGB and upright; ImageError as for `load_image`."""
    return decode(_read(uri, max_pixels), max_pixels)


def _read(uri: str, max_pixels: int) -> bytes:
    # Eight bytes a pixel is the widest kind read here (16-bit RGBA), uncompressed; the rest is for metadata.
    return storage.read_bytes(uri, limit=8 * max_pixels + (16 << 20))


def read_mask(uri: str, max_pixels: int = MASK_PIXELS) -> Image.Image:
    """Read a ground-truth mask in its own size, grey (mode L), black where good; ImageError as for `load_image`."""
    return decode(_read(uri, max_pixels), max_pixels).convert("L")


def _load_resized(uri: str, size: ImageSize, max_pixels: int) -> tuple[Image.Image, int, int, int]:
    """An image brought to a size, the width and height it had, and the bytes of its file."""
    data = _read(uri, max_pixels)
    image = decode(data, max_pixels)
    resized = image.resize((size.resize, size.resize), Image.Resampling.BILINEAR)
    return resized, image.width, image.height, len(data)


def decode_batch(batch: Batch, size: ImageSize, max_pixels: int, flips: str = "none") -> Batch:
    """Read and decode images; one that cannot be used stays black and has its reason in ``error``.

    Where column ``variant`` is not 0, it is the seed of the variant that is wanted (`augmentation.vary`); ``flips`` is
    ``auto`` or one of `options.FLIPS`.
    """
    count = len(batch["uri"])
    pixels = np.zeros((count, size.crop, size.crop, 3), np.uint8)
    shape = np.zeros((count, 2), np.int32)
    sizes = np.zeros(count, np.int64)
    errors = [""] * count
    # The variants of an image lie next to each other.
    load = functools.lru_cache(maxsize=1)(lambda uri: _load_resized(uri, size, max_pixels))
    allowed = functools.lru_cache(maxsize=1)(lambda uri: allowed_flips(load(uri)[0]) if flips == "auto" else flips)
    for number, (uri, variant) in enumerate(zip(batch["uri"], batch.get("variant", [0] * count), strict=True)):
        try:
            image, *shape[number], sizes[number] = load(uri)
        except ImageError as error:
            errors[number] = " ".join(str(error).split())  # one line, whatever a decoder or an object store said
            continue
        if variant:
            image = vary(image, int(variant), allowed(uri))
        pixels[number] = np.asarray(centre(image, size.crop))
    return {
        **batch,
        "pixels": pixels,
        "width": shape[:, 0],
        "height": shape[:, 1],
        "bytes": sizes,
        "error": np.array(errors, object),
    }


def load_mask(uri: str, size: ImageSize) -> NDArray[np.bool_]:
    """Read a ground-truth mask, brought to the model's geometry: (crop, crop) bool, True where defective.

    Raises
    ------
    ImageError
        As for `load_image`.
    """
    resized = read_mask(uri).resize((size.resize, size.resize), Image.Resampling.NEAREST)
    return np.asarray(centre(resized, size.crop)) > 0


def decode(data: bytes, max_pixels: int) -> Image.Image:
    """Decode an image file to 8-bit RGB, upright.

    16-bit grey keeps its full range (65,535 becomes 255), transparent parts become black, and of several frames the
    first is taken. Embedded colour profiles are not applied.

    Raises
    ------
    ImageError
        Empty, not an image of a known kind, damaged, or of more than ``max_pixels`` pixels.
    """
    if not data:
        raise ImageError("the file is empty")
    try:
        with warnings.catch_warnings():
            # Size is checked below, against the user's limit; Pillow's notes on odd metadata help nobody here.
            warnings.simplefilter("ignore")
            Image.MAX_IMAGE_PIXELS = None
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            if image.width * image.height > max_pixels:
                raise ImageError(
                    f"decodes to {image.width} x {image.height} pixels, more than --max-pixels {max_pixels}"
                )
            if image.format in ("JPEG", "MPO") and len(SCAN_START.findall(data)) > JPEG_SCANS:
                raise ImageError(f"has more than {JPEG_SCANS} scans, which would take very long to decode")
            return _to_rgb(_upright(image))
    except ImageError:
        raise
    except Image.UnidentifiedImageError:
        raise ImageError(f"not an image of a known kind ({', '.join(FORMATS)})") from None
    except Exception as error:  # decoders raise nearly anything on damaged data
        raise ImageError(f"cannot be decoded: {error or type(error).__name__}") from error


def _upright(image: Image.Image) -> Image.Image:
    # Not ImageOps.exif_transpose: it also writes the EXIF data anew, which fails where an unrelated entry is odd.
    image.load()
    turn = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return image if turn is None else image.transpose(turn)


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


def resize_and_crop(image: Image.Image, size: ImageSize) -> NDArray[np.uint8]:
    """Bring an RGB image to the model's geometry, as `load_image` does: (crop, crop, 3) uint8."""
    resized = image.resize((size.resize, size.resize), Image.Resampling.BILINEAR)
    return np.asarray(centre(resized, size.crop))


def centre(image: Image.Image, side: int) -> Image.Image:
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))
