import datetime
import functools
import itertools
from collections.abc import Callable, Collection

from mvad import pipeline, scoring, storage
from mvad.console import Reporter
from mvad.data.listing import Listing, require_images
from mvad.data.manifest import require_categories
from mvad.model_store import ensure_outside_models, find_models, load_networks, models_for
from mvad.options import Data, MixedOptions, Models, Out, takes
from mvad.results.printed import PrintTable, print_summary
from mvad.results.result import Result
from mvad.results.run_record import Run


@takes(MixedOptions)
def score(data: Data, models: Models, out: Out, options: MixedOptions) -> Result:
    """Score the test images of DATA, or all images of an unlabelled folder; one row per image in OUT.

    Safe to repeat: images that have a row already are skipped, those that failed are tried again.

    Raises
    ------
    UsageError
        As for `run`; or there is no model that can be used for any category of DATA. Images of a category without one
        become error rows.

    Examples
    --------
    >>> result = mvad.score("sample", "models", "scores", categories="weave", limit=4, maps="all", quiet=True)
    >>> len(result.errors)
    0
    """
    return score_missing(data, models, out, options)


def score_missing(
    data: str,
    models: str,
    out: str,
    options: MixedOptions,
    *,
    night: datetime.date | None = None,
    expected: Callable[[Collection[str]], Collection[str]] | None = None,
    print_table: PrintTable = print_summary,
    begun: Callable[[Run], None] | None = None,
) -> Result:
    """Score the images of DATA that have no current row in OUT.

    If they are those of a ``night``, ``expected`` says which of the categories that have a model must have images: exit
    code 4 if one has none, or has drifted. ``print_table`` prints the summary; ``begun`` gets the run once it is
    recorded.
    """
    report, target, folder = Reporter(options.quiet), storage.to_uri(out), storage.to_uri(models)
    ensure_outside_models(target, folder)
    fitted = find_models(folder, options.method)
    require_categories(options.threshold_categories, fitted, folder)
    # What there is to score; the listing may go on while it is scored.
    images = require_images(Listing(data, options.listing))
    categories = options.candidates([*fitted, *fitted.errors]) if options.is_mixed else images.categories
    chosen = models_for(categories, fitted)
    category_models, networks = load_networks(chosen, options.weights, options.memory_budget)
    dump = scoring.MixedDump(category_models, networks, options) if options.is_mixed else None
    for warning in [*category_models.warnings, *scoring.ignore_remarks(category_models, images.ignore)]:
        report.warn(warning)
    begin = Run.of_mixed_dump if options.is_mixed else Run.of_models
    run = begin(target, images, category_models, options)  # a new run, or one that was interrupted
    run.night = night
    if expected is not None:
        run.drift_fails, run.expected = True, expected(fitted)

    missing = run.missing(images, report)  # what has no row yet
    first = next(missing, None)
    if first is None and run.is_done and not len(run.left_out(images)):
        return run.nothing_to_do(report, print_table)
    run.record()
    if begun is not None:
        begun(run)
    jobs = scoring.scoring_jobs(category_models.values(), run, options, category_models.errors)
    if first is not None:
        prepare = functools.partial(scoring.prepare_networks, category_models.values(), networks, options)
        with run.timed("score"), pipeline.job_session(options, report, prepare):
            scoring.score_images(itertools.chain([first], missing), jobs, [run], networks, options, report, dump)
    run.write_left_out(images)
    n_images = images.n_test + len(images.left_out)
    return run.show(run.finish(n_images, report.stages), report, print_table)
