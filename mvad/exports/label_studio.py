"""Score rows as tasks of Label Studio with predictions to correct: https://labelstud.io/guide/predictions.

The project needs the labels `CONFIG`. It shows files of its own machine where it is started with
``LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true`` and ``LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT=/``, from folders that
are local storage of the project.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote

import pyarrow as pa

from mvad import storage
from mvad.exports.rows import json_items
from mvad.exports.yolo import CLASS

COLUMNS = (
    "night",
    "image_id",
    "uri",
    "category",
    "score",
    "p_value",
    "verdict",
    "width",
    "height",
    "regions",
    "model_id",
)
LOCAL_FILES = "/data/local-files/?d="
CONFIG = f"""\
<View>
  <Image name="image" value="$image"/>
  <RectangleLabels name="regions" toName="image"><Label value="{CLASS}"/></RectangleLabels>
  <Choices name="verdict" toName="image">
    <Choice value="good"/><Choice value="uncertain"/><Choice value="anomalous"/>
  </Choices>
</View>
"""


def label_studio_document(batches: Iterable[pa.RecordBatch]) -> Iterator[bytes]:
    """Give the parts of one JSON list of tasks, from rows with the columns `COLUMNS`.

    Boxes are in percent of the image's sides. The score of a prediction, which must be between 0 and 1, is 1 - p-value,
    so it is larger for images that are more abnormal; the image's own score is in the task's data.
    """
    yield b"["
    yield from json_items(batches, _task)
    yield b"\n]\n"


def _task(row: Mapping[str, Any]) -> dict[str, Any]:
    uri = row["uri"]
    image = (
        LOCAL_FILES + quote(storage.local_path(uri).lstrip(b"/")) if storage.is_local(uri) else storage.readable(uri)
    )
    data = {"image": image, **{name: row[name] for name in ("image_id", "category", "night", "score")}}
    found = [_rectangle(region, row, number) for number, region in enumerate(row["regions"] or ())]
    if row["verdict"] is not None:
        of_image = {"id": "verdict", "from_name": "verdict", "to_name": "image", "type": "choices"}
        found.append({**of_image, "value": {"choices": [row["verdict"]]}})
    prediction = {"model_version": row["model_id"] or "mvad", "result": found}
    if row["p_value"] is not None:
        prediction["score"] = 1 - row["p_value"]
    return {"data": data, "predictions": [prediction] if found else []}


def _rectangle(region: Mapping[str, Any], row: Mapping[str, Any], number: int) -> dict[str, Any]:
    sides = {"x": row["width"], "width": row["width"], "y": row["height"], "height": row["height"]}
    value = {name: 100 * region[name] / side for name, side in sides.items()}
    return {
        "id": f"region-{number}",
        "from_name": "regions",
        "to_name": "image",
        "type": "rectanglelabels",
        "original_width": row["width"],
        "original_height": row["height"],
        "image_rotation": 0,
        "meta": {"text": [f"peak {region['peak']}, mean {region['mean']}"]},
        "value": {**value, "rotation": 0, "rectanglelabels": [CLASS]},
    }
