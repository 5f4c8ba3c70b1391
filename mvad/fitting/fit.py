"""Fit models: plan memory, extract features once, fit every job to its category as it completes."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mvad import storage
from mvad.calibration import suspects_warning
from mvad.console import Reporter, Stage, plural
from mvad.data.image_size import ImageSize
from mvad.data.images import ignored_share
from mvad.data.sampling import evenly_spaced, training_rows
from mvad.detectors import Pretrained, Shardable
from mvad.errors import UsageError
from mvad.features.kinds import GRIDS
from mvad.features.specs import feature_shapes
from mvad.features.weights import Network
from mvad.fitting.by_category import group_by_category
from mvad.fitting.category_fit import CategoryFit
from mvad.fitting.fitted import Kept, identify, kept_models
from mvad.fitting.jobs import FitJob, FitOutcome
from mvad.fitting.scheduler import FitScheduler
from mvad.fitting.sharding import Shards, max_images, patch_step, subsample_categories
from mvad.memory import MemoryBudget
from mvad.model_store import ModelInfo, read_calibration
from mvad.options import DecisionOptions, FitOptions
from mvad.pipeline.bit_depths import measure_bit_depths
from mvad.pipeline.dataset import extract_features
from mvad.pipeline.image_sizes import measure_sizes
from mvad.results.verdicts import decision_rule
from mvad.runtime.resources import ActorPool, actor_pool
from mvad.scoring.left_out import SharedBank, score_left_out
from mvad.storage.text import shown_name

MAX_LEFT_OUT = 200  # images of a category that calibrate one by one


def fit_models(
    train: pa.Table, jobs: Sequence[FitJob], report: Reporter, *, keep_going: bool = False, refit: bool = False
) -> list[FitOutcome]:
    """Fit every job that has no model of the same options and images yet; with ``refit``, all.

    The outcomes are in the order of the jobs. For ``train`` and ``keep_going`` see `_fit`.
    """
    jobs = identify(jobs, train)
    kept, damaged = Kept({}, {}) if refit else kept_models(jobs)
    for number, error in damaged.items():
        report.warn(f"{shown_name(jobs[number].title)} is fitted again: {error}")
    left = [job for number, job in enumerate(jobs) if number not in kept]
    if kept:
        report.info(f"{len(kept):,} of {plural(len(jobs), 'model')} fitted already, of the same images and options")
    needed = pa.array(sorted({job.category for job in left}), pa.string())
    images = train.filter(pc.is_in(train["category"], needed))
    fitted = iter(_fit(images, left, report, keep_going=keep_going) if left else ())
    outcomes = [
        _outcome_of(jobs[number], kept[number]) if number in kept else next(fitted) for number in range(len(jobs))
    ]
    _warn_of_caveats(outcomes, report)
    return outcomes


def _outcome_of(job: FitJob, model: ModelInfo) -> FitOutcome:
    errors = {row["image_id"]: row["error"] for row in model.record["errors"]}
    return FitOutcome(job, model, errors=errors)


def _fit(train: pa.Table, jobs: Sequence[FitJob], report: Reporter, *, keep_going: bool) -> list[FitOutcome]:
    """Extract the features of training images once, and fit every job to its category as soon as that is complete.

    Parameters
    ----------
    train
        The manifest's rows of the training images, sorted by category.
    jobs
        Of one backbone and seed. Their outcomes are returned in the same order.
    keep_going
        Whether a fit that fails becomes a failure of its job, or an exception.
    """
    bit_depths = measure_bit_depths(train, jobs[0].options)
    sizes = _input_sizes(train, jobs, report)
    groups: dict[ImageSize, dict[int, FitJob]] = defaultdict(dict)
    for number, (job, size) in enumerate(zip(jobs, sizes, strict=True)):
        groups[size][number] = replace(job.seen_at(size), bit_depth=bit_depths[job.category])
    outcomes: dict[int, FitOutcome] = {}
    with report.stage("fit", 0) as stage:
        for size, group in groups.items():
            categories = pa.array(sorted({job.category for job in group.values()}), pa.string())
            images = train.filter(pc.is_in(train["category"], categories))
            fitted = _fit_group(images, size, list(group.values()), stage, keep_going=keep_going)
            outcomes |= zip(group, fitted, strict=True)
    for number in sorted(outcomes):
        for text in (outcomes[number].failure, outcomes[number].note):
            if text is not None:
                report.warn(f"{shown_name(outcomes[number].job.title)}: {text}")
    return [outcomes[number] for number in sorted(outcomes)]


def _input_sizes(train: pa.Table, jobs: Sequence[FitJob], report: Reporter) -> list[ImageSize]:
    """The input size of each job's model, said aloud where it is not a square that shows all of an image."""
    options, spec = jobs[0].options, jobs[0].network.spec
    together = any(issubclass(job.method, Pretrained) for job in jobs)
    found = {
        windows: measure_sizes(train, options, spec, windows=windows, one_for_all=together)
        for windows in {job.method.feature in GRIDS for job in jobs}
    }
    sizes = [replace(found[job.method.feature in GRIDS][job.category], ignore=job.ignore) for job in jobs]
    for category, size in dict.fromkeys((job.category, size) for job, size in zip(jobs, sizes, strict=True)):
        name = shown_name(category)
        if size.ignore is not None:
            report.info(f"{name}: {100 * ignored_share(size):.1f} % of each image is ignored")
        if size.window is not None:
            report.info(f"{name}: images of {size} pixels, seen through {size.described_windows}")
        elif size.height != size.width:
            report.info(f"{name}: the model's input is {size} pixels, the shape of the images")
        if size.height != size.width and "quarter-turns" in (options.augmentations or ()):
            report.info(f"{name}: its images are not square, so --augmentations quarter-turns makes half turns of them")
    return sizes


