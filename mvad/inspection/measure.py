"""What is measured of one image file: format, size, light, sharpness, fingerprints; knows no Ray."""

from __future__ import annotations

import hashlib
import io
import warnings
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mvad import storage
from mvad.data.image_size import ImageSize
from mvad.data.images import FORMATS, Batch, decode, resize_and_crop
from mvad.errors import ImageError

THUMBNAIL = 24  # side of the grey square that images are compared by
SHARPNESS_SIDE = 1024  # pixels; blur that is gone at this size is none for a model either
PHOTO_SIDE, PHOTO_QUALITY = 128, 82  # of the small JPEG pictures on the page
METADATA_BYTES = 16 << 20


class Measured(NamedTuple):
    """What is known of one image; of a file that cannot be read only ``error`` and what was learnt before it failed.

    Attributes
    ----------
    format, mode
        As Pillow names them: ``PNG``, ``JPEG``; ``RGB``, ``L``, ``I;16``.
    width, height
        In pixels, as a person sees the image.
    bytes
        Of the file.
    brightness, contrast
        Mean and standard deviation of the grey values, 0 to 255.
    sharpness
        Standard deviation of the grey values' Laplacian (4 neighbours) over their own, which makes it independent of
        light and contrast; of the image reduced to at most ``SHARPNESS_SIDE`` pixels.
    file_digest, pixel_digest : (32,) uint8
        SHA-256 of the file, and of its size and RGB pixels.
    thumbnail : (THUMBNAIL, THUMBNAIL) uint8
        Grey, stretched to a square.
    error
        Why the file cannot be used; "" if it can.
    """

    format: str
    mode: str
    width: int
    height: int
    bytes: int
    brightness: float
    contrast: float
    sharpness: float
    file_digest: NDArray[np.uint8]
    pixel_digest: NDArray[np.uint8]
    thumbnail: NDArray[np.uint8]
    error: str


UNKNOWN = Measured(
    format="",
    mode="",
    width=0,
    height=0,
    bytes=-1,
    brightness=np.nan,
    contrast=np.nan,
    sharpness=np.nan,
    file_digest=np.zeros(32, np.uint8),
    pixel_digest=np.zeros(32, np.uint8),
    thumbnail=np.zeros((THUMBNAIL, THUMBNAIL), np.uint8),
    error="",
)
TYPES: dict[str, Any] = {
    "format": object,
    "mode": object,
    "width": np.int32,
    "height": np.int32,
    "bytes": np.int64,
    "brightness": np.float32,
    "contrast": np.float32,
    "sharpness": np.float32,
    "file_digest": np.uint8,
    "pixel_digest": np.uint8,
    "thumbnail": np.uint8,
    "error": object,
}


def measure(uri: str, max_pixels: int) -> tuple[Measured, Image.Image | None]:
    """Measure one image file; gives its RGB pixels too, or None if it cannot be used."""
    known: dict[str, Any] = {}
    try:
        data = _read(uri, max_pixels)
        known |= {"bytes": len(data), "file_digest": _digest(data)}
        image = decode(data, max_pixels)
    except ImageError as error:
        return UNKNOWN._replace(**known, error=" ".join(str(error).split())), None
    grey = image.convert("L")
    small = grey.copy()
    small.thumbnail((SHARPNESS_SIDE, SHARPNESS_SIDE), Image.Resampling.BOX)
    values = np.asarray(small)
    known["format"], known["mode"] = _kind(data)
    return (
        Measured(
            **known,
            width=image.width,
            height=image.height,
            brightness=float(values.mean()),
            contrast=float(values.std()),
            sharpness=sharpness(values),
            pixel_digest=_digest(f"{image.width} {image.height} ".encode(), image.tobytes()),
            thumbnail=np.asarray(grey.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)),
            error="",
        ),
        image,
    )


def _read(uri: str, max_pixels: int) -> bytes:
    return storage.read_bytes(uri, limit=8 * max_pixels + METADATA_BYTES)


def _digest(*parts: bytes) -> NDArray[np.uint8]:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return np.frombuffer(digest.digest(), np.uint8)


def _kind(data: bytes) -> tuple[str, str]:
    """Format and mode of a file that has been decoded before: its header is read again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return "JPEG" if image.format == "MPO" else image.format or "", image.mode


def sharpness(grey: NDArray[np.uint8]) -> float:
    """Standard deviation of the Laplacian over that of the values themselves (at least 1); see `Measured`."""
    edge = np.pad(grey.astype(np.int16), 1, mode="edge")
    inner = edge[1:-1, 1:-1]
    laplacian = 4 * inner - edge[:-2, 1:-1] - edge[2:, 1:-1] - edge[1:-1, :-2] - edge[1:-1, 2:]
    return float(laplacian.std() / max(1.0, float(inner.std())))


def measure_batch(batch: Batch, size: ImageSize | None, max_pixels: int) -> Batch:
    """Measure images: the columns of `Measured`, ``row``, and with a ``size`` their ``pixels`` for a backbone.

    Parameters
    ----------
    batch
        With columns ``row`` and ``uri``.
    """
    found = []
    side = 0 if size is None else size.crop
    pixels = np.zeros((len(batch["uri"]), side, side, 3), np.uint8)
    for number, uri in enumerate(batch["uri"]):
        measured, image = measure(uri, max_pixels)
        found.append(measured)
        if image is not None and size is not None:
            pixels[number] = resize_and_crop(image, size)
    columns: Batch = {name: np.array([getattr(one, name) for one in found], dtype) for name, dtype in TYPES.items()}
    return {"row": batch["row"], **columns, **({} if size is None else {"pixels": pixels})}


def photo(uri: str, max_pixels: int) -> bytes:
    """A small JPEG picture, of at most ``PHOTO_SIDE`` pixels at its longer side; empty if the image cannot be read."""
    try:
        image = decode(_read(uri, max_pixels), max_pixels)
    except ImageError:
        return b""
    image.thumbnail((PHOTO_SIDE, PHOTO_SIDE), Image.Resampling.LANCZOS)
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=PHOTO_QUALITY)
    return sink.getvalue()


def photo_batch(batch: Batch, max_pixels: int) -> Batch:
    """Column ``photo`` beside ``row``."""
    return {"row": batch["row"], "photo": np.array([photo(uri, max_pixels) for uri in batch["uri"]], object)}
