"""Compare methods and variants of options: each on every category, features extracted once where they are shared.

::

    OUT/runs/<method or variant>[-<n>shot-<seed>]/    the results and models of one fit, as `mvad run` leaves them
    OUT/compare.parquet, compare.json                 see `comparison.table`
    OUT/run.json, OUT/_SUCCESS                        as of a run
"""

from __future__ import annotations

import functools
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from mvad import fitting, pipeline, scoring, storage
from mvad.comparison.printed import show_comparison
from mvad.comparison.table import comparison_table
from mvad.comparison.variants import Line, MethodRun, method_runs, read_variants
from mvad.console import Reporter
from mvad.data.manifest import Manifest, read_manifest, require_test_images, require_training_images
from mvad.detectors import Detector, find_method
from mvad.errors import UsageError
from mvad.options import (
    BackboneOptions,
    BitDepthOptions,
    CompareOptions,
    Data,
    Out,
    RunOptions,
    SeedOptions,
    VariantOptions,
    as_json,
    option_names,
    run_identity,
    takes,
)
from mvad.results import store
from mvad.results.result import Result, exit_code
from mvad.results.run_record import Run
from mvad.runtime.versions import versions
from mvad.scoring.jobs import MODEL_UNUSABLE, NO_MODEL, SCORING_FAILED

if TYPE_CHECKING:
    from mvad.features.backbone_spec import BackboneSpec
    from mvad.features.weights import Network

MODEL_FAULTS = (NO_MODEL, MODEL_UNUSABLE, SCORING_FAILED)  # prefixes of errors that are not the image's own
# Options that features depend on.
OF_FEATURES = sorted(
    {name for kind in (BackboneOptions, BitDepthOptions, SeedOptions, VariantOptions) for name in option_names(kind)}
    - {"backbone", "weights", "shot_seed"}  # the first two are the network's
)

Groups = list[tuple["Network", list[MethodRun]]]
Variants = Mapping[str, Mapping[str, Any]]


@takes(CompareOptions)
def compare(data: Data, out: Out, options: CompareOptions) -> Result:
    """Fit and score every method, or variant of options, on every category under DATA, and print one table.

    A method that cannot run, as a whole or on one category, has its reason in the table, and the others go on.

    Returns
    -------
    A result whose ``summary`` is the table.

    Raises
    ------
    UsageError
        Unusable input, an unknown name, a wrong variant, or an OUT that is in use.

    Examples
    --------
    >>> options = {"backbone": "efficientnet_lite0", "categories": "weave", "limit": 4, "image_size": 64, "quiet": True}
    >>> [row["method"] for row in mvad.compare("sample", "compared", methods="knn", **options).summary]
    ['knn', 'knn']
    """
    started, report, target = time.monotonic(), Reporter(options.quiet), storage.to_uri(out)
    variants = read_variants(options)
    runs = method_runs(options, variants)
    manifest = read_manifest(data, options, to_learn=True)
    train = require_training_images(manifest)
    images = require_test_images(manifest, ": there is nothing to compare by.")
    groups, reasons = _by_features(runs, variants, report)
    content: dict[str, Any] = {"command": "compare", "status": "running", "options": as_json(options)}
    content |= {"data": storage.readable(manifest.root), "versions": versions()}
    content["identity"] = run_identity(options) | {"variants": variants or None}
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
        table = _table(runs, cells, reasons, manifest.categories, folder, options.seed, report)

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


def _by_features(runs: Sequence[MethodRun], variants: Variants, report: Reporter) -> tuple[Groups, dict[Line, str]]:
    """The runs by the features they share, each group with its network; and why some lines cannot run.

    UsageError if a backbone has a wrong name.
    """
    groups: dict[tuple[Network, str], list[MethodRun]] = defaultdict(list)
    networks: dict[tuple[BackboneSpec, str | None], Network | str] = {}  # or why there is none
    reasons: dict[Line, str] = {}
    say = functools.cache(report.info)
    for run in [run._replace(options=_with_usable_backbone(run, variants, say)) for run in runs]:
        options = run.options
        try:
            key = fitting.resolve_backbone(options), options.weights
            if key not in networks:
                networks[key] = _network_or_reason(options)
            network = networks[key]
        except UsageError as error:
            network = str(error)
        if not isinstance(network, str):
            groups[network, repr([getattr(options, name) for name in OF_FEATURES])].append(run)
            continue
        if run.line.title not in {line.title for line in reasons}:
            report.warn(f"{run.line.title}: {network}")
        reasons[run.line] = network
    return [(network, group) for (network, _), group in groups.items()], reasons


def _network_or_reason(options: RunOptions) -> Network | str:
    try:
        return fitting.load_network(options)
    except UsageError as error:
        return str(error)


def _with_usable_backbone(run: MethodRun, variants: Variants, say: Callable[[str], None]) -> RunOptions:
    """The options of a run, with the method's default backbone if it cannot use the one that the command names.

    Your own weights, ``--layers``, ``--neighbourhood`` and ``--norm`` are for the backbone that you named. A variant
    that names one keeps it. What the recipe of the backbone advises is filled in.
    """
    from mvad.features.known import describe

    options, variant, method = run.options, run.line.variant, find_method(run.options.method)
    named = options.backbone or Detector.default_backbone
    try:
        asked = describe(named, options.layers, norm=bool(options.norm))  # a wrong name or layer is no method's fault
        usable = method.can_use(asked) and (options.backbone is not None or method.default_backbone == named)
        if not usable and not (variant and "backbone" in variants[variant]):
            weights = options.weights if options.backbone is None else None
            options = replace(options, backbone=None, weights=weights, layers=None, neighbourhood=None, norm=None)
        return fitting.with_recipe(options, say)
    except UsageError as error:
        raise UsageError(f"variant {variant!r}: {error}" if variant else str(error)) from error


def _table(
    runs: Sequence[MethodRun],
    cells: Mapping[tuple[str, str], Mapping[str, Any]],
    reasons: Mapping[Line, str],
    categories: Sequence[str],
    folder: str,
    seed: int,
    report: Reporter,
) -> pa.Table:
    """The table of a comparison in a folder (a URI), with intervals."""
    from mvad.comparison.intervals import resample_runs

    lines: dict[Line, list[str]] = defaultdict(list)
    for run in runs:
        lines[run.line].append(run.name)
    n_scored = sum(cell["image_auroc"] is not None for cell in cells.values())
    folders = {run.name: storage.join(folder, "runs", run.name) for run in runs}
    with report.stage("bootstrap", n_scored, unit="results") as stage:
        samples = resample_runs(folders, cells, categories, seed, stage)
    return comparison_table(lines, cells, reasons, categories, samples)


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
            result.summary = [
                row
                | {"model_bytes": sizes.get((run.name, row["category"]))}
                | {"size": record.categories[row["category"]].get("size")}
                for row in rows
            ]
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
