"""The summary of an inspection at a terminal: a table of the categories, then a sentence for each finding."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from mvad import storage
from mvad.console import SHOWN_ERRORS, Reporter
from mvad.data.manifest import Manifest
from mvad.options import InspectOptions
from mvad.results.run_record import EXIT_TOO_MANY_ERRORS

if TYPE_CHECKING:
    from mvad.inspection.command import Inspection

SHOWN_NOTES = 12
COUNTS = {
    "n_train": "train",
    "n_good": "good",
    "n_defect": "defect",
    "n_unlabelled": "unlabelled",
    "n_error": "error",
    "n_duplicate": "same",
    "n_near": "near",
    "n_outlier": "outlier",
}


def show(result: Inspection, manifest: Manifest, options: InspectOptions, report: Reporter) -> None:
    """Print what was found; warnings are printed even if ``quiet``."""
    n_images, n_categories = len(result.images), len(result.summary)
    kinds = "category" if n_categories == 1 else "categories"
    report.print(f"{n_images:,} images of {n_categories:,} {kinds} in {storage.readable(manifest.root)}")
    columns = {
        name: title
        for name, title in COUNTS.items()
        if name in ("n_train", "n_error") or any(row[name] for row in result.summary)
    }
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("category", overflow="fold", max_width=24)
    for title in columns.values():
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("pixels", justify="right", no_wrap=True)
    table.add_column("format", overflow="ellipsis", no_wrap=True, max_width=14)
    for row in result.summary:
        counts = [f"{row[name]:,}" if row[name] else "-" for name in columns]
        formats = ", ".join(row["formats"]) or "-"
        table.add_row(escape(row["category"]), *counts, row["size"], escape(formats))
    report.table(table)
    notes = 0
    for finding in result.findings:
        text = f"{finding.category}: {finding.text}" if finding.category else finding.text
        if finding.level == "warning":
            report.warn(text)
        elif notes < SHOWN_NOTES:
            notes += 1
            report.print(f"note: {text}")
    more = sum(finding.level == "note" for finding in result.findings) - notes
    if more:
        report.print(f"and {more:,} more notes; --out FILE.html has all")
    for entry in result.errors[:SHOWN_ERRORS]:
        report.warn(f"  {entry['image_id']!r}: {entry['error']}")
    if len(result.errors) > SHOWN_ERRORS:
        report.warn(f"  and {len(result.errors) - SHOWN_ERRORS:,} more unreadable files; --out FILE.html names them")
    if result.exit_code == EXIT_TOO_MANY_ERRORS:
        report.warn(f"more files are unreadable than --max-errors {options.max_errors} allows: exit code 3")
