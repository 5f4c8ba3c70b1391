import time

from mvad import fitting, pipeline, storage, tuning
from mvad.commands.fit import fitted_result, plan_fit
from mvad.console import Reporter
from mvad.options import Data, Models, TuneOptions, takes
from mvad.results.result import Result


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
    manifest, train, jobs = plan_fit(data, folder, options, report)
    report.image_count(manifest)

    started = time.monotonic()
    with pipeline.job_session(options, report, lambda: fitting.prepare_network(jobs)):
        jobs = tuning.tune_jobs(train, jobs, options.budget, report)
        tuned = time.monotonic()
        outcomes, jobs = tuning.fit_each(train, jobs, report, refit=options.new_run)
    result = fitted_result(outcomes, manifest, train, options, folder, report)
    result.summary = tuning.candidate_rows(folder)
    result.seconds = {"tune": tuned - started, "fit": time.monotonic() - tuned}
    return result
