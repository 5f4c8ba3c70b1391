"""Which images a reviewer sees next, and in which order."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import pyarrow as pa

from mvad.nights.labels import Drawn
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


class Question(NamedTuple):
    """Which images are asked for, and in which order."""

    drawn: Drawn
    among: Among = "all"
    categories: tuple[str, ...] | None = None
    search: str = ""


class Ordered(NamedTuple):
    """The first images that a question asks for, in its order, with the columns `SHOWN`; and how many there are."""

    table: pa.Table
    n_images: int


class Queue(NamedTuple):
    """Images to review, and how many there are with those that are left out of the answer."""

    rows: list[dict[str, Any]]
    n_images: int


def ordered_images(nights: NightRows, question: Question, count: int) -> Ordered:
    """The first ``count`` images of a question, labelled or not."""
    condition = f"status = 'ok' AND {WHERE[question.among]}"
    parameters: dict[str, Any] = {}
    if question.categories is not None:
        condition += " AND category IN (SELECT unnest($categories))"
        parameters["categories"] = list(question.categories)
    if question.search:
        condition += " AND contains(lower(image_id), lower($search))"
        parameters["search"] = question.search
    counted = nights.query(f"SELECT count(*) AS n FROM rows WHERE {condition}", parameters or None)
    order = f"{ORDER[question.drawn]}, folder, category, image_id LIMIT {count:d}"
    table = nights.query(f"SELECT {', '.join(SHOWN)} FROM rows WHERE {condition} ORDER BY {order}", parameters or None)
    names = pa.array([nights.name_of(folder) for folder in table["folder"].to_pylist()], pa.string())
    return Ordered(table.set_column(0, "folder", names), counted["n"][0].as_py())


def next_images(ordered: Ordered, current: pa.Table | None, drawn: Drawn, limit: int, offset: int) -> Queue:
    """Images that await a label, in their order; ``current`` are the labels that count, None to leave out no image.

    Images that were drawn at random are no sample of all any more if those that somebody has labelled otherwise are
    missing: of a question at random, only those are left out that were labelled after being drawn so. Labelled images
    beyond those in ``ordered`` are among those that are counted.
    """
    if current is None:
        rows = ordered.table.slice(offset, limit).to_pylist()
        return Queue(rows, ordered.n_images)
    done = {
        (row["folder"], row["image_id"])
        for row in current.select(["folder", "image_id", "drawn"]).to_pylist()
        if drawn != "random" or row["drawn"] == "random"
    }
    keys = zip(ordered.table["folder"].to_pylist(), ordered.table["image_id"].to_pylist(), strict=True)
    left = [number for number, key in enumerate(keys) if key not in done]
    rows = ordered.table.take(pa.array(left[offset : offset + limit], pa.int64())).to_pylist()
    return Queue(rows, ordered.n_images - (len(ordered.table) - len(left)))
