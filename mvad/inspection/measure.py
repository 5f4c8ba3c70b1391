"""Measure one image file: format, size, brightness, sharpness, digests. Independent of Ray."""

import hashlib
import io
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mvad.data.image_size import ImageSize
from mvad.data.images import FORMATS, FULL_DEPTH, Batch, decode, read_file, read_image, resize_and_crop
from mvad.errors import ImageError, one_line
from mvad.html.thumbnails import encode
from mvad.process import without_warnings
from mvad.search.fingerprints import FINGERPRINT_SIDE, fingerprint

MAX_SHARPNESS_SIDE = 1024  # pixels; blur that is invisible at this size does not matter to a model either
THUMBNAIL_SIDE, THUMBNAIL_QUALITY = 128, 82  # of the JPEG pictures on the page


class Measurement(NamedTuple):
    """What is known of one image; of an unreadable file only ``error`` and what was learned before it failed."""

    format: str = ""  # format and mode as Pillow names them: PNG, JPEG; RGB, L, I;16
    mode: str = ""
    width: int = 0  # in pixels, of the upright image
    height: int = 0
    bytes: int = -1  # size of the file; -1 if it cannot be opened
    brightness: float = np.nan  # mean and standard deviation of the grey values, 0 to 255
    contrast: float = np.nan
    sharpness: float = np.nan  # see `sharpness`; of the image reduced to ``MAX_SHARPNESS_SIDE`` pixels
    file_digest: NDArray[np.uint8] = np.zeros(32, np.uint8)  # SHA-256 of the file
    pixel_digest: NDArray[np.uint8] = np.zeros(32, np.uint8)  # SHA-256 of the size and the RGB pixels
    fingerprint: NDArray[np.uint8] = np.zeros((FINGERPRINT_SIDE, FINGERPRINT_SIDE), np.uint8)  # small and grey
    error: str = ""  # why the file cannot be used


DTYPES: dict[str, Any] = {
    **dict.fromkeys(("format", "mode", "error"), object),
    **dict.fromkeys(("width", "height"), np.int32),
    "bytes": np.int64,
    **dict.fromkeys(("brightness", "contrast", "sharpness"), np.float32),
    **dict.fromkeys(("file_digest", "pixel_digest", "fingerprint"), np.uint8),
}


def measure(
    uri: str, max_pixels: int, bit_depth: int = FULL_DEPTH, *, first_page: bool = False
) -> tuple[Measurement, Image.Image | None]:
    """Measure one image file; also returns its RGB pixels, or None if it cannot be used.

    The parameters are those of `images.decode`.
    """
    values: dict[str, Any] = {}
    try:
        data = read_file(uri, max_pixels)
        values |= {"bytes": len(data), "file_digest": _sha256(data)}
        image = decode(data, max_pixels, bit_depth=bit_depth, first_page=first_page)
    except ImageError as error:
        return Measurement(**values, error=one_line(error)), None
    grey = image.convert("L")
    reduced = grey.copy()
    reduced.thumbnail((MAX_SHARPNESS_SIDE, MAX_SHARPNESS_SIDE), Image.Resampling.BOX)
    pixels = np.asarray(reduced)
    values["format"], values["mode"] = _format_and_mode(data)
    measurement = Measurement(
        **values,
        width=image.width,
        height=image.height,
        brightness=float(pixels.mean()),
        contrast=float(pixels.std()),
        sharpness=sharpness(pixels),
        pixel_digest=_sha256(f"{image.width} {image.height} ".encode(), image.tobytes()),
        fingerprint=fingerprint(grey),
    )
    return measurement, image


def _sha256(*parts: bytes) -> NDArray[np.uint8]:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return np.frombuffer(digest.digest(), np.uint8)


def _format_and_mode(data: bytes) -> tuple[str, str]:
    """Format and mode of a file that has been decoded already, from its header."""
    with without_warnings(), Image.open(io.BytesIO(data), formats=FORMATS) as image:
        return "JPEG" if image.format == "MPO" else image.format or "", image.mode


def sharpness(grey: NDArray[np.uint8]) -> float:
    """Standard deviation of the Laplacian (4 neighbours) of grey values, divided by their own (at least 1).

    The division makes it independent of brightness and contrast.
    """
    padded = np.pad(grey.astype(np.int16), 1, mode="edge")
    inner = padded[1:-1, 1:-1]
    laplacian = 4 * inner - padded[:-2, 1:-1] - padded[2:, 1:-1] - padded[1:-1, :-2] - padded[1:-1, 2:]
    return float(laplacian.std() / max(1.0, float(inner.std())))


def measure_batch(
    batch: Batch, size: ImageSize | None, max_pixels: int, bit_depths: Mapping[str, int], first_page: bool
) -> Batch:
    """Measure a batch of ``row``, ``uri`` and ``category``: ``row``, `Measurement`, and with a ``size`` ``pixels``.

    ``bit_depths`` are by category.
    """
    measurements = []
    height, width = (0, 0) if size is None else size.crop
    pixels = np.zeros((len(batch["uri"]), height, width, 3), np.uint8)
    for number, (uri, category) in enumerate(zip(batch["uri"], batch["category"], strict=True)):
        measurement, image = measure(uri, max_pixels, bit_depths[category], first_page=first_page)
        measurements.append(measurement)
        if image is not None and size is not None:
            pixels[number] = resize_and_crop(image, size)
    columns: Batch = {
        name: np.array([getattr(measurement, name) for measurement in measurements], dtype)
        for name, dtype in DTYPES.items()
    }
    return {"row": batch["row"], **columns, **({} if size is None else {"pixels": pixels})}


def thumbnail(uri: str, max_pixels: int, bit_depth: int = FULL_DEPTH, *, first_page: bool = False) -> bytes:
    """A JPEG picture whose longer side has at most ``THUMBNAIL_SIDE`` pixels; empty if the image cannot be read."""
    try:
        image = read_image(uri, max_pixels, bit_depth=bit_depth, first_page=first_page)
    except ImageError:
        return b""
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
    return encode(image, "JPEG", quality=THUMBNAIL_QUALITY)


def thumbnail_batch(batch: Batch, max_pixels: int, bit_depths: Mapping[str, int], first_page: bool) -> Batch:
    """Columns ``row`` and ``picture``; ``bit_depths`` are by category."""
    pictures = [
        thumbnail(uri, max_pixels, bit_depths[category], first_page=first_page)
        for uri, category in zip(batch["uri"], batch["category"], strict=True)
    ]
    return {"row": batch["row"], "picture": np.array(pictures, object)}
