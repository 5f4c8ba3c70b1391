import time

from mvad import fitting, pipeline, storage
from mvad.console import Reporter, plural
from mvad.data.manifest import read_manifest, require_training_images
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
    manifest = read_manifest(data, options, to_learn=True)
    train = require_training_images(manifest)
    options = fitting.with_recipe(options, report.info)
    network = fitting.load_network(options)
    jobs = fitting.fit_jobs(manifest, network, folder, options)
    storage.ensure_writable_folder(folder)
    if not options.new_run:
        fitting.ensure_no_other_models(jobs, train)
    report.image_count(manifest)

    started = time.monotonic()
    with pipeline.job_session(options, report, lambda: fitting.prepare_network(jobs)):
        outcomes = fitting.fit_models(train, jobs, report, refit=options.new_run)
    n_models = len(fitting.require_models(outcomes, train))
    errors = manifest.errors + fitting.training_errors(outcomes, train)
    report.errors(errors)
    report.result(f"{plural(n_models, 'model')} in {storage.readable(folder)}")
    code = exit_code(options, len(errors), len(train) + len(manifest.left_out))
    return Result(code, errors=errors, seconds={"fit": time.monotonic() - started})
