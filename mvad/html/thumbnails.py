"""Pictures inside a page, as ``data:`` URIs."""

import base64
import io
from typing import Any

from PIL import Image


def fit_within(width: int, height: int, max_side: int, min_side: int = 1) -> tuple[int, int]:
    """Width and height of an image shrunk to ``max_side``; its shorter side keeps ``min_side`` if it was as long."""
    shrink = min(1.0, max_side / max(width, height))
    width, height = (max(round(length * shrink), min(length, min_side)) for length in (width, height))
    return width, height


def encode(image: Image.Image, file_format: str, **options: Any) -> bytes:
    """The file of an image; options as for Pillow's ``Image.save``."""
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def data_uri(data: bytes, media_type: str) -> str:
    """A ``data:`` URI of a file of some type, such as ``image/jpeg``."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def webp_uri(image: Image.Image, quality: int, method: int = 4) -> str:
    """An RGB or RGBA image as WebP in a ``data:`` URI; ``quality`` to 100, ``method`` from 0 (fast) to 6 (small)."""
    return data_uri(encode(image, "WEBP", quality=quality, method=method), "image/webp")
