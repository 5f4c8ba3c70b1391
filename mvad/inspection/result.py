"""The result of an inspection, and its files.

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
import pyarrow.parquet as pq

from mvad import results, storage
from mvad.data.manifest import Manifest
from mvad.errors import UsageError
from mvad.inspection.findings import Finding, find_all
from mvad.inspection.page import render_page
from mvad.inspection.table import category_rows
from mvad.options import InspectOptions, as_json
from mvad.results.result import MAX_LISTED_ERRORS, Result, exit_code
from mvad.runtime.versions import versions

SUFFIXES = (".html", ".parquet", ".json")


@dataclass
class Inspection(Result):
    """What `inspect` found out; ``summary`` has one row per category.

    Attributes
    ----------
    images
        One row per image: see `table.IMAGES`.
    findings
        What to know before fitting a model, warnings first.
    """

    images: pa.Table = field(default_factory=lambda: pa.table({}))
    findings: list[Finding] = field(default_factory=list)

    @classmethod
    def of(cls, manifest: Manifest, images: pa.Table, options: InspectOptions) -> Inspection:
        failed = images.filter(pc.is_valid(images["error"]))
        errors = failed.select(["image_id", "category", "split", "error"]).to_pylist()
        code = exit_code(options, len(errors), len(images))
        return cls(code, category_rows(images), errors, images=images, findings=find_all(manifest, images))

    def document(self) -> dict[str, Any]:
        return super().document() | {"findings": self.findings}


def output_uris(out: str, *, replace: bool) -> tuple[str, ...]:
    """The URIs of the page, the table and the summary.

    Raises
    ------
    UsageError
        ``out`` does not end in ``.html``, or one of them exists and ``replace`` is false.
    """
    if not out.endswith(".html"):
        raise UsageError(f"--out {out!r} is not an HTML file; give a name that ends in .html.")
    stem = storage.to_uri(out).removesuffix(".html")
    uris = tuple(stem + suffix for suffix in SUFFIXES)
    existing = [uri for uri in uris if storage.exists(uri)]
    if existing and not replace:
        raise UsageError(f"{storage.readable(existing[0])} exists; choose another --out, or --new-run to replace it.")
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
        "ignored_files": manifest.ignored,
        "exit_code": inspection.exit_code,
        "seconds": round(inspection.seconds["total"], 3),
    }
    sink = pa.BufferOutputStream()
    pq.write_table(inspection.images, sink, compression="zstd")
    storage.write(table_uri, sink.getvalue())
    findings = [finding._asdict() for finding in inspection.findings]
    errors = inspection.errors[:MAX_LISTED_ERRORS]
    results.write_json(summary_uri, {**facts, "categories": inspection.summary, "findings": findings, "errors": errors})
    page = render_page(facts, inspection.summary, inspection.findings, inspection.images, pictures, options)
    storage.write(page_uri, page.encode())
