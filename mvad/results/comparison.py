"""The table of a comparison: one row per method, number of shots and category, then the mean of its categories."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from mvad.console import Reporter, number
from mvad.results.summary import MEAN, mean_of

MAX_SHOWN_CATEGORIES = 6  # columns of categories in a printed table
SCHEMA = pa.schema(
    [
        pa.field("method", pa.string(), nullable=False),
        pa.field("shots", pa.int64()),  # training images per category; null: all
        pa.field("backbone", pa.string()),
        pa.field("category", pa.string(), nullable=False),  # the last row of a method is the mean
        pa.field("repeats", pa.int64()),  # fits that the numbers are means of
        pa.field("n_train", pa.float64()),
        pa.field("image_auroc", pa.float64()),
        pa.field("image_auroc_sd", pa.float64()),  # over the repeats; null where there is one
        pa.field("pixel_auroc", pa.float64()),
        pa.field("pixel_aupro", pa.float64()),
        pa.field("fit_seconds", pa.float64()),  # of the actors' time, extraction included, and of the fit itself
        pa.field("score_seconds", pa.float64()),  # of the actors' time, with the extraction that methods share
        pa.field("model_bytes", pa.float64()),
        pa.field("note", pa.string()),  # why there is no number
    ]
)
_SUMMED = ("n_train", "fit_seconds", "score_seconds", "model_bytes")
_AVERAGED = ("image_auroc", "pixel_auroc", "pixel_aupro", *_SUMMED)


def comparison_table(
    runs: Mapping[tuple[str, int | None], Sequence[str]],
    cells: Mapping[tuple[str, str], Mapping[str, Any]],
    reasons: Mapping[str, str],
    categories: Sequence[str],
) -> pa.Table:
    """The rows of the table.

    ``runs`` has the names of the runs of each method and number of shots (None: all images), ``cells`` what is known of
    each run's name and category, and ``reasons`` why a method could not run, by its name.
    """
    rows: list[dict[str, Any]] = []
    for (method, shots), names in runs.items():
        line = {"method": method, "shots": shots}
        line_rows = []
        for category in categories:
            repeats = [cells[name, category] for name in names if (name, category) in cells]
            row = {**line, "category": category, **_over_repeats(repeats), "note": reasons.get(method)}
            notes = [cell["note"] for cell in repeats if cell["image_auroc"] is None and cell["note"]]
            line_rows.append(row | {"note": "; ".join(dict.fromkeys(notes))} if notes else row)
        rows += [*line_rows, {**line, **_mean_row(line_rows)}]
    return pa.Table.from_pylist(rows, SCHEMA)


def _over_repeats(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    scores = [cell["image_auroc"] for cell in cells if cell["image_auroc"] is not None]
    row: dict[str, Any] = {name: mean_of(cells, name) for name in _AVERAGED}
    row |= {"repeats": len(scores), "backbone": cells[0]["backbone"] if cells else None}
    row["image_auroc_sd"] = float(np.std(scores, ddof=1)) if len(scores) > 1 else None
    return row


def _mean_row(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means of the metrics over the categories that have them, sums of the rest."""
    mean: dict[str, Any] = {"category": MEAN, "backbone": rows[0]["backbone"]}
    for name in _AVERAGED:
        values = [row[name] for row in rows if row[name] is not None]
        mean[name] = None if not values else sum(values) if name in _SUMMED else float(np.mean(values))
    missing = [row["category"] for row in rows if row["image_auroc"] is None]
    return mean | {"note": f"without {', '.join(missing)}"} if missing else mean


def show_comparison(rows: Sequence[dict[str, Any]], categories: Sequence[str], report: Reporter) -> None:
    """Print one line per method and number of shots, one column per category."""
    lines: dict[tuple[str, int | None], list[dict[str, Any]]] = {}  # the last row of each is the mean
    for row in rows:
        lines.setdefault((row["method"], row["shots"]), []).append(row)
    with_shots = any(shots is not None for _, shots in lines)
    for start in range(0, len(categories), MAX_SHOWN_CATEGORIES):
        shown = categories[start : start + MAX_SHOWN_CATEGORIES]
        is_last = start + MAX_SHOWN_CATEGORIES >= len(categories)
        cells = []
        for (method, shots), (*line_rows, mean) in lines.items():
            by_category = {row["category"]: row for row in line_rows}
            line = [method] + [str(shots or "all")] * with_shots
            line += [number(by_category[name]["image_auroc"], 3, "failed") for name in shown]
            if is_last:
                line += [number(mean["image_auroc"], 3)] * (len(categories) > 1) + [number(mean["pixel_auroc"], 3)]
                line += [number(mean[name], 0) for name in ("fit_seconds", "score_seconds")]
                line += [number(mean["model_bytes"] and mean["model_bytes"] / 1e6, 1)]
            cells.append(line)
        ends = [*[MEAN] * (len(categories) > 1), "pixel", "fit s", "score s", "MB"] if is_last else []
        report.table(["method"], [*["shots"] * with_shots, *shown, *ends], cells)
    report.result("image AUROC per category and their mean, mean pixel AUROC; total seconds and megabytes")
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in itertools.chain.from_iterable(line_rows[:-1] for line_rows in lines.values()):
        if row["image_auroc"] is None and row["note"]:
            reasons.setdefault((row["method"], row["note"]), []).append(row["category"])
    for (method, note), failed in reasons.items():
        named = "" if set(failed) == set(categories) else f" on {', '.join(dict.fromkeys(failed))}"
        report.result(f"{method} failed{named}: {note}")
