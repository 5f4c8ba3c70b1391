"""What all pages of a report say: the run, its summary, its categories and the warnings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mvad import results, storage
from mvad.errors import UsageError
from mvad.options import ReportOptions
from mvad.reports.category import Category, read_category
from mvad.results.summary import MEAN

COLUMNS = (  # of the summary table: key, title, filter that shows the value
    ("method", "Method", "name"),
    ("n_train", "Training images", "count"),
    ("n_scored", "Scored", "count"),
    ("n_flagged", "Flagged", "count"),
    ("n_good", "Good", "count"),
    ("n_defect", "Defective", "count"),
    ("n_error", "Unreadable", "count"),
    ("image_auroc", "AUROC", "metric"),
    ("image_ap", "Average precision", "metric"),
    ("image_f1_max", "Best F1", "metric"),
    ("recall_at_threshold", "Recall", "percent"),
    ("false_alarm_rate", "False alarms", "percent"),
    ("pixel_auroc", "Pixel AUROC", "metric"),
    ("pixel_aupro", "AUPRO", "metric"),
    ("drift_median_shift", "Score shift", "shift"),
    ("fit_seconds", "Fit (s)", "seconds"),
    ("images_per_second", "Images/s", "seconds"),
)
URI_OPTIONS = ("weights", "address")


@dataclass(frozen=True)
class Overview:
    """What all pages of a report show.

    Attributes
    ----------
    results
        The results folder, without keys.
    run
        ``run.json``.
    summary
        The rows of ``summary.json``.
    mean
        The row of means; None where the page shows fewer than two categories, or not all of them.
    """

    results: str
    run: Mapping[str, Any]
    summary: list[dict[str, Any]]
    categories: Sequence[Category]
    mean: Mapping[str, Any] | None

    @property
    def columns(self) -> list[tuple[str, str, str]]:
        """The columns of the summary table that hold a value for some category and say something."""
        rows = [category.summary for category in self.categories]
        hidden = set()
        if all(category.threshold is None for category in self.categories):
            hidden.add("n_flagged")
        if not any(row.get("n_good") or row.get("n_defect") for row in rows):
            hidden |= {"n_good", "n_defect"}
        if len({row.get("method") for row in rows}) < 2:  # the sections say it
            hidden.add("method")
        return [
            column
            for column in COLUMNS
            if column[0] not in hidden and any(row.get(column[0]) is not None for row in rows)
        ]

    @property
    def total(self) -> dict[str, int]:
        """Images scored, flagged and unreadable, over all categories on the page."""
        names = ("n_scored", "n_flagged", "n_error")
        return {name: sum(category.summary.get(name) or 0 for category in self.categories) for name in names}

    @property
    def has_threshold(self) -> bool:
        return any(category.summary.get("threshold") is not None for category in self.categories)

    @property
    def n_pictures(self) -> int:
        return sum(len(category.shown_ids) for category in self.categories)

    @property
    def warnings(self) -> list[tuple[int, str]]:
        """What a reader should know first: the number of a category, from 1, and a sentence."""
        return [
            (number, text.removeprefix(f"{category.name}: "))
            for number, category in enumerate(self.categories, start=1)
            for text in (category.facts.get("warning"), category.facts.get("note"))
            if text
        ]

    @property
    def options(self) -> dict[str, str]:
        """The options of the run as text, without keys of object storage."""
        return {name: _option(name, value) for name, value in self.run.get("options", {}).items()}


def _option(name: str, value: Any) -> str:
    if value is None:
        return "default"
    if name in URI_OPTIONS and "://" in str(value):
        return storage.readable(str(value))
    return str(value)


def read_overview(source: str, run: Mapping[str, Any], options: ReportOptions) -> Overview:
    """Read the results folder ``source`` (a URI) of a finished run.

    Raises
    ------
    UsageError
        A category is unknown.
    """
    models = storage.to_uri(options.models) if options.models else None
    summary = results.read_summary(source)
    rows = {row["category"]: row for row in summary}
    categories = [
        read_category(source, name, run["categories"].get(name, {}), rows.get(name, {}), models, options.pictures)
        for name in _category_names(source, options.categories)
    ]
    mean = rows.get(MEAN) if len(categories) > 1 and options.categories is None else None
    return Overview(storage.readable(source), run, summary, categories, mean)


def _category_names(source: str, requested: list[str] | None) -> list[str]:
    names = sorted({category for category, _ in results.list_parts(source)})
    unknown = [name for name in requested or [] if name not in names]
    if unknown:
        raise UsageError(f"unknown category {unknown[0]!r}; {storage.readable(source)} has: {', '.join(names)}.")
    return names if requested is None else [name for name in names if name in requested]
