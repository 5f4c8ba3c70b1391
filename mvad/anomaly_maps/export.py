"""Files of anomaly maps, one per image and as large as the image, for people and for other programs."""

import hashlib
import io
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mvad.anomaly_maps.colours import Scale, overlay
from mvad.anomaly_maps.geometry import map_on_image, seen_box
from mvad.data.image_size import ImageSize
from mvad.data.images import read_image
from mvad.errors import ImageError

SUFFIXES = {"overlay": ".overlay.png", "png16": ".map.png", "npy": ".map.npy"}
MAX_NAME_BYTES = 200  # well below what file systems allow
MAX_GREY = 65535


@dataclass(frozen=True)
class MapStyle:
    """How the maps of a category are drawn: ``format`` is a key of `SUFFIXES`, ``scale`` the range of map values."""

    format: str
    size: ImageSize
    scale: Scale
    max_pixels: int
    bit_depth: int

    def describe(self) -> dict[str, Any]:
        """Say, for programs that read the files, how map values became colours or grey levels."""
        facts: dict[str, Any] = {"low": self.scale.low, "high": self.scale.high}
        if self.format == "overlay":
            facts["colours"] = "begin at low and end at high"
            if self.scale.has_threshold:
                facts["colours"] += "; the middle, orange and outlined, is where maps of flagged images begin"
        if self.format == "png16":
            facts["patch_score"] = f"low + (grey - 1) / {MAX_GREY - 1} * (high - low); grey 0 was not seen by the model"
        return facts


def draw(row: dict[str, Any], model_map: NDArray[np.float32], style: MapStyle) -> bytes:
    """Draw the map of an image in the format of its category.

    ``row`` has the ``uri``, ``width`` and ``height`` of the upright image; the map is as large as the model's input,
    float32. ImageError if the image cannot be read, has changed, or has too many pixels.
    """
    file = io.BytesIO()
    if style.format == "npy":
        np.save(file, full_map(row, model_map, style.size, style.max_pixels), allow_pickle=False)
        return file.getvalue()
    if style.format == "overlay":
        picture = _draw_overlay(row, model_map, style)
    else:
        values = full_map(row, model_map, style.size, style.max_pixels)
        grey = 1 + style.scale.shares(values) * (MAX_GREY - 1)
        picture = Image.fromarray(np.nan_to_num(grey, nan=0).round().astype(np.uint16))
    picture.save(file, "PNG", compress_level=4)
    return file.getvalue()


def _draw_overlay(row: dict[str, Any], model_map: NDArray[np.float32], style: MapStyle) -> Image.Image:
    image = read_image(row["uri"], style.max_pixels, bit_depth=style.bit_depth, first_page=True)
    if image.size != (row["width"], row["height"]):
        raise ImageError(
            f"has changed since it was scored: {image.width} x {image.height} pixels instead of "
            f"{row['width']} x {row['height']}"
        )
    return overlay(image, model_map, style.size, style.scale)


def full_map(
    row: dict[str, Any], model_map: NDArray[np.float32], size: ImageSize, max_pixels: int
) -> NDArray[np.float32]:
    """Place a map in the full upright image: (height, width) float32, NaN where the model did not see it.

    ``row`` has the ``width`` and ``height`` of the upright image; the map is as large as the model's input, float32.
    ImageError if the image has more than ``max_pixels`` pixels.
    """
    width, height = row["width"], row["height"]
    if width * height > max_pixels:
        raise ImageError(f"has {width} x {height} pixels, more than --max-pixels {max_pixels}")
    box = seen_box(size, width, height)
    full = np.full((height, width), np.nan, np.float32)
    full[box.top : box.bottom, box.left : box.right] = map_on_image(model_map, size, width, height)
    return full


def map_path(image_id: str, format: str) -> str:
    """Return the relative path of the file for an image's map: see `file_path`."""
    return file_path(image_id, SUFFIXES[format], SUFFIXES.values())


def file_path(name: str, suffix: str, suffixes: Collection[str]) -> str:
    """Return the relative path of a file that is made from an image: never outside its folder, different for each name.

    ``name`` is that of the image, with ``/`` between folders; ``suffixes`` are those of all files of the folder.
    Folders stay folders. Characters that names cannot contain, or that lead elsewhere, are percent-encoded. A name too
    long for file systems is cut and ends in a part of its hash.
    """
    *folders, last = name.split("/")
    return "/".join([*(_folder_name(folder, suffixes) for folder in folders), _safe_name(last) + suffix])


def _folder_name(name: str, suffixes: Collection[str]) -> str:
    safe = _safe_name(name)
    for suffix in suffixes:
        if safe.endswith(suffix):  # a file could have the same path
            safe = safe.removesuffix(suffix) + suffix.replace(".", "%2E")
    return safe


def _safe_name(name: str) -> str:
    if not name.strip("."):
        return name.replace(".", "%2E") or "%"
    safe = re.sub(r'[\x00-\x1f\x7f%~\\:*?"<>|]', lambda match: f"%{ord(match[0]):02X}", name)
    if len(safe.encode()) <= MAX_NAME_BYTES:
        return safe
    digest = hashlib.sha256(name.encode()).hexdigest()[:32]
    return safe.encode()[: MAX_NAME_BYTES - len(digest) - 1].decode(errors="ignore") + "~" + digest
