"""What a person reads after a comparison."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from mvad.comparison.variants import Line
from mvad.console import Reporter, number
from mvad.results.summary import MEAN

MAX_SHOWN_CATEGORIES = 6  # columns of categories in a printed table, or blocks of rows
TITLES = {"image_auroc": "image AUROC", "pixel_ap": "pixel AP", "pixel_aupro": "AUPRO"}

Rows = Mapping[Line, Sequence[Mapping[str, Any]]]  # the last row of a line is the mean


def show_comparison(rows: Sequence[Mapping[str, Any]], categories: Sequence[str], report: Reporter) -> None:
    """Print the rows of a comparison: metrics with their intervals if there are variants, else a line per method."""
    lines: dict[Line, list[Mapping[str, Any]]] = {}
    for row in rows:
        lines.setdefault(Line(row["method"], row["shots"], row["variant"]), []).append(row)
    if any(line.variant for line in lines):
        _show_intervals(lines, categories, report)
    else:
        _show_methods(lines, categories, report)
    reasons: dict[tuple[str, str], list[str]] = {}
    for line, line_rows in lines.items():
        for row in line_rows[:-1]:
            if row["image_auroc"] is None and row["note"]:
                reasons.setdefault((line.title, row["note"]), []).append(row["category"])
    for (title, note), failed in reasons.items():
        named = "" if set(failed) == set(categories) else f" on {', '.join(dict.fromkeys(failed))}"
        report.result(f"{title} failed{named}: {note}")


def _show_methods(lines: Rows, categories: Sequence[str], report: Reporter) -> None:
    """Print one line per method and number of shots, one column per category."""
    with_shots = any(line.shots is not None for line in lines)
    for start in range(0, len(categories), MAX_SHOWN_CATEGORIES):
        shown = categories[start : start + MAX_SHOWN_CATEGORIES]
        is_last = start + MAX_SHOWN_CATEGORIES >= len(categories)
        cells = []
        for line, (*line_rows, mean) in lines.items():
            by_category = {row["category"]: row for row in line_rows}
            cell = [line.method] + [str(line.shots or "all")] * with_shots
            cell += [number(by_category[name]["image_auroc"], 3, "failed") for name in shown]
            if is_last:
                cell += [number(mean["image_auroc"], 3)] * (len(categories) > 1) + [number(mean["pixel_auroc"], 3)]
                cell += [number(mean[name], 0) for name in ("fit_seconds", "score_seconds")]
                cell += [_megabytes(mean)]
            cells.append(cell)
        ends = [*[MEAN] * (len(categories) > 1), "pixel", "fit s", "score s", "MB"] if is_last else []
        report.table(["method"], [*["shots"] * with_shots, *shown, *ends], cells)
    report.result("image AUROC per category and their mean, mean pixel AUROC; total seconds and megabytes")


def _show_intervals(lines: Rows, categories: Sequence[str], report: Reporter) -> None:
    """Print one table per metric, whose rows of a category stand together, and one of seconds and bytes."""
    with_shots = any(line.shots is not None for line in lines)
    first = next(iter(lines)).title
    # Without all categories, their mean; it repeats that of a single one.
    places = [*range(len(categories))] * (len(categories) <= MAX_SHOWN_CATEGORIES) + [-1] * (len(categories) > 1)
    for metric, title in TITLES.items():
        if all(row[metric] is None for row in itertools.chain.from_iterable(lines.values())):
            continue
        cells = []
        for place in places:
            for line, rows in lines.items():
                row = rows[place]
                cell = [row["category"], line.title, *[str(line.shots or "all")] * with_shots, number(row[metric], 3)]
                cell += [_interval(row, metric), *_difference(row, metric)]
                cells.append([*cell, row[f"{metric}_conclusion"] or ""])
        numbers = [*["shots"] * with_shots, title, "95 % interval", f"- {first}", "95 % interval"]
        report.table(["category", "variant"], numbers, cells, [""])
    costs = []
    for line, (*_, mean) in lines.items():
        seconds = mean["seconds_per_image"]
        cell = [line.title, *[str(line.shots or "all")] * with_shots, number(mean["fit_seconds"], 0)]
        costs.append([*cell, number(seconds and 1000 * seconds, 1), _megabytes(mean)])
    report.table(["variant"], [*["shots"] * with_shots, "fit s", "score ms/image", "MB"], costs)
    if len(categories) > MAX_SHOWN_CATEGORIES:
        report.result(f"means of {len(categories)} categories, which compare.json has one by one")
    report.result(f"intervals by bootstrap over test images, the same for all; differences are those to {first}")


def _interval(row: Mapping[str, Any], name: str, sign: str = "") -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return "-" if low is None else f"{low:{sign}.3f} to {high:{sign}.3f}"


def _difference(row: Mapping[str, Any], metric: str) -> list[str]:
    value = row[f"{metric}_difference"]
    return [
        "" if value is None else f"{value:+.3f}",
        "" if value is None else _interval(row, f"{metric}_difference", "+"),
    ]


def _megabytes(row: Mapping[str, Any]) -> str:
    return number(row["model_bytes"] and row["model_bytes"] / 1e6, 1)
