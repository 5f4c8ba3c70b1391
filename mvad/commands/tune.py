import time

from mvad import fitting, pipeline, storage, tuning
from mvad.console import Reporter, plural
from mvad.data.manifest import read_manifest, require_training_images
from mvad.options import Data, Models, TuneOptions, takes
from mvad.results.result import Result, exit_code


@takes(TuneOptions)
def tune(data: Data, models: Models, options: TuneOptions) -> Result:
    """Choose the options of each category from good images in DATA alone, and fit one model per category with them.

    Some good images are held out, and get synthetic defects. The options as given stay, unless others tell held-out
    images from defective ones better, beyond the interval of the difference. What was tried is printed, and written to
    ``tuning.json`` next to the models; the result's ``summary`` has a row per candidate. Safe to repeat.

    Raises
    ------
    UsageError
        As for `fit`; or the method has no options to tune.

    Examples
    --------
    >>> options = {"backbone": "efficientnet_lite0", "categories": "weave", "limit": 10, "image_size": 64}
    >>> mvad.tune("sample", "tuned", budget="1s", quiet=True, **options).exit_code
    0
    """
    report, folder = Reporter(options.quiet), storage.to_uri(models)
    manifest = read_manifest(data, options, to_learn=True)
    train = require_training_images(manifest)
    options = fitting.with_recipe(options, report.info)
    network = fitting.load_network(options)
    jobs = fitting.fit_jobs(manifest, network, folder, options)
    storage.ensure_writable_folder(folder)
    report.image_count(manifest)

    started = time.monotonic()
    with pipeline.job_session(options, report, lambda: fitting.prepare_network(jobs)):
        jobs = tuning.tune_jobs(train, jobs, options.budget, report)
        tuned = time.monotonic()
        outcomes, jobs = tuning.fit_each(train, jobs, report, refit=options.new_run)
    n_models = len(fitting.require_models(outcomes, train))
    errors = manifest.errors + fitting.training_errors(outcomes, train)
    report.errors(errors)
    report.result(f"{plural(n_models, 'model')} in {storage.readable(folder)}")
    code = exit_code(options, len(errors), len(train) + len(manifest.left_out))
    seconds = {"tune": tuned - started, "fit": time.monotonic() - tuned}
    return Result(code, summary=tuning.candidate_rows(folder), errors=errors, seconds=seconds)