def _fit_group(
    train: pa.Table, size: ImageSize, jobs: Sequence[FitJob], stage: Stage, *, keep_going: bool
) -> list[FitOutcome]:
    """Fit jobs whose models have an input of one size."""
    options, network = jobs[0].options, jobs[0].network
    shapes = feature_shapes(sorted({job.method.feature for job in jobs}), network.spec, size)
    jobs = [replace(job, feature_shape=shapes[job.method.feature]) for job in jobs]
    budget, step = options.memory_budget.after_weights(network.nbytes), 1
    if size.window is not None:
        step = patch_step(shapes, options, budget)
        shapes = feature_shapes(list(shapes), network.spec, size, step)
    if step > 1:
        jobs = [replace(job, patch_step=step) for job in jobs]
        names = ", ".join(sorted({shown_name(job.category) for job in jobs}))
        reason = "--memory-limit holds no more of an image"
        stage.report.info(f"{names}: one patch in {step} x {step} is learnt from: {reason}")
    fits: dict[str, list[FitOptions]] = defaultdict(list)
    for job in jobs:
        fits[job.category].append(job.options)
    shards, train = _plan(train, jobs, fits, shapes, size, step, budget, stage.report)
    all_images = any(issubclass(job.method, Pretrained) for job in jobs)
    images = training_rows(train, fits, all_images=all_images)
    pool = actor_pool(options.actors, len(images))
    stage.expect(len(images))
    scheduler = FitScheduler(jobs, shards, budget, pool, stage, keep_going)
    bit_depths = {job.category: job.bit_depth for job in jobs}
    batches = extract_features(
        images, shapes, network, size, options, pool, stage, bit_depths, options.augmentation, step
    )
    for category in group_by_category(batches, images, _shard_of_rows(images, shards, options.rows_per_image)):
        scheduler.add(category)
        del category
    outcomes = scheduler.finish()
    while scheduler.uncalibrated:  # once more where suspects are left out
        uncalibrated, scheduler.uncalibrated = scheduler.uncalibrated, []
        _calibrate_left_out(uncalibrated, scheduler, images, size, network, options, pool, stage, bit_depths)
        scheduler.finish_tasks()
    return outcomes


