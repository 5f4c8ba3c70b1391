"""Score rows from the table of images and what is known of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mvad.results.schema import SCORES
from mvad.results.store import write_part

MAX_ROWS_PER_FILE = 256


def score_table(images: pa.Table, run_id: str, columns: Mapping[str, Any]) -> pa.Table:
    """Rows of the score table: the manifest's columns of images, then ``columns``, null where there is none."""
    count = len(images)
    known = {name: images[name] for name in SCORES.names if name in images.column_names}
    known |= {"run_id": pa.array([run_id] * count, pa.string()), **columns}
    return pa.table({field.name: known.get(field.name, pa.nulls(count, field.type)) for field in SCORES}, SCORES)


def write_error_rows(out: str, images: pa.Table, reasons: Mapping[str, str], run_id: str) -> None:
    """Write score rows for images that cannot be scored, with the reason for each image id."""
    for category in pc.unique(images["category"]).to_pylist():
        rows = images.filter(pc.equal(images["category"], category))
        for start in range(0, len(rows), MAX_ROWS_PER_FILE):
            part = rows.slice(start, MAX_ROWS_PER_FILE)
            errors = pa.array([reasons[name] for name in part["image_id"].to_pylist()], pa.string())
            status = pa.array(["error"] * len(part), pa.string())
            write_part(out, score_table(part, run_id, {"status": status, "error": errors}))
