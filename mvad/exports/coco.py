"""Regions as a COCO object detection file: https://cocodataset.org/#format-data."""

import json
import tempfile
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from mvad.exports.yolo import CLASS
from mvad.version import VERSION

CHUNK_BYTES = 1 << 20


def coco_document(tables: Iterable[tuple[str, pa.Table]], categories: Collection[str]) -> Iterator[bytes]:
    """Give the parts of one JSON document of all images, from the category and score rows of each of some files.

    Every category has a class of its own, called `CLASS`, with the category as its supercategory. Images and regions
    are numbered from 1. The document is made in the memory that one file of rows takes: annotations, which follow the
    images, wait in a temporary file.
    """
    class_ids = {category: number for number, category in enumerate(categories, 1)}
    classes = [{"id": class_ids[name], "name": CLASS, "supercategory": name} for name in categories]
    head = {"info": {"description": "regions found by mvad", "version": VERSION}, "licenses": [], "categories": classes}
    n_images = n_annotations = 0
    with tempfile.TemporaryFile() as annotations:
        yield json.dumps(head).encode()[:-1] + b', "images": ['
        for category, rows in tables:
            images, lines = [], []
            for row in rows.to_pylist():
                n_images += 1
                images.append(_image(row, n_images))
                for region in row["regions"]:
                    n_annotations += 1
                    lines.append(annotation_of(region, n_annotations, n_images, class_ids[category]))
            yield _items(images, n_images == len(images))
            annotations.write(_items(lines, n_annotations == len(lines)))
        yield b'],\n"annotations": ['
        annotations.seek(0)
        while part := annotations.read(CHUNK_BYTES):
            yield part
        yield b"]}\n"


def _items(values: list[dict[str, Any]], is_first: bool) -> bytes:
    """Items of a JSON list, after a comma unless they are its first."""
    text = ",\n".join(json.dumps(value, allow_nan=False) for value in values)
    return f"{'' if is_first or not values else ','}\n{text}".encode()


def _image(row: dict[str, Any], number: int) -> dict[str, Any]:
    return {"id": number, "file_name": row["image_id"], "width": row["width"], "height": row["height"]}


def annotation_of(region: dict[str, Any], number: int, image: int, class_id: int) -> dict[str, Any]:
    """The annotation of a region, with the ids of itself, its image and its class."""
    left, top, width, height = (region[name] for name in ("x", "y", "width", "height"))
    right, bottom = left + width, top + height
    return {
        "id": number,
        "image_id": image,
        "category_id": class_id,
        "bbox": [left, top, width, height],
        "area": region["area"],
        "iscrowd": 0,
        "score": float(str(np.float32(region["peak"]))),  # the shortest decimal
        "segmentation": [[left, top, right, top, right, bottom, left, bottom]],
    }
