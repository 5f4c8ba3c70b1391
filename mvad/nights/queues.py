"""Which images a reviewer sees next, and in which order."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal, NamedTuple

import pyarrow as pa

from mvad.nights.labels import Drawn, current_labels
from mvad.nights.rows import NightRows

Among = Literal["flagged", "passed", "all"]
SHOWN = (
    *("folder", "night", "category", "image_id", "score", "p_value", "threshold", "is_anomaly", "verdict", "status"),
    *("error", "width", "height", "regions", "anomalous_area", "model_id"),
)
WHERE = {"flagged": "is_anomaly", "passed": "is_anomaly = false", "all": "is_anomaly IS NOT NULL"}
ORDER = {
    # The score in thresholds: categories have scores of their own.
    "score": "score / nullif(threshold, 0) DESC NULLS LAST, score DESC",
    "threshold": "abs(score - threshold) / nullif(abs(threshold), 0) NULLS LAST",
    # The same for everybody and in every session, and no matter which images are in the question.
    "random": "md5(concat(image_id, '/', night, '/', category))",
    "chosen": "night, category",
}


class Queue(NamedTuple):
    """Images to review, and how many there are with those that are left out of the answer."""

    rows: list[dict[str, Any]]
    n_images: int


def review_queue(
    nights: NightRows,
    labels: pa.Table,
    drawn: Drawn,
    among: Among = "all",
    *,
    categories: Collection[str] | None = None,
    search: str = "",
    with_labelled: bool = False,
    limit: int = 50,
    offset: int = 0,
) -> Queue:
    """Images that await a label, those to look at first at the front.

    Images that were drawn at random are no sample of all any more if those that somebody has labelled otherwise are
    missing: here, only those are left out that were labelled after being drawn at random.
    """
    done = [
        (row["folder"], row["image_id"])
        for row in current_labels(labels).select(["folder", "image_id", "drawn"]).to_pylist()
        if drawn != "random" or row["drawn"] == "random"
    ]
    folders = {nights.name_of(folder): folder for folder in nights.files}
    labelled = [(folders[name], image_id) for name, image_id in done if name in folders]
    condition = f"status = 'ok' AND {WHERE[among]}"
    parameters: dict[str, Any] = {}
    if categories is not None:
        condition += " AND category IN (SELECT unnest($categories))"
        parameters["categories"] = sorted(categories)
    if search:
        condition += " AND contains(lower(image_id), lower($search))"
        parameters["search"] = search
    if labelled and not with_labelled:
        condition += " AND (folder || chr(10) || image_id) NOT IN (SELECT unnest($labelled))"
        parameters["labelled"] = [f"{folder}\n{image_id}" for folder, image_id in labelled]
    counted = nights.query(f"SELECT count(*) AS n FROM rows WHERE {condition}", parameters or None)
    order = f"{ORDER[drawn]}, folder, category, image_id"
    page = f"ORDER BY {order} LIMIT {int(limit)} OFFSET {int(offset)}"
    table = nights.query(f"SELECT {', '.join(SHOWN)} FROM rows WHERE {condition} {page}", parameters or None)
    return Queue(_rows(nights, table), counted["n"][0].as_py())


def find_image(nights: NightRows, image_id: str) -> dict[str, Any] | None:
    """The whole row of an image; None if there is none."""
    found = nights.query("SELECT * FROM rows WHERE image_id = $image_id LIMIT 1", {"image_id": image_id})
    return _rows(nights, found)[0] if len(found) else None


def _rows(nights: NightRows, table: pa.Table) -> list[dict[str, Any]]:
    return [row | {"folder": nights.name_of(row["folder"])} for row in table.to_pylist()]
