"""Schedule fits and folds as tasks, calibrate, and save the models."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import ray
from numpy.typing import NDArray

from mvad.calibration import kfold
from mvad.console import Stage
from mvad.data.sampling import evenly_spaced
from mvad.detectors import Pretrained
from mvad.errors import UsageError, failure_reason
from mvad.fitting.by_category import CategoryFeatures
from mvad.fitting.category_fit import MIN_CALIBRATION_GROUPS, CategoryFit, steps_of
from mvad.fitting.jobs import FitJob, FitOutcome
from mvad.fitting.sharding import Shards
from mvad.fitting.tasks import (
    FittedShards,
    fit_to_shards,
    pretrain_detector,
    summarise_shard,
)
from mvad.memory import MemoryBudget
from mvad.model_store import save_model
from mvad.origins.bank_origins import Image
from mvad.runtime.resources import ActorPool
from mvad.search.duplicates import group_near_duplicates

PRIOR_IMAGES = 12  # images of each other category that a `Pretrained` method learns from first
MAX_TASKS_PER_CORE = 16  # waiting tasks: Ray looks through all of them whenever one ends


@dataclass
class _ShardedFit:
    """A fit whose shards are on their way, by number: references to summaries, and to features that calibrate."""

    fit: CategoryFit
    image_ids: dict[int, list[str]] = field(default_factory=dict)
    usable_ids: dict[int, NDArray[np.object_]] = field(default_factory=dict)
    summaries: dict[int, ray.ObjectRef] = field(default_factory=dict)
    held_out: dict[int, ray.ObjectRef] = field(default_factory=dict)
    is_held_out: dict[int, NDArray[np.bool_]] = field(default_factory=dict)
    fingerprints: dict[int, NDArray[np.uint8]] = field(default_factory=dict)
    learnt: dict[int, list[Image]] = field(default_factory=dict)  # images that the summaries are of
    n_fitted: int = 0
    n_ended: int = 0
    seconds: float = 0.0


class _Task(NamedTuple):
    """A task that has not come back, and the features in Ray's object store that it reads."""

    fit: CategoryFit
    take: Callable[[Any], None]
    features: ray.ObjectRef | None
    n_bytes: int


