"""Evaluate many nights by what people said of their images, and print it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mvad import storage
from mvad.console import Reporter, number
from mvad.errors import UsageError
from mvad.nights.estimates import Evaluation, evaluate_labels
from mvad.nights.labels import read_labels
from mvad.nights.rows import NightRows

COUNTS = ("n_images", "n_flagged", "n_labelled")


def evaluate_nights(root: str, costs: Mapping[str, float] | None, report: Reporter) -> list[dict[str, Any]]:
    """Print precision and recall by category and week, and return them; with ``costs``, also thresholds.

    UsageError if nothing is labelled; ``root`` is a URI.
    """
    labels = read_labels(root)
    for problem in labels.problems:
        report.warn(problem)
    if not len(labels.table):
        folder = storage.readable(root)
        raise UsageError(f"no labels in {folder}; review images with: mvad serve --results {folder} --models MODELS")
    evaluation = evaluate_labels(NightRows.open(root), labels)
    rows = evaluation.rows()
    report.table(
        ["category", "week"],
        ["images", "flagged", "labelled"],
        [
            [
                *(row["category"], row["week"] or "all"),
                *(f"{row[name]:,}" for name in COUNTS),
                *(_interval(row, name) for name in ("precision", "recall")),
            ]
            for row in rows
            if row["n_labelled"] or row["week"] is None
        ],
        ["precision", "recall"],
    )
    report.info("intervals hold the truth in 95 of 100 cases; recall needs images that passed, drawn at random")
    if costs is not None:
        _show_costs(evaluation, rows, costs, report)
    return rows


def _interval(row: Mapping[str, Any], name: str) -> str:
    if row[name] is None:
        return "-"
    return f"{row[name]:.1%} ({row[f'{name}_low']:.1%} to {row[f'{name}_high']:.1%})"


def _show_costs(
    evaluation: Evaluation, rows: list[dict[str, Any]], costs: Mapping[str, float], report: Reporter
) -> None:
    """Print the threshold of each category that would cost least, beside today's, and add both to its last row."""
    cells, chosen = [], []
    for row in rows:
        if row["week"] is not None:
            continue
        name, now = row["category"], evaluation.thresholds.get(row["category"])
        best = evaluation.cheapest_threshold(name, **costs)
        known = best is not None  # whether enough is labelled
        cost, lowest = (evaluation.cost(name, at, **costs) if known and at is not None else None for at in (now, best))
        row |= {"threshold": now, "cost": cost, "cheapest_threshold": best, "cheapest_cost": lowest}
        cells.append([name, *(number(value, 3) for value in (now, cost, best, lowest))])
        if lowest is None:
            report.warn(f"{name}: a threshold by cost needs labels of both kinds, of images that stand for others")
        elif cost is None or lowest < cost:
            chosen.append(f"{name}={best:.6g}")
    report.table(["category"], ["threshold", "cost per 1,000", "cheapest", "its cost"], cells)
    if chosen:
        report.result(f"to use what costs less from the next night on: --threshold {','.join(chosen)}")
