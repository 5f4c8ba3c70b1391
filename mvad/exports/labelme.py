"""Regions as files of labelme, one per image: https://github.com/wkentaro/labelme."""

import json
import os
from typing import Any

import numpy as np

from mvad import storage
from mvad.exports.yolo import CLASS

VERSION = "5.5.0"  # of the format


def labelme_document(row: dict[str, Any], file: str) -> bytes:
    """Return the JSON document of an image from its score row, for the file ``file`` (a URI).

    ``imagePath`` leads from the file to the image where both are on this machine; otherwise it is the image's name, for
    a file that is put next to it.
    """
    shapes = [_shape(region) for region in row["regions"]]
    document: dict[str, Any] = {"version": VERSION, "flags": {}, "shapes": shapes, "imagePath": _image_path(row, file)}
    document |= {"imageData": None, "imageHeight": row["height"], "imageWidth": row["width"]}
    return json.dumps(document, indent=2, allow_nan=False).encode()


def _shape(region: dict[str, Any]) -> dict[str, Any]:
    left, top = region["x"], region["y"]
    numbers = {name: np.float32(region[name]) for name in ("peak", "mean")}
    return {
        "label": CLASS,
        "points": [[left, top], [left + region["width"], top + region["height"]]],
        "group_id": None,
        "description": ", ".join(f"{name} {value!s}" for name, value in numbers.items()),
        "shape_type": "rectangle",
        "flags": {},
        "mask": None,
    }


def _image_path(row: dict[str, Any], file: str) -> str:
    if not (storage.is_local(row["uri"]) and storage.is_local(file)):
        return row["image_id"].rpartition("/")[2]
    image, document = (os.fsdecode(storage.local_path(uri)) for uri in (row["uri"], file))
    return os.path.relpath(image, os.path.dirname(document))
