"""What reviewers said of images as a COCO object detection file: https://cocodataset.org/#format-data."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

from mvad.exports.coco import annotation_of
from mvad.nights.labels import full_name
from mvad.nights.rows import NightRows
from mvad.version import VERSION

DEFECT = "defect"
ROWS = "SELECT folder, image_id, width, height, regions FROM rows WHERE image_id IN (SELECT unnest($ids))"


def labels_document(nights: NightRows, labels: pa.Table) -> bytes:
    """One JSON document of all images that have a label; ``labels`` are the current ones.

    Images that show a defect have their regions as annotations, whose class is the kind of the defect, or `DEFECT`
    where nobody named it. Good images, and those that reviewers are not sure of, have none: ``judgement`` tells them
    apart. Images are named by the folder of their night and their own name.
    """
    said = labels.to_pylist()
    found = nights.query(ROWS, {"ids": sorted({row["image_id"] for row in said})}).to_pylist() if said else []
    rows = {(nights.name_of(row["folder"]), row["image_id"]): row for row in found}
    kinds = sorted({row["defect"] or DEFECT for row in said if row["judgement"] == "defect"})
    class_ids = {name: number for number, name in enumerate(kinds, 1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for label in said:
        row = rows.get((label["folder"], label["image_id"]))
        if row is None or row["width"] is None:  # its rows have gone
            continue
        number, name = len(images) + 1, full_name(label)
        size = {"width": row["width"], "height": row["height"]}
        said_of = {"judgement": label["judgement"], "reviewer": label["reviewer"]}
        images.append({"id": number, "file_name": name, **size, **said_of})
        if label["judgement"] == "defect":
            class_id = class_ids[label["defect"] or DEFECT]
            annotations += [
                annotation_of(region, annotation, number, class_id)
                for annotation, region in enumerate(row["regions"] or (), len(annotations) + 1)
            ]
    document = {
        "info": {"description": "labels of reviewers; regions found by mvad", "version": VERSION},
        "licenses": [],
        "categories": [{"id": number, "name": name, "supercategory": DEFECT} for name, number in class_ids.items()],
        "images": images,
        "annotations": annotations,
    }
    return json.dumps(document, allow_nan=False).encode()
