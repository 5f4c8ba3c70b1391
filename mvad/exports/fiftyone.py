"""Score rows as a data set of FiftyOne, for ``fiftyone.Dataset.from_json``: https://docs.voxel51.com."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from mvad import storage
from mvad.exports.rows import json_items
from mvad.exports.yolo import CLASS

TEXTS = ("image_id", "category", "night", "error", "model_id")
NUMBERS = ("score", "p_value", "threshold")
COPIED = (*TEXTS, *NUMBERS)
COLUMNS = (*COPIED, "uri", "split", "label", "defect", "status", "verdict", "width", "height", "regions")
_FIELDS = "fiftyone.core.fields."
_LABEL = f"{_FIELDS}EmbeddedDocumentField(fiftyone.core.labels.{{}})"
FIELDS = {
    "filepath": f"{_FIELDS}StringField",
    "tags": f"{_FIELDS}ListField({_FIELDS}StringField)",
    "metadata": f"{_FIELDS}EmbeddedDocumentField(fiftyone.core.metadata.ImageMetadata)",
    "ground_truth": _LABEL.format("Classification"),
    "verdict": _LABEL.format("Classification"),
    "regions": _LABEL.format("Detections"),
    **dict.fromkeys(TEXTS, f"{_FIELDS}StringField"),
    **dict.fromkeys(NUMBERS, f"{_FIELDS}FloatField"),
}


def fiftyone_document(batches: Iterable[pa.RecordBatch]) -> Iterator[bytes]:
    """Give the parts of one JSON document of all images, from their rows with the columns `COLUMNS`.

    The verdict and what is known of the image are classifications, the regions detections whose boxes are shares of
    the image's sides. Peaks of a map are no probabilities: they are the attribute ``peak``, not the confidence.
    """
    head = {"name": "mvad", "media_type": "image", "sample_fields": FIELDS, "info": {}}
    yield json.dumps(head).encode()[:-1] + b', "samples": ['
    yield from json_items(batches, _sample)
    yield b"\n]}\n"


def _sample(row: Mapping[str, Any]) -> dict[str, Any]:
    sample: dict[str, Any] = {"filepath": storage.readable(row["uri"]), "tags": [row["split"], row["status"]]}
    sample |= {name: row[name] for name in COPIED}
    sample |= {"verdict": _classification(row["verdict"]), **dict.fromkeys(("metadata", "ground_truth", "regions"))}
    if row["label"] is not None:
        sample["ground_truth"] = _classification("good" if not row["label"] else row["defect"] or CLASS)
    if row["width"] and row["height"]:
        sample["metadata"] = {"_cls": "ImageMetadata", "width": row["width"], "height": row["height"]}
        if row["regions"] is not None:
            boxes = [_detection(region, row["width"], row["height"]) for region in row["regions"]]
            sample["regions"] = {"_cls": "Detections", "detections": boxes}
    return sample


def _classification(label: str | None) -> dict[str, Any] | None:
    return None if label is None else {"_cls": "Classification", "label": label}


def _detection(region: Mapping[str, Any], width: int, height: int) -> dict[str, Any]:
    box = [region["x"] / width, region["y"] / height, region["width"] / width, region["height"] / height]
    numbers = {name: region[name] for name in ("area", "peak", "mean")}
    return {"_cls": "Detection", "label": CLASS, "bounding_box": box, **numbers}
