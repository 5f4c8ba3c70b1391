"""What happened night by night: numbers of each category, and the limits within which they vary by chance."""

from __future__ import annotations

import datetime
import math
import statistics
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from mvad import storage
from mvad.errors import UsageError
from mvad.nights.rows import NightRows
from mvad.results.store import read_summary

NUMBERS = """
    SELECT folder, night, category,
        count(*) FILTER (status = 'ok') AS n_images,
        count(*) FILTER (status <> 'ok') AS n_errors,
        count(*) FILTER (is_anomaly IS NOT NULL) AS n_decided,
        count(*) FILTER (is_anomaly) AS n_flagged,
        count(*) FILTER (verdict = 'uncertain') AS n_uncertain,
        median(score) AS median_score,
        quantile_cont(p_value, 0.05) AS p_low,
        median(p_value) AS p_median,
        quantile_cont(p_value, 0.95) AS p_high,
        max(threshold) AS threshold,
        list_sort(list_distinct(list(model_id))) AS model_ids
    FROM rows GROUP BY folder, night, category
"""
DRIFT = ("drifted", "drift_p_value", "drift_share_below", "drift_median_shift")
SIGMAS = 3.0
MIN_NIGHTS = 8  # fewer say too little of how a number varies
MOVING_RANGE = 1.128  # mean range of two normal values, in standard deviations


@dataclass
class Trends:
    """The numbers of nights, of which those of folders whose files are as they were are not computed again."""

    _known: dict[str, tuple[Any, list[dict[str, Any]]]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def of(self, nights: NightRows) -> list[dict[str, Any]]:
        """One row for each night and category, in the order of nights: see `NUMBERS` and `DRIFT`.

        ``model_changed`` says whether the category's models are others than in its night before.
        """
        with self._lock:
            changed = [name for name, files in nights.files.items() if self._known.get(name, (None,))[0] != list(files)]
            if changed:
                self._learn(nights, changed)
            rows = [dict(row) for folder in nights.files for row in self._known[folder][1]]
        return _with_changes(sorted(rows, key=lambda row: (row["night"] or datetime.date.min, row["category"])))

    def _learn(self, nights: NightRows, folders: Sequence[str]) -> None:
        found: dict[str, list[dict[str, Any]]] = defaultdict(list)
        part = replace(nights, files={name: nights.files[name] for name in folders})
        if any(part.files.values()):
            for row in part.query(NUMBERS).to_pylist():
                found[row["folder"]].append(row)
        for folder, drift in zip(folders, storage.parallel_map(_drift, folders), strict=True):
            rows = [row | drift.get(row["category"], dict.fromkeys(DRIFT)) for row in found[folder]]
            self._known[folder] = (list(nights.files[folder]), rows)


def _drift(folder: str) -> Mapping[str, dict[str, Any]]:
    """What the summary of a folder of results says of drift, by category; nothing while it is being scored."""
    try:
        return {row["category"]: {name: row[name] for name in DRIFT} for row in read_summary(folder)[:-1]}
    except UsageError:
        return {}


def _with_changes(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    before: dict[str, list[str]] = {}
    for row in rows:
        models = row["model_ids"]
        row["model_changed"] = bool(models) and before.get(row["category"], models) != models
        before[row["category"]] = models or before.get(row["category"], models)
    return rows


def flagged_limits(rows: Sequence[Mapping[str, Any]]) -> list[tuple[float, float] | None]:
    """Three-sigma limits of the share of flagged images, for each night of a category; None where nothing is decided.

    A p-chart (Montgomery, Introduction to Statistical Quality Control, section 7.2): its centre is the share of all
    nights that have not drifted.
    """
    steady = [row for row in rows if row["n_decided"] and not row["drifted"]]
    n_decided = sum(row["n_decided"] for row in steady)
    if len(steady) < MIN_NIGHTS:
        return [None] * len(rows)
    share = sum(row["n_flagged"] for row in steady) / n_decided

    def limits(n_images: int) -> tuple[float, float] | None:
        if not n_images:
            return None
        spread = SIGMAS * math.sqrt(share * (1 - share) / n_images)
        return max(0.0, share - spread), min(1.0, share + spread)

    return [limits(row["n_decided"]) for row in rows]


def median_limits(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float] | None:
    """Three-sigma limits of the median score of a category's nights; None for too few nights.

    A chart of individual values (section 6.4 there): how much a night differs from the one before says how much they
    vary. Nights that drifted, and a change of the model, say nothing of that.
    """
    parts: list[list[float]] = [[]]
    for row in rows:
        if row["model_changed"]:
            parts.append([])
        if row["median_score"] is not None and not row["drifted"]:
            parts[-1].append(row["median_score"])
    latest = next((part for part in reversed(parts) if len(part) >= MIN_NIGHTS), None)
    if latest is None:
        return None
    spread = SIGMAS * statistics.fmean(abs(after - before) for before, after in pairwise(latest)) / MOVING_RANGE
    centre = statistics.fmean(latest)
    return centre - spread, centre + spread
