"""Comparing methods: every one on every category, from features that are extracted once, in one table.

::

    OUT/runs/<method>[-<n>shot-<seed>]/    the results and models of one fit of a method, as `mvad run` leaves them
    OUT/compare.parquet, compare.json      a row a method, number of shots and category, then the mean of its categories
    OUT/run.json, OUT/_SUCCESS             as of a run
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from mvad import results, storage
from mvad.console import Reporter
from mvad.data.manifest import Manifest, read_manifest
from mvad.detectors import METHODS, find_method
from mvad.errors import UsageError
from mvad.features.backbone_spec import NO_BACKBONE, BackboneSpec
from mvad.features.backbones import describe
from mvad.features.weights import Network
from mvad.fitting.fitter import Entry
from mvad.options import CompareOptions, FitOptions, RunOptions, as_json
from mvad.pipeline import flow as pipeline
from mvad.pipeline.actors import SCORING_FAILED
from mvad.results.run_record import EXIT_DONE, Result, RunRecord, exit_code, versions
from mvad.results.summary import MEAN
from mvad.runtime.session import ray_session
from mvad.scoring.resume import NO_MODEL

MODEL_FAULTS = (NO_MODEL, SCORING_FAILED)  # errors that are not the image's own
SCHEMA = pa.schema(
    [
        pa.field("method", pa.string(), nullable=False),
        pa.field("shots", pa.int64()),  # training images a category; null: all
        pa.field("backbone", pa.string()),
        pa.field("category", pa.string(), nullable=False),  # the last row of a method is the mean
        pa.field("repeats", pa.int64()),  # fits that the numbers are means of
        pa.field("n_train", pa.float64()),
        pa.field("image_auroc", pa.float64()),
        pa.field("image_auroc_sd", pa.float64()),  # over the repeats; null where there is one
        pa.field("pixel_auroc", pa.float64()),
        pa.field("pixel_aupro", pa.float64()),
        pa.field("fit_seconds", pa.float64()),  # of the actors' time, extraction included, and of the fit itself
        pa.field("score_seconds", pa.float64()),  # of the actors' time, with the extraction that methods share
        pa.field("model_bytes", pa.float64()),
        pa.field("note", pa.string()),  # why there is no number
    ]
)
_SUMMED = ("n_train", "fit_seconds", "score_seconds", "model_bytes")
_AVERAGED = ("image_auroc", "pixel_auroc", "pixel_aupro", *_SUMMED)

Cell = tuple[str, str]  # an entry's name and a category


def compare(data: str, out: str, **options: Any) -> Result:
    """Fit, score and evaluate methods on every category under DATA; options as in `options.CompareOptions`.

    A method that cannot run, as a whole or on one category, has its reason in the table, and the others go on.

    Returns
    -------
    A result whose ``summary`` is the table.

    Raises
    ------
    UsageError
        Unusable input, an unknown name, or an OUT that is in use.
    """
    started = time.monotonic()
    chosen = CompareOptions(**options)
    report = Reporter(chosen.quiet)
    target = storage.to_uri(out)
    methods = _methods(chosen.methods)
    chosen_backbone = describe(chosen.backbone) if chosen.backbone else None  # a wrong name is nobody's cell
    manifest = pipeline.checked_for_fit(read_manifest(data, chosen))
    images = manifest.split("test")
    if not len(images):
        raise UsageError(f"no test images under {storage.readable(manifest.root)}: there is nothing to compare by.")
    results.check_free(target, replace=chosen.new_run)
    results.clear(target)
    fits = [fit for method in methods for fit in _fits(chosen, method)]
    content: dict[str, Any] = {"command": "compare", "status": "running", "options": as_json(chosen)}
    content |= {"data": storage.readable(manifest.root), "versions": versions()}
    results.write_json(storage.join(target, "run.json"), content)
    pipeline.announce(manifest, report)
    groups, reasons = _entries(target, fits, chosen_backbone, chosen)
    for name, why in reasons.items():
        report.warn(f"{name}: {why}")
    cells: dict[Cell, dict[str, Any]] = {}
    errors: list[dict[str, str]] = []
    with ray_session(chosen.address, chosen.actors, report.line):
        for entries in groups:
            more_cells, more_errors = _compare(target, manifest, entries, chosen, report)
            cells |= more_cells
            known = {row["image_id"] for row in errors}
            errors += [row for row in more_errors if row["image_id"] not in known]
    table = pa.Table.from_pylist(_table(fits, cells, reasons, manifest.categories), SCHEMA)
    rows = results.write_table(target, "compare", table)
    code = exit_code(chosen, len(errors), len(manifest.table))
    seconds = {"total": time.monotonic() - started}
    content |= {"status": "done", "exit_code": code, "n_errors": len(errors), "seconds": seconds}
    results.write_json(storage.join(target, "run.json"), content)
    if code == EXIT_DONE:
        storage.write(storage.join(target, "_SUCCESS"), b"")
    report.comparison(rows, manifest.categories, MEAN)
    report.errors(errors)
    report.print(f"results in {storage.readable(target)}, {seconds['total']:.0f} s")
    return Result(code, rows, errors, seconds)


def _methods(names: str) -> list[str]:
    if names.strip() == "all":
        return list(METHODS)
    chosen = [name.strip() for name in names.split(",") if name.strip()]
    if not chosen:
        raise UsageError("--methods names no method; give some, such as --methods patchcore,knn, or all.")
    return [find_method(name).method for name in dict.fromkeys(chosen)]


def _fits(options: CompareOptions, method: str) -> list[FitOptions]:
    """All images first, then few of them, each number of shots as often as asked for."""
    few = [(shots, repeat) for shots in options.shot_counts for repeat in range(options.shot_repeats)]
    return [options.of_fit(method)] + [options.of_fit(method, *one) for one in few]


def _name(fit: FitOptions) -> str:
    return fit.method if fit.shots is None else f"{fit.method}-{fit.shots}shot-{fit.shot_seed}"


def _folder(out: str, fit: FitOptions) -> str:
    """Where the results of one fit go."""
    return storage.join(out, "runs", _name(fit))


def _entries(
    target: str, fits: Sequence[FitOptions], chosen: BackboneSpec | None, options: CompareOptions
) -> tuple[list[list[Entry]], dict[str, str]]:
    """The entries by the network they share, and why some methods have none.

    ``--backbone`` is for the methods that can use it: one that needs a Vision Transformer takes its own default if the
    backbone is none; one that needs no backbone goes along with the first others.
    """
    wanted: dict[BackboneSpec, list[FitOptions]] = defaultdict(list)
    for fit in fits:
        method = find_method(fit.method)
        usable = chosen is not None and method.can_use(chosen)
        wanted[chosen if chosen is not None and usable else describe(method.default_backbone)].append(fit)
    groups: dict[str, list[Entry]] = {}
    reasons: dict[str, str] = {}
    for spec, own in wanted.items():
        try:
            spec.check_size(options.size)
            # A site's own weights are those of the backbone that was named.
            network = Network.load(spec, options.weights if chosen in (None, spec) else None)
            options.budget.after_weights(network.nbytes)
        except UsageError as error:
            reasons |= {fit.method: str(error) for fit in own}
            continue
        groups[spec.name] = [
            Entry(_name(fit), fit, storage.join(_folder(target, fit), "models"), network) for fit in own
        ]
    alone = groups.pop(NO_BACKBONE, [])
    first, *others = list(groups.values()) or [[]]
    return [group for group in ([*first, *alone], *others) if group], reasons


def _compare(
    target: str, manifest: Manifest, entries: Sequence[Entry], options: CompareOptions, report: Reporter
) -> tuple[dict[Cell, dict[str, Any]], list[dict[str, str]]]:
    """Fit and score entries that share a backbone; gives what each cell shows, and the unreadable files."""
    images = manifest.split("test")
    fitted = pipeline.fit_entries(manifest.split("train"), entries, options, report, keep_going=True)
    unreadable = {name: own.unreadable(manifest) for name, own in fitted.items()}
    records: dict[str, RunRecord] = {}
    for name, fit, _, network in entries:
        own = RunOptions(**{**as_json(fit), "maps": "all", "backbone": network.spec.name})
        records[name] = record = RunRecord("run", _folder(target, fit), manifest, own)
        record.add_failures(fitted[name].failures)
        pipeline.write_error_rows(unreadable[name], fitted[name].errors, record)
    models = {name: own.models for name, own in fitted.items()}
    networks = {entry.network.spec: entry.network for entry in entries}
    scoring = RunOptions(**{**as_json(entries[0].options), "maps": "all"})
    pipeline.score_entries([images], models, networks, scoring, records, report, keep_going=True)
    cells: dict[Cell, dict[str, Any]] = {}
    errors: dict[str, dict[str, str]] = {}
    with report.stage("evaluate", len(entries), unit="runs") as stage:
        for name, record in records.items():
            outcome = record.finish(
                len(manifest.table), n_rows=len(images) + len(unreadable[name]), stages=report.stages
            )
            errors |= {row["image_id"]: row for row in outcome.errors if not row["error"].startswith(MODEL_FAULTS)}
            for row in outcome.summary[:-1]:
                model = fitted[name].models.get(row["category"])
                cells[name, row["category"]] = {**row, "model_bytes": model and model.record["bytes"]}
            stage.advance(1)
    return cells, [errors[name] for name in sorted(errors)]


def _table(
    fits: Sequence[FitOptions],
    cells: Mapping[Cell, Mapping[str, Any]],
    reasons: Mapping[str, str],
    categories: Sequence[str],
) -> list[dict[str, Any]]:
    """The rows of the table: of every method and number of shots its categories, then their mean."""
    lines: dict[tuple[str, int | None], list[str]] = defaultdict(list)
    for fit in fits:
        lines[fit.method, fit.shots].append(_name(fit))
    rows = []
    for (method, shots), repeats in lines.items():
        line = {"method": method, "shots": shots}
        own = []
        for category in categories:
            found = [cells[name, category] for name in repeats if (name, category) in cells]
            own.append({**line, "category": category, **_over_repeats(found), "note": reasons.get(method)})
            notes = [cell["note"] for cell in found if cell["image_auroc"] is None and cell["note"]]
            if notes:
                own[-1]["note"] = "; ".join(dict.fromkeys(notes))
        rows += [*own, {**line, **_mean_row(own)}]
    return rows


def _over_repeats(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    scores = [cell["image_auroc"] for cell in cells if cell["image_auroc"] is not None]
    row: dict[str, Any] = {name: _mean(cell[name] for cell in cells) for name in _AVERAGED}
    row |= {"repeats": len(scores), "backbone": cells[0]["backbone"] if cells else None}
    row["image_auroc_sd"] = float(np.std(scores, ddof=1)) if len(scores) > 1 else None
    return row


def _mean_row(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means of the metrics over the categories that have them, sums of the rest; none without all categories."""
    row: dict[str, Any] = {"category": MEAN, "backbone": rows[0]["backbone"]}
    for name in _AVERAGED:
        known = [one[name] for one in rows if one[name] is not None]
        row[name] = None if not known else sum(known) if name in _SUMMED else _mean(known)
    without = [one["category"] for one in rows if one["image_auroc"] is None]
    if without:
        row["note"] = f"without {', '.join(without)}"
    return row


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