class FitScheduler:
    """Fits jobs as their categories arrive.

    Parameters
    ----------
    shards
        By category: how it is divided if it is too large to be fitted at once. Such a category has one job.
    budget
        Memory for features that tasks still need.
    pool
        The actors that extract; tasks reserve what is left next to them.
    """

    def __init__(
        self,
        jobs: Sequence[FitJob],
        shards: Mapping[str, Shards],
        budget: MemoryBudget,
        pool: ActorPool,
        stage: Stage,
        keep_going: bool,
    ) -> None:
        self.outcomes = [FitOutcome(job) for job in jobs]
        self._of_category: dict[str, list[FitOutcome]] = defaultdict(list)
        for outcome in self.outcomes:
            self._of_category[outcome.job.category].append(outcome)
        self._shards, self._budget, self._pool = shards, budget, pool
        self._stage, self._keep_going = stage, keep_going
        self.uncalibrated: list[CategoryFit] = []  # fits whose images calibrate left out, to be saved afterwards
        self._tasks: dict[ray.ObjectRef, _Task] = {}
        self._sharded: dict[str, _ShardedFit] = {}
        self._pretrained: list[tuple[CategoryFit, ray.ObjectRef]] = []
        self._samples: dict[str, dict[str, NDArray[np.float32]]] = defaultdict(dict)  # by kind and category

    def add(self, category: CategoryFeatures) -> None:
        """Start what can start now that a category, or a shard of it, is complete."""
        self._wait_for_memory(category.nbytes)
        references = {kind: ray.put(features) for kind, features in category.features.items()}
        if category.category in self._shards:
            self._add_shard(category, references)
            return
        for outcome in self._of_category[category.category]:
            kind = outcome.job.method.feature
            fit = self._begin(outcome, category)
            if not fit.n_images:
                outcome.failure = f"no model: none of its {len(outcome.errors)} training images is usable"
            elif issubclass(outcome.job.method, Pretrained):
                images = category.rows_of(category.all_image_ids)
                sample = images[evenly_spaced(len(images), PRIOR_IMAGES)]
                self._samples[kind][category.category] = category.features[kind][sample]
                self._pretrained.append((fit, references[kind]))
            else:
                self._start(fit, references[kind], category.nbytes)
                self._wait_for_tasks()

    def finish(self) -> list[FitOutcome]:
        """Do what needs all categories, and wait for all tasks; outcomes in the jobs' order."""
        priors: dict[tuple[str, str], ray.ObjectRef] = {}
        for fit, features in self._pretrained:
            job = fit.outcome.job
            samples = self._samples[job.method.feature]
            others = [samples[name] for name in sorted(samples) if name != job.category]
            key = (job.options.method, job.category)
            if key not in priors and others:
                priors[key] = self._remote(pretrain_detector).remote(job.options, others)
            if others:
                self._start(fit, features, 0, priors[key])
                self._wait_for_tasks()
            else:
                self._fail(fit, ValueError("it learns from other categories first, and there are none"))
        self.finish_tasks()
        return self.outcomes

    def finish_tasks(self) -> None:
        """Wait for all tasks."""
        while self._tasks:
            self._take_one()

    def _begin(self, outcome: FitOutcome, category: CategoryFeatures) -> CategoryFit:
        fit = CategoryFit.of(outcome, category)
        share = len(fit.all_image_ids) / len(category.all_image_ids) / self._pool.actors
        fit.seconds = self._stage.totals.seconds(category.category) * share
        return fit

    def _start(
        self, fit: CategoryFit, features: ray.ObjectRef, n_bytes: int, prior: ray.ObjectRef | None = None
    ) -> None:
        """Start the fit to all images, and what calibrates; near duplicates are held out together.

        That is a part of the same task if images are left out of the bank, and else a fit to the others of each fold.
        """
        job = fit.outcome.job
        # More threads than cores would wait for each other: fits that run side by side share the cores of a node.
        share = 0.0 if self._pool.gpus else min(1.0, self._pool.nodes / len(self.outcomes))
        if job.options.drop_suspects:
            fit.features, fit.n_bytes, fit.prior = features, n_bytes, prior
        self._stage.busy_with(f"{job.title}: fitting to {fit.n_images:,} images", passing=len(self.outcomes) > 1)
        for step in steps_of(fit, prior, share):
            task = self._remote(step.function).remote(job.options, features, *step.arguments, **step.keywords)
            self._watch(task, _Task(fit, step.take, features, n_bytes))

    def _add_shard(self, shard: CategoryFeatures, references: Mapping[str, ray.ObjectRef]) -> None:
        (outcome,), plan = self._of_category[shard.category], self._shards[shard.category]
        if shard.category not in self._sharded:
            no_images = np.empty(0, np.int64), np.empty(0, np.int64)
            no_ids = np.empty(0, object)
            self._sharded[shard.category] = _ShardedFit(CategoryFit(outcome, *no_images, 0, no_ids, [], 0.0))
        sharded, kind = self._sharded[shard.category], outcome.job.method.feature
        held_out = plan.is_held_out(shard.shard, len(shard.all_image_ids))
        held_out = held_out[np.isin(shard.all_image_ids, shard.image_ids)]
        all_rows = shard.rows_of(shard.all_image_ids, n_variants=outcome.job.options.rows_per_image - 1)
        rows = all_rows.reshape(len(held_out), outcome.job.options.rows_per_image)  # an image and its variants per row
        if held_out.any():
            sharded.held_out[shard.shard] = ray.put(shard.features[kind][rows[held_out, 0]])
        sharded.image_ids[shard.shard] = shard.all_image_ids
        sharded.usable_ids[shard.shard] = shard.image_ids[rows[:, 0]]
        sharded.is_held_out[shard.shard] = held_out
        sharded.learnt[shard.shard] = shard.named(shard.image_ids[rows[~held_out, 0]])
        if shard.fingerprints is not None:
            sharded.fingerprints[shard.shard] = shard.fingerprints[rows[:, 0]]
        sharded.n_fitted += int((~held_out).sum())
        sharded.fit.n_images += len(held_out)
        outcome.errors |= shard.errors

        def take(summarised: tuple[Any, float]) -> None:
            summary, seconds = summarised
            sharded.summaries[shard.shard] = ray.put(summary)
            sharded.seconds += seconds
            self._end_shard(sharded, plan)

        if held_out.all():
            self._end_shard(sharded, plan)
            return
        fitted = rows[~held_out].ravel()
        task = self._remote(summarise_shard).remote(outcome.job.options, references[kind], fitted, plan.share)
        self._watch(task, _Task(sharded.fit, take, references[kind], shard.nbytes))
        self._wait_for_tasks()

    def _end_shard(self, sharded: _ShardedFit, plan: Shards) -> None:
        """Fit to the summaries once there is one of the last shard."""
        fit, sharded.n_ended = sharded.fit, sharded.n_ended + 1
        outcome, options = fit.outcome, fit.outcome.job.options
        progress = f"{sharded.n_ended} of {plan.count} shards summarised"
        self._stage.busy_with(f"{outcome.job.category}: {progress}", passing=True)
        if sharded.n_ended < plan.count:
            return
        if not sharded.n_fitted:
            outcome.failure = f"no model: none of its {len(outcome.errors)} training images is usable"
            return
        fit.all_image_ids = [name for shard in sorted(sharded.image_ids) for name in sharded.image_ids[shard]]
        fit.image_ids = _in_order(sharded.usable_ids)
        fit.seconds = self._stage.totals.seconds(outcome.job.category) / self._pool.actors + sharded.seconds
        fit.rows, fit.groups = np.arange(fit.n_images * options.rows_per_image), np.arange(fit.n_images)
        if sharded.fingerprints:
            fit.groups = group_near_duplicates(_in_order(sharded.fingerprints))
        self._fit_to_shards(sharded, plan)

    def _fit_to_shards(self, sharded: _ShardedFit, plan: Shards) -> None:
        """Fit to the summaries that there are, and score the images that are held out of them."""
        fit, outcome, options = sharded.fit, sharded.fit.outcome, sharded.fit.outcome.job.options
        is_held_out = _in_order(sharded.is_held_out)
        # The images that calibrate were held out before their near duplicates were known.
        calibrates = ~np.isin(fit.groups[is_held_out], fit.groups[~is_held_out])

        folds = None
        if plan.left_out and fit.n_groups >= MIN_CALIBRATION_GROUPS:
            fit.shards = np.array(sorted(sharded.summaries))
            folds = kfold(fit.n_groups, options.folds, options.seed)[fit.groups]

        def take(fitted: FittedShards) -> None:
            fit.state, fit.origins = fitted.state, fitted.origins if folds is not None else None
            fit.learnt = [image for shard in sorted(sharded.summaries) for image in sharded.learnt[shard]]
            if fitted.shortfall is not None:
                limit = f"{options.memory_limit / (1 << 20):,.0f} MiB"
                outcome.note = f"{fitted.shortfall}: --memory-limit is {limit}"
            if fitted.held_out is not None:
                fit.hold_out(np.flatnonzero(is_held_out)[calibrates], fitted.held_out.columns[calibrates])

        held_out, summaries = (
            [references[shard] for shard in sorted(references)] for references in (sharded.held_out, sharded.summaries)
        )
        n_patches = sharded.n_fitted * plan.patches
        task = self._remote(fit_to_shards).remote(options, n_patches, held_out, summaries, outcome.job.size, folds)
        self._watch(task, _Task(fit, take, None, 0))

    def _remote(self, function: Callable[..., Any]) -> Any:
        return ray.remote(function).options(**self._pool.task_resources)

    def _watch(self, reference: ray.ObjectRef, task: _Task) -> None:
        self._tasks[reference] = task

    def _wait_for_tasks(self) -> None:
        """Wait until there are not too many tasks."""
        while len(self._tasks) > MAX_TASKS_PER_CORE * self._pool.cores:
            self._take_one()

    def _wait_for_memory(self, n_bytes: int) -> None:
        """Wait until the budget has room for so many bytes of features in the object store."""
        while self._tasks:
            held = {task.features: task.n_bytes for task in self._tasks.values()}
            if sum(held.values()) + n_bytes <= self._budget.bytes:
                return
            self._take_one()

    def _take_one(self) -> None:
        """Wait for a task, and take its outcome; save the model after its last."""
        (reference,), _ = ray.wait(list(self._tasks), num_returns=1)
        fit, take, *_ = self._tasks.pop(reference)
        try:
            take(ray.get(reference))
        except Exception as error:
            self._fail(fit, error)
        is_last = all(task.fit is not fit for task in self._tasks.values())
        if is_last and fit.state is not None and fit.outcome.failure is None:
            if fit.origins is None:
                self.end(fit)
            else:
                self.uncalibrated.append(fit)

    def end(self, fit: CategoryFit) -> None:
        """Calibrate a fit whose held-out scores are there, and save it, or fit once more without its suspects.

        Without them the others vary less, and most that are then outliers are good: those are not left out, too.
        """
        if not fit.settle():
            self.save(fit)
            return
        assert fit.state is not None
        sharded = self._sharded.get(fit.outcome.job.category)
        if sharded is None:
            assert fit.features is not None
            fit.seconds += fit.state.seconds
            self._start(fit, fit.features, fit.n_bytes, fit.prior)
        elif fit.origins is None:  # no suspect was learnt from: those that calibrate were held out of it
            self.end(fit)
        else:
            fit.seconds += fit.state.seconds
            self._fit_again_to_shards(sharded)

    def _fit_again_to_shards(self, sharded: _ShardedFit) -> None:
        """Fit again without the images, each a shard, that have been dropped; the fit is uncalibrated again."""
        fit, plan = sharded.fit, self._shards[sharded.fit.outcome.job.category]
        assert fit.shards is not None
        kept = {*fit.shards.tolist()}
        for by_shard in (sharded.summaries, sharded.is_held_out):
            for shard in by_shard.keys() - kept:
                del by_shard[shard]
        sharded.n_fitted = fit.n_images
        self._fit_to_shards(sharded, plan)

    def save(self, fit: CategoryFit) -> None:
        """Save the model of a fit that is calibrated."""
        job = fit.outcome.job
        try:
            model = fit.model()
        except ValueError as error:
            reason = f"no model: what was learnt is not usable ({error}); try other options, or other images"
            self._fail(fit, UsageError(f"{job.title}: {reason}."), reason)
            return
        fit.outcome.model = save_model(job.models, model)
        fit.state = fit.features = fit.held_out = None  # which may be large
        n_left = len({id(task.fit) for task in self._tasks.values()})
        to_go = f", {n_left} to go" if n_left else ""
        self._stage.busy_with(f"{job.title}: fitted{to_go}", passing=len(self.outcomes) > 1 and bool(n_left))

    def _fail(self, fit: CategoryFit, error: Exception, reason: str | None = None) -> None:
        if not self._keep_going:
            raise error
        fit.features = None
        fit.outcome.failure = fit.outcome.failure or reason or f"no model: {failure_reason(error)}"


def _in_order(arrays: Mapping[int, NDArray[Any]]) -> NDArray[Any]:
    """The arrays of all shards, one after the other."""
    return np.concatenate([arrays[shard] for shard in sorted(arrays)])
