"""The summary of an inspection at a terminal: a table of the categories, then one sentence per finding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mvad import storage
from mvad.console import MAX_SHOWN_ERRORS, Reporter, plural
from mvad.data.manifest import Manifest
from mvad.inspection.findings import Finding
from mvad.options import InspectOptions
from mvad.results.result import EXIT_TOO_MANY_ERRORS

if TYPE_CHECKING:
    from mvad.inspection.result import Inspection

MAX_NOTES = 12
COUNTS = {
    "n_train": "train",
    "n_good": "good",
    "n_defect": "defect",
    "n_unlabelled": "unlabelled",
    "n_error": "errors",
    "n_duplicate": "dup.",
    "n_near": "near dup.",
    "n_outlier": "outliers",
}
ALWAYS_SHOWN = ("n_train", "n_error")


def print_inspection(inspection: Inspection, manifest: Manifest, options: InspectOptions, reporter: Reporter) -> None:
    """Print the table and the findings; warnings are printed even if ``quiet``."""
    images = plural(len(inspection.images), "image")
    categories = plural(len(inspection.summary), "category", "categories")
    reporter.result(f"{images} of {categories} in {storage.readable(manifest.root)}")
    _print_categories(inspection.summary, reporter)
    warnings = [_sentence(finding) for finding in inspection.findings if finding.level == "warning"]
    notes = [_sentence(finding) for finding in inspection.findings if finding.level == "note"]
    for text in warnings:
        reporter.warn(text)
    for text in notes[:MAX_NOTES]:
        reporter.result(f"note: {text}")
    n_more = len(notes) - MAX_NOTES
    if n_more > 0:
        reporter.result(f"and {plural(n_more, 'more note')}; --out FILE.html lists them all")
    for row in inspection.errors[:MAX_SHOWN_ERRORS]:
        reporter.warn(f"  {row['image_id']!r}: {row['error']}")
    n_more = len(inspection.errors) - MAX_SHOWN_ERRORS
    if n_more > 0:
        reporter.warn(f"  and {plural(n_more, 'more unreadable file')}; --out FILE.html names them")
    if inspection.exit_code == EXIT_TOO_MANY_ERRORS:
        reporter.warn(f"more files are unreadable than --max-errors {options.max_errors} allows: exit code 3")


def _sentence(finding: Finding) -> str:
    return f"{finding.category}: {finding.text}" if finding.category else finding.text


def _print_categories(rows: Sequence[dict[str, Any]], reporter: Reporter) -> None:
    columns = [name for name in COUNTS if name in ALWAYS_SHOWN or any(row[name] for row in rows)]
    cells = []
    for row in rows:
        counts = [f"{row[name]:,}" if row[name] else "-" for name in columns]
        cells.append([row["category"], *counts, row["size"], ", ".join(row["formats"]) or "-"])
    reporter.table(["category"], [*(COUNTS[name] for name in columns), "pixels", "format"], cells)
