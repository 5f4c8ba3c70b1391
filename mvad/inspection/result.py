"""The result of an inspection, its summary at a terminal, and its files.

::

    FILE.html      the page, self-contained
    FILE.parquet   one row per image: see table.IMAGES
    FILE.json      one row per category, the findings, the unreadable files
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mvad import results, storage
from mvad.console import MAX_SHOWN_ERRORS, Reporter, plural
from mvad.data.manifest import Manifest
from mvad.errors import UsageError
from mvad.inspection.findings import Finding, find_all, shared
from mvad.inspection.page import render_page
from mvad.inspection.table import COUNTS, IMAGES, category_rows
from mvad.options import InspectOptions, as_json
from mvad.results.result import EXIT_TOO_MANY_ERRORS, MAX_LISTED_ERRORS, Result, exit_code
from mvad.results.store import to_parquet
from mvad.runtime.versions import versions

SUFFIXES = (".html", ".parquet", ".json")
MAX_NOTES = 12
ALWAYS_SHOWN = ("n_train", "n_error")


@dataclass
class Inspection(Result):
    """What `inspect` learned; ``summary`` has one row per category, and ``findings`` begin with the warnings."""

    images: pa.Table = field(default_factory=IMAGES.empty_table)
    findings: list[Finding] = field(default_factory=list)

    @classmethod
    def of(cls, manifest: Manifest, images: pa.Table, options: InspectOptions) -> Inspection:
        failed = images.filter(pc.is_valid(images["error"]))
        errors = failed.select(["image_id", "category", "split", "error"]).to_pylist() + manifest.errors
        code = exit_code(options, len(errors), manifest.n_files)
        return cls(code, category_rows(images), errors, images=images, findings=find_all(manifest, images))

    def document(self) -> dict[str, Any]:
        return super().document() | {"findings": self.findings}


def print_inspection(inspection: Inspection, manifest: Manifest, options: InspectOptions, reporter: Reporter) -> None:
    """Print the table of categories and the findings; warnings are printed even if ``quiet``."""
    images = plural(len(inspection.images), "image")
    categories = plural(len(inspection.summary), "category", "categories")
    reporter.result(f"{images} of {categories} in {storage.readable(manifest.root)}")
    columns = [name for name in COUNTS if name in ALWAYS_SHOWN or any(row[name] for row in inspection.summary)]
    cells = []
    for row in inspection.summary:
        counts = [f"{row[name]:,}" if row[name] else "-" for name in columns]
        cells.append([row["category"], *counts, row["size"], ", ".join(row["formats"]) or "-"])
    reporter.table(["category"], [*(COUNTS[name][1] for name in columns), "pixels", "format"], cells)
    n_notes = 0
    for finding in shared(inspection.findings):  # warnings come first
        if finding.level == "warning":
            reporter.warn(str(finding))
            continue
        n_notes += 1
        if n_notes <= MAX_NOTES:
            reporter.result(f"note: {finding}")
    if n_notes > MAX_NOTES:
        reporter.result(f"and {plural(n_notes - MAX_NOTES, 'more note')}; --out FILE.html lists them all")
    for row in inspection.errors[:MAX_SHOWN_ERRORS]:
        reporter.warn(f"  {row['image_id']!r}: {row['error']}")
    n_more = len(inspection.errors) - MAX_SHOWN_ERRORS
    if n_more > 0:
        reporter.warn(f"  and {plural(n_more, 'more unreadable file')}; --out FILE.html names them")
    if inspection.exit_code == EXIT_TOO_MANY_ERRORS:
        reporter.warn(f"more files are unreadable than --max-errors {options.max_errors} allows: exit code 3")


def output_uris(out: str, *, replace: bool) -> tuple[str, ...]:
    """The URIs of page, table and summary.

    UsageError if ``out`` is no ``.html``, one of the three exists and is not replaced, or none can be written.
    """
    if not out.endswith(".html"):
        raise UsageError(f"--out {out!r} is not an HTML file; give a name that ends in .html.")
    stem = storage.to_uri(out).removesuffix(".html")
    uris = tuple(stem + suffix for suffix in SUFFIXES)
    existing = [uri for uri in uris if storage.exists(uri)]
    if existing and not replace:
        raise UsageError(f"{storage.readable(existing[0])} exists; choose another --out, or --new-run to replace it.")
    storage.ensure_writable_folder(storage.sibling(uris[0], ""))
    return uris


def write_inspection(
    uris: Sequence[str],
    inspection: Inspection,
    manifest: Manifest,
    pictures: Mapping[int, bytes],
    options: InspectOptions,
) -> None:
    """Write the table, the summary and the page; ``pictures`` are JPEG files by row of the table."""
    page_uri, table_uri, summary_uri = uris
    facts = {
        "data": storage.readable(manifest.root),
        "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": versions(),
        "options": as_json(options),
        "n_images": len(inspection.images),
        "n_errors": len(inspection.errors),
        "ignored_files": len(manifest.left_out),
        "exit_code": inspection.exit_code,
        "seconds": round(inspection.seconds["total"], 3),
    }
    storage.write(table_uri, to_parquet(inspection.images))
    findings = [finding._asdict() for finding in inspection.findings]
    errors = inspection.errors[:MAX_LISTED_ERRORS]
    results.write_json(summary_uri, {**facts, "categories": inspection.summary, "findings": findings, "errors": errors})
    page = render_page(facts, inspection.summary, inspection.findings, inspection.images, pictures, options)
    storage.write(page_uri, page.encode())
