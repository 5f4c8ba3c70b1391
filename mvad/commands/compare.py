"""Compare methods: each on every category, from features that are extracted once per backbone, in one table.

::

    OUT/runs/<method>[-<n>shot-<seed>]/    the results and models of one fit of a method, as `mvad run` leaves them
    OUT/compare.parquet, compare.json      see `results.comparison`
    OUT/run.json, OUT/_SUCCESS             as of a run
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from mvad import fitting, pipeline, scoring, storage
from mvad.console import Reporter
from mvad.data.manifest import Manifest, read_manifest, require_test_images, require_training_images
from mvad.detectors import find_method
from mvad.errors import UsageError
from mvad.options import CompareOptions, Data, Out, RunOptions, as_json, run_identity, takes
from mvad.results import store
from mvad.results.comparison import comparison_table, show_comparison
from mvad.results.result import Result, exit_code
from mvad.results.run_record import Run
from mvad.runtime.versions import versions
from mvad.scoring.jobs import MODEL_UNUSABLE, NO_MODEL, SCORING_FAILED

if TYPE_CHECKING:
    from mvad.features.weights import Network

MODEL_FAULTS = (NO_MODEL, MODEL_UNUSABLE, SCORING_FAILED)  # prefixes of errors that are not the image's own


class MethodRun(NamedTuple):
    """One fit of one method to all categories: its name, and options."""

    name: str
    options: RunOptions


@takes(CompareOptions)
def compare(data: Data, out: Out, options: CompareOptions) -> Result:
    """Fit and score every method on every category under DATA, and print one table.

    A method that cannot run, as a whole or on one category, has its reason in the table, and the others go on.

    Returns
    -------
    A result whose ``summary`` is the table.

    Raises
    ------
    UsageError
        Unusable input, an unknown name, or an OUT that is in use.

    Examples
    --------
    >>> options = {"backbone": "efficientnet_lite0", "categories": "weave", "limit": 4, "image_size": 64, "quiet": True}
    >>> [row["method"] for row in mvad.compare("sample", "compared", methods="knn", **options).summary]
    ['knn', 'knn']
    """
    started, report, target = time.monotonic(), Reporter(options.quiet), storage.to_uri(out)
    method_runs = _method_runs(options)
    manifest = read_manifest(data, options, to_learn=True)
    train = require_training_images(manifest)
    images = require_test_images(manifest, ": there is nothing to compare by.")
    groups, reasons = _by_network(method_runs, options, report)
    content: dict[str, Any] = {"command": "compare", "status": "running", "options": as_json(options)}
    content |= {"data": storage.readable(manifest.root), "versions": versions()}
    content["identity"] = run_identity(options)
    folder, _ = store.open_folder(target, "compare", content["identity"], new_run=options.new_run)
    store.write_run(folder, content)
    report.image_count(manifest)

    cells: dict[tuple[str, str], dict[str, Any]] = {}
    errors: dict[str, dict[str, str]] = {}
    with pipeline.job_session(options, report):
        for network, group in groups:
            for name, result in _fit_and_score(
                group, network, manifest, train, images, (folder, target), report
            ).items():
                cells |= {(name, row["category"]): row for row in result.summary}
                errors |= {row["image_id"]: row for row in result.errors}

    repeats: dict[tuple[str, int | None], list[str]] = defaultdict(list)
    for run in method_runs:
        repeats[run.options.method, run.options.shots].append(run.name)
    table = comparison_table(repeats, cells, reasons, manifest.categories)
    rows = store.write_table(folder, "compare", table)
    code = exit_code(options, len(errors), len(manifest.table))
    seconds = {"total": time.monotonic() - started}
    content |= {"status": "done", "exit_code": code, "n_errors": len(errors), "seconds": seconds}
    store.write_run(folder, content)
    if folder != target:
        store.replace_by_new(target)
    show_comparison(rows, manifest.categories, report)
    unreadable = [errors[name] for name in sorted(errors)]
    report.errors(unreadable)
    report.result(f"results in {storage.readable(target)}, {seconds['total']:.0f} s")
    return Result(code, rows, unreadable, seconds)


def _method_runs(options: CompareOptions) -> list[MethodRun]:
    """All training images first, then few of them, each number of shots as often as asked for."""
    runs = []
    for method in options.method_names:
        fits = [options.fit_options(method)]
        for shots in sorted(set(options.shots or ())):
            fits += [options.fit_options(method, shots, repeat) for repeat in range(options.shot_repeats)]
        for fit in fits:
            name = method if fit.shots is None else f"{method}-{fit.shots}shot-{fit.shot_seed}"
            runs.append(MethodRun(name, fit))
    return runs


def _by_network(
    runs: Sequence[MethodRun], options: CompareOptions, report: Reporter
) -> tuple[list[tuple[Network, list[MethodRun]]], dict[str, str]]:
    """The runs by the network they share, and why some methods cannot run.

    ``--backbone`` is for the methods that can use it; a method that needs a Vision Transformer takes its own default if
    the backbone is none.
    """
    from mvad.features.backbones import describe
    from mvad.features.weights import Network

    asked = describe(options.backbone) if options.backbone else None  # a wrong name is no method's fault
    of_backbone = defaultdict(list)
    for run in runs:
        method = find_method(run.options.method)
        usable = asked is not None and method.can_use(asked)
        of_backbone[asked if asked and usable else describe(method.default_backbone)].append(run)
    groups, reasons = [], {}
    for spec, group in of_backbone.items():
        try:
            spec.check_size(options.size_for(1, 1, spec.cell))
            # Your own weights are those of the backbone that you named.
            network = Network.load(spec, options.weights if asked in (None, spec) else None)
            options.memory_budget.after_weights(network.nbytes)
            groups.append((network, group))
        except UsageError as error:
            for run in group:
                if run.options.method not in reasons:
                    report.warn(f"{run.options.method}: {error}")
                reasons[run.options.method] = str(error)
    return groups, reasons


def _fit_and_score(
    group: Sequence[MethodRun],
    network: Network,
    manifest: Manifest,
    train: pa.Table,
    images: pa.Table,
    places: tuple[str, str],
    report: Reporter,
) -> dict[str, Result]:
    """Fit and score runs that share a backbone: results by name, without errors that are not the image's own.

    ``places`` are the folder that is written to, and the one that it becomes.
    """
    records = []
    for run in group:
        options = replace(run.options, backbone=network.spec.name, new_run=False)
        folder, published = (storage.join(place, "runs", run.name) for place in places)
        records.append(Run.of_fit(folder, manifest, options, network, published))
        records[-1].record()
    ignores = fitting.read_ignores(manifest, group[0].options)
    jobs = [
        fitting.FitJob(
            category, run.options, network, storage.join(record.folder, "models"), ignore=ignores.get(category)
        )
        for run, record in zip(group, records, strict=True)
        for category in manifest.categories
    ]
    outcomes = fitting.fit_models(train, jobs, report, keep_going=True)
    scoring_jobs: list[scoring.ScoringJob] = []
    sizes: dict[tuple[str, str], int] = {}
    for number, (run, record) in enumerate(zip(group, records, strict=True)):
        of_run = outcomes[number * len(manifest.categories) :][: len(manifest.categories)]
        record.add_training(*fitting.failures_and_errors(of_run), train)
        record.write_left_out(manifest)
        models = [outcome.model for outcome in of_run if outcome.model is not None]
        scoring_jobs += scoring.scoring_jobs(models, record, run.options)
        sizes |= {(run.name, model.category): model.record["bytes"] for model in models}
    networks = {network.spec: network}
    missing = _missing_of_all(records, images, report)
    scoring.score_images(missing, scoring_jobs, records, networks, group[0].options, report)

    results = {}
    with report.stage("evaluate", len(group), unit="runs") as stage:
        for run, record in zip(group, records, strict=True):
            result = record.finish(manifest.n_files, report.stages)
            result.errors = [row for row in result.errors if not row["error"].startswith(MODEL_FAULTS)]
            *rows, _ = result.summary  # without the mean
            result.summary = [{**row, "model_bytes": sizes.get((run.name, row["category"]))} for row in rows]
            results[run.name] = result
            stage.advance(1)
    return results


def _missing_of_all(records: Sequence[Run], images: pa.Table, report: Reporter) -> list[pa.Table]:
    """The images that some run has no current row of: they are scored again for all runs, which extracts them once."""
    missing = {
        name for run in records for part in run.missing([images], report) for name in part["image_id"].to_pylist()
    }
    ids = pa.array(sorted(missing), pa.string())
    for run in records:
        run.forget(ids)
    images = images.filter(pc.is_in(images["image_id"], ids))
    return [images] if len(images) else []