def _calibrate_left_out(
    fits: Sequence[CategoryFit],
    scheduler: FitScheduler,
    images: pa.Table,
    size: ImageSize,
    network: Network,
    options: FitOptions,
    pool: ActorPool,
    stage: Stage,
    bit_depths: Mapping[str, int],
) -> None:
    """Calibrate fits that wait for it: up to so many of their images, each left out of the bank."""
    rows: list[int] = []
    banks, places = {}, {}
    for fit in fits:
        assert fit.shards is not None
        assert fit.state is not None
        of_category = np.flatnonzero(pc.equal(images["category"], fit.outcome.job.category).to_numpy())
        calibrating = evenly_spaced(fit.n_images, MAX_LEFT_OUT)
        groups = {number: np.flatnonzero(fit.groups == fit.groups[number]) for number in calibrating.tolist()}
        left_out = {len(rows) + place: frozenset(group.tolist()) for place, group in enumerate(groups.values())}
        places[fit.outcome.job.category] = calibrating, slice(len(rows), len(rows) + len(calibrating))
        rows += of_category[fit.shards[calibrating] * fit.outcome.job.options.rows_per_image].tolist()
        banks[fit.outcome.job.category] = SharedBank(fit.outcome.job.options.method, fit.state, fit.origins, left_out)
    if not rows:
        return
    stage.expect(len(rows))
    stage.busy_with("calibrating")
    table = images.select(["uri", "category"]).take(pa.array(rows, pa.int64()))
    scores = score_left_out(table, size, banks, network, options, pool, stage, bit_depths)
    for fit in fits:
        calibrating, place = places[fit.outcome.job.category]
        usable = np.isfinite(scores[place, :2]).all(axis=1)
        fit.hold_out(calibrating[usable], scores[place][usable])
        scheduler.end(fit)


def _warn_of_caveats(outcomes: Sequence[FitOutcome], report: Reporter) -> None:
    """Say what the thresholds of models cannot promise, and which images may not be good, of models new or not."""
    fitted = [outcome for outcome in outcomes if outcome.model is not None]
    for outcome, caveat in zip(fitted, storage.parallel_map(_caveat, fitted), strict=True):
        if caveat is not None:
            report.warn(f"{outcome.job.category}: {caveat}")
        suspects = _suspects_warning(outcome)
        if suspects is not None:
            report.warn(suspects)


def _suspects_warning(outcome: FitOutcome) -> str | None:
    assert outcome.model is not None
    record = outcome.model.record
    suspects = record.get("suspects", [])
    n_images = record["n_train"] + sum(one["dropped"] for one in suspects)
    return suspects_warning(outcome.job.category, suspects, record.get("suspects_examined"), n_images)


def _caveat(outcome: FitOutcome) -> str | None:
    model, options = outcome.model, outcome.job.options
    assert model is not None
    decisions = options if isinstance(options, DecisionOptions) else DecisionOptions()
    scores = read_calibration(model)
    return decision_rule(model.model_id, model.method, model.category, scores, decisions, model.record).caveat


def _plan(
    train: pa.Table,
    jobs: Sequence[FitJob],
    fits: Mapping[str, Sequence[FitOptions]],
    shapes: Mapping[str, Sequence[int]],
    size: ImageSize,
    step: int,
    budget: MemoryBudget,
    report: Reporter,
) -> tuple[dict[str, Shards], pa.Table]:
    """What memory holds: shards of large categories, or if their jobs cannot be sharded, fewer of their images.

    Images of which every ``step``-th patch is learnt from are shards however few they are: scores of thinned patches
    would not calibrate. UsageError if their jobs cannot be sharded.
    """
    largest = min(max_images(shapes, job.options, budget) for job in jobs) if step == 1 else 0
    sizes = Counter(train["category"].to_pylist())
    shardable = all(
        issubclass(job.method, Shardable) and job.options.shots is None and len(fits[job.category]) == 1 for job in jobs
    )
    if shardable:
        options, shape = jobs[0].options, shapes[jobs[0].method.feature]
        alone = size.window is not None
        return {
            name: Shards.plan(n, shape, options, budget, alone=alone) for name, n in sizes.items() if n > largest
        }, train
    if step > 1:
        raise UsageError(
            f"--memory-limit does not hold the features of images of {size} pixels; raise it, give a smaller --scale, "
            "or fit patchcore or subspace alone to all training images."
        )
    train, large = subsample_categories(train, largest)
    for name in large:
        report.warn(
            f"{shown_name(name)}: fitted to {largest:,} of its {sizes[name]:,} images: --memory-limit holds no more"
        )
    return {}, train


def _shard_of_rows(images: pa.Table, shards: Mapping[str, Shards], rows_per_image: int) -> NDArray[np.int64]:
    """The number of each row's shard within its category; the variants of an image are in its shard."""
    numbers = np.zeros(len(images), np.int64)
    categories = np.array(images["category"].to_pylist(), object)
    for name, plan in shards.items():
        rows = np.flatnonzero(categories == name)
        numbers[rows] = np.arange(len(rows)) // (plan.shard_images * rows_per_image)
    return numbers
