"""The command ``mvad inspect``, from a folder to a summary, a table and a page.

::

    FILE.html      the page, self-contained
    FILE.parquet   one row an image: see table.IMAGES
    FILE.json      one row a category, the findings, the unreadable files
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mvad import results, storage
from mvad.console import Reporter
from mvad.data.manifest import Manifest, read_manifest
from mvad.errors import UsageError
from mvad.features.backbones import describe
from mvad.features.weights import Network
from mvad.inspection import flow, terminal
from mvad.inspection.embedding import add_maps
from mvad.inspection.findings import Finding, find
from mvad.inspection.page import Page, shown_rows
from mvad.inspection.table import category_rows, image_table
from mvad.options import InspectOptions, as_json
from mvad.results.run_record import LISTED_ERRORS, Result, exit_code, versions
from mvad.runtime.session import actor_pool, ray_session

SUFFIXES = (".html", ".parquet", ".json")


@dataclass
class Inspection(Result):
    """What `inspect` found; ``summary`` has a row a category.

    Attributes
    ----------
    images
        One row an image: see `table.IMAGES`.
    findings
        What a person should know, warnings first.
    """

    images: pa.Table = field(default_factory=lambda: pa.table({}))
    findings: list[Finding] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        return super().document() | {"findings": self.findings}


def inspect(data: str, out: str | None = None, **options: Any) -> Inspection:
    """Show what is in DATA before any model; options as in `options.InspectOptions`.

    Every image is read once, in Ray tasks, and seen by the backbone in the actor pool. Nothing is written unless there
    is an ``out``, a path or URI that ends in ``.html``: then the page, and with its name a table and a summary.

    Raises
    ------
    UsageError
        Unusable input, an unknown name, weights that cannot be had, or an ``out`` that is in use or no ``.html``.
    """
    started = time.monotonic()
    chosen = InspectOptions(**options)
    report = Reporter(chosen.quiet)
    places = None if out is None else _places(out, replace=chosen.new_run)
    spec = describe(chosen.backbone) if chosen.features else None
    if spec is not None:
        spec.check_size(chosen.size)
    manifest = read_manifest(data, chosen)
    network = None if spec is None else Network.load(spec, chosen.weights)
    with ray_session(chosen.address, chosen.actors, report.line):
        pool = actor_pool(chosen.actors, len(manifest.table))
        with report.stage("inspect", len(manifest.table)) as stage:
            found = flow.measured(manifest.table, network, chosen, pool, stage)
            stage.busy_with("comparing")
            table = image_table(manifest, found)
            if network is not None:
                table = add_maps(table, found["features"], chosen.embedding)
        result = _result(manifest, table, chosen)
        if places is not None:
            shown = shown_rows(table)
            with report.stage("pictures", len(shown)) as stage:
                pictures = flow.photos(table, shown, chosen, pool, stage)
    result.seconds["total"] = time.monotonic() - started
    terminal.show(result, manifest, chosen, report)
    if places is not None:
        facts = _facts(manifest, result, chosen)
        _write(places, Page(facts, result.summary, result.findings, table, pictures, chosen).render(), facts, result)
        report.print(f"page: {storage.readable(places[0])}, with {' and '.join(SUFFIXES[1:])} beside it")
    return result


def _places(out: str, *, replace: bool) -> tuple[str, ...]:
    """The URIs of the page, the table and the summary."""
    if not out.endswith(".html"):
        raise UsageError(f"--out {out!r} is not the name of a page; give one that ends in .html.")
    stem = storage.to_uri(out).removesuffix(".html")
    places = tuple(stem + suffix for suffix in SUFFIXES)
    taken = [place for place in places if storage.exists(place)]
    if taken and not replace:
        raise UsageError(f"{storage.readable(taken[0])} exists; choose another --out, or --new-run to replace it.")
    return places


def _result(manifest: Manifest, table: pa.Table, options: InspectOptions) -> Inspection:
    bad = table.filter(pc.is_valid(table["error"])).select(["image_id", "category", "split", "error"]).to_pylist()
    code = exit_code(options, len(bad), len(table))
    return Inspection(code, category_rows(table), bad, images=table, findings=find(manifest, table))


def _facts(manifest: Manifest, result: Inspection, options: InspectOptions) -> dict[str, Any]:
    """What is said of the inspection as a whole."""
    return {
        "data": storage.readable(manifest.root),
        "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": versions(),
        "options": as_json(options),
        "n_images": len(result.images),
        "n_errors": len(result.errors),
        "ignored_files": manifest.ignored,
        "exit_code": result.exit_code,
        "seconds": round(result.seconds["total"], 3),
    }


def _write(places: Sequence[str], text: str, facts: dict[str, Any], result: Inspection) -> None:
    page, table, summary = places
    sink = pa.BufferOutputStream()
    pq.write_table(result.images, sink, compression="zstd")
    storage.write(table, sink.getvalue())
    findings = [finding._asdict() for finding in result.findings]
    content = {**facts, "categories": result.summary, "findings": findings, "errors": result.errors[:LISTED_ERRORS]}
    results.write_json(summary, content)
    storage.write(page, text.encode())
