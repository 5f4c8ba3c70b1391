"""The summary of an inspection at a terminal: a table of the categories, then one sentence per finding."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from mvad import storage
from mvad.console import SHOWN_ERRORS, Reporter
from mvad.data.manifest import Manifest
from mvad.inspection.findings import Finding
from mvad.options import InspectOptions
from mvad.results.run_record import EXIT_TOO_MANY_ERRORS

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
    n_images, n_categories = len(inspection.images), len(inspection.summary)
    images = "1 image" if n_images == 1 else f"{n_images:,} images"
    categories = "1 category" if n_categories == 1 else f"{n_categories:,} categories"
    reporter.print(f"{images} of {categories} in {storage.readable(manifest.root)}")
    reporter.table(_category_table(inspection))
    warnings = [_sentence(finding) for finding in inspection.findings if finding.level == "warning"]
    notes = [_sentence(finding) for finding in inspection.findings if finding.level == "note"]
    for text in warnings:
        reporter.warn(text)
    for text in notes[:MAX_NOTES]:
        reporter.print(f"note: {text}")
    n_more = len(notes) - MAX_NOTES
    if n_more > 0:
        reporter.print(f"and {n_more:,} more note{'s' if n_more > 1 else ''}; --out FILE.html lists them all")
    for row in inspection.errors[:SHOWN_ERRORS]:
        reporter.warn(f"  {row['image_id']!r}: {row['error']}")
    n_more = len(inspection.errors) - SHOWN_ERRORS
    if n_more > 0:
        reporter.warn(f"  and {n_more:,} more unreadable file{'s' if n_more > 1 else ''}; --out FILE.html names them")
    if inspection.exit_code == EXIT_TOO_MANY_ERRORS:
        reporter.warn(f"more files are unreadable than --max-errors {options.max_errors} allows: exit code 3")


def _sentence(finding: Finding) -> str:
    return f"{finding.category}: {finding.text}" if finding.category else finding.text


def _category_table(inspection: Inspection) -> Table:
    rows = inspection.summary
    columns = [name for name in COUNTS if name in ALWAYS_SHOWN or any(row[name] for row in rows)]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("category", overflow="fold", max_width=24)
    for title in (*(COUNTS[name] for name in columns), "pixels"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("format", overflow="ellipsis", no_wrap=True, max_width=14)
    for row in rows:
        counts = [f"{row[name]:,}" if row[name] else "-" for name in columns]
        table.add_row(escape(row["category"]), *counts, row["size"], escape(", ".join(row["formats"]) or "-"))
    return table
