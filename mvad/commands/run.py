from mvad import fitting, pipeline, scoring, storage, tuning
from mvad.console import Reporter
from mvad.data.manifest import read_manifest, require_categories, require_test_images, require_training_images
from mvad.options import Data, Out, RunOptions, takes
from mvad.results.result import Result
from mvad.results.run_record import Run


@takes(RunOptions)
def run(data: Data, out: Out, options: RunOptions) -> Result:
    """Fit, score and evaluate every category under DATA in one job; safe to repeat.

    An interrupted run of the same images and options is gone on with: models and rows that are there are kept.

    Raises
    ------
    UsageError
        Unusable input, an unknown name, an OUT that is in use, or weights that cannot be had.

    Examples
    --------
    >>> from mvad.options import RunOptions
    >>> options = RunOptions(backbone="efficientnet_lite0", categories="weave", limit=4, image_size=64)
    >>> mvad.run("sample", "results", options=options, maps="all", quiet=True).exit_code
    0
    """
    report, target = Reporter(options.quiet), storage.to_uri(out)
    manifest = read_manifest(data, options, to_learn=True)
    require_categories(options.threshold_categories, manifest.categories, manifest.root)
    train = require_training_images(manifest)
    images = require_test_images(manifest, "; to fit models alone use mvad fit.")
    options = fitting.with_recipe(options, report.info)
    network = fitting.load_network(options)
    run = Run.of_fit(target, manifest, options, network)  # a new run, or one that was interrupted
    jobs = fitting.fit_jobs(manifest, network, storage.join(run.folder, "models"), options)
    report.image_count(manifest)
    run.record()

    with pipeline.job_session(options, report, lambda: fitting.prepare_network(jobs)):
        if options.tune:
            with run.timed("tune"):
                jobs = tuning.tune_jobs(train, jobs, options.budget, report)
        with run.timed("fit"):
            outcomes, jobs = tuning.fit_each(train, jobs, report)
        models = fitting.require_models(outcomes, train)
        run.add_training(*fitting.failures_and_errors(outcomes), train)
        run.write_left_out(manifest)
        with run.timed("score"):
            networks = {job.network.spec: job.network for job in jobs}
            scoring_jobs = scoring.scoring_jobs(models, run, options)
            missing = run.missing([images], report)
            scoring.score_images(missing, scoring_jobs, [run], networks, options, report)
    return run.show(run.finish(manifest.n_files, report.stages), report)
