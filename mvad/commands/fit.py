from __future__ import annotations

import time
from collections.abc import Sequence

import pyarrow as pa

from mvad import fitting, pipeline, storage
from mvad.console import Reporter, plural
from mvad.data.manifest import Manifest, read_manifest, require_training_images
from mvad.options import Data, FitOptions, Models, takes
from mvad.results.result import Result, exit_code


@takes(FitOptions)
def fit(data: Data, models: Models, options: FitOptions) -> Result:
    """Fit one model per category from the good images in DATA; safe to repeat.

    What an interrupted fit of the same images and options has left is kept, and the rest is fitted.

    Raises
    ------
    UsageError
        As for `run`; or there are such models of other images or options already.

    Examples
    --------
    >>> options = {"backbone": "efficientnet_lite0", "categories": "weave", "limit": 4, "image_size": 64}
    >>> mvad.fit("sample", "models", quiet=True, **options).exit_code
    0
    """
    report, folder = Reporter(options.quiet), storage.to_uri(models)
    manifest, train, jobs = plan_fit(data, folder, options, report)
    if not options.new_run:
        fitting.ensure_no_other_models(jobs, train)
    report.image_count(manifest)

    started = time.monotonic()
    with pipeline.job_session(options, report, lambda: fitting.prepare_network(jobs)):
        outcomes = fitting.fit_models(train, jobs, report, refit=options.new_run)
    result = fitted_result(outcomes, manifest, train, options, folder, report)
    result.seconds = {"fit": time.monotonic() - started}
    return result


def plan_fit(
    data: str, folder: str, options: FitOptions, report: Reporter
) -> tuple[Manifest, pa.Table, list[fitting.FitJob]]:
    """The manifest of DATA, its training images, and a job per category, whose model goes to a folder (a URI)."""
    manifest = read_manifest(data, options, to_learn=True)
    train = require_training_images(manifest)
    options = fitting.with_recipe(options, report.info)
    network = fitting.load_network(options)
    jobs = fitting.fit_jobs(manifest, network, folder, options)
    storage.ensure_writable_folder(folder)
    return manifest, train, jobs


def fitted_result(
    outcomes: Sequence[fitting.FitOutcome],
    manifest: Manifest,
    train: pa.Table,
    options: FitOptions,
    folder: str,
    report: Reporter,
) -> Result:
    """The result of a command that leaves models in a folder (a URI), said aloud; UsageError if there is none."""
    n_models = len(fitting.require_models(outcomes, train))
    errors = manifest.errors + fitting.training_errors(outcomes, train)
    report.errors(errors)
    report.result(f"{plural(n_models, 'model')} in {storage.readable(folder)}")
    return Result(exit_code(options, len(errors), len(train) + len(manifest.left_out)), errors=errors)
