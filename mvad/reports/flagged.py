"""The list of flagged and uncertain images, of all categories together: the most anomalous first, and bounded."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from mvad import results, storage
from mvad.results.verdicts import UNCERTAIN
from mvad.storage.text import visible

MAX_LISTED = 5_000  # images
MAX_LISTED_BYTES = 2_000_000  # of their names and paths
PAGE_LENGTH = 50  # rows of a page of the list, and of what is there without a script
COLUMNS = (
    *("image_id", "uri", "category", "label", "defect", "score", "threshold", "p_value", "is_anomaly", "verdict"),
)
ORDER = [("excess", "descending"), ("score", "descending"), ("category", "ascending"), ("image_id", "ascending")]


class Flagged(NamedTuple):
    """The most anomalous of the flagged and uncertain images of some categories."""

    rows: pa.Table  # COLUMNS and ``excess``, the score in thresholds; null where the threshold is not positive
    n_images: int  # with those that are left out


def read_flagged(source: str, category: str) -> Flagged:
    """Read the flagged and uncertain test images of a category of the results in ``source`` (a URI)."""
    noted = (pads.field("is_anomaly") == True) | (pads.field("verdict") == UNCERTAIN)  # noqa: E712
    tested = (pads.field("status") == "ok") & (pads.field("split") == "test")
    rows = results.read_scores(source, COLUMNS, category, noted & tested)
    scores, thresholds = (rows[name].cast(pa.float64()).to_numpy() for name in ("score", "threshold"))
    comparable = np.isfinite(thresholds) & (thresholds > 0)
    excess = np.divide(scores, thresholds, out=np.full(len(rows), np.nan), where=comparable)
    rows = rows.append_column("excess", pa.array(excess, pa.float64(), from_pandas=True))
    return Flagged(_most_anomalous(rows), len(rows))


def merge(parts: Sequence[Flagged]) -> Flagged:
    """The lists of several categories as one, cut to so many images and bytes as a page holds."""
    if not parts:
        return Flagged(pa.table({name: [] for name in (*COLUMNS, "excess")}), 0)
    rows = _most_anomalous(pa.concat_tables([part.rows for part in parts]))
    lengths = pc.add(pc.binary_length(rows["image_id"]), pc.binary_length(rows["uri"])).to_numpy()
    n_fitting = int(np.searchsorted(np.cumsum(lengths), MAX_LISTED_BYTES, side="right"))
    return Flagged(rows.slice(0, n_fitting), sum(part.n_images for part in parts))


def _most_anomalous(rows: pa.Table) -> pa.Table:
    return rows.take(pc.sort_indices(rows, ORDER)[:MAX_LISTED])


def plain_rows(flagged: Flagged) -> list[dict[str, Any]]:
    """The rows that a page shows without a script."""
    return flagged.rows.slice(0, PAGE_LENGTH).to_pylist()


def as_data(flagged: Flagged) -> dict[str, Any]:
    """The list as a page embeds it: names and paths as they are shown, what repeats by its number.

    A row is name, path, number of the category, whether it is uncertain, label, number of the defect, score, excess and
    p-value; if rows have a night, also its number and that of what reviewers say. A path that ends with the name is
    the number of the folder before it.
    """
    categories: dict[str, int] = {}
    defects: dict[str, int] = {}
    folders: dict[str, int] = {}
    nights: dict[str, int] = {}
    opinions: dict[str, int] = {}
    rows = []
    for row in flagged.rows.to_pylist():
        name, path = visible(row["image_id"]), visible(storage.readable(row["uri"]))
        folder = path.removesuffix(f"/{name}")
        rows.append(
            [
                name,
                path if folder == path else _number(folders, folder),
                _number(categories, visible(row["category"])),
                int(not row["is_anomaly"]),
                row["label"],
                _number(defects, visible(row["defect"])) if row["label"] == 1 and row["defect"] else None,
                *(None if row[key] is None else float(f"{row[key]:.6g}") for key in ("score", "excess", "p_value")),
            ]
        )
        if "night" in row:
            said = None if row["said"] is None else _number(opinions, visible(row["said"]))
            rows[-1] += [_number(nights, row["night"]), said]
    return {
        "categories": list(categories),
        "defects": list(defects),
        "folders": list(folders),
        "nights": list(nights),
        "opinions": list(opinions),
        "rows": rows,
        "page": PAGE_LENGTH,
    }


def _number(numbers: dict[str, int], text: str) -> int:
    return numbers.setdefault(text, len(numbers))
