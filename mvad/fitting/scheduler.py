"""Schedule fits and folds as tasks, calibrate, and save the models."""

import functools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import ray
from numpy.typing import NDArray

from mvad.calibration import fold_splits, one_per_group
from mvad.console import Stage
from mvad.data.sampling import evenly_spaced, pick
from mvad.detectors import LeaveOneOut, Pretrained, State
from mvad.detectors.patchcore import bank_size
from mvad.errors import UsageError, failure_reason
from mvad.fitting.by_category import CategoryFeatures
from mvad.fitting.jobs import FitJob, FitOutcome, digest, groups_of_record
from mvad.fitting.sharding import Shards
from mvad.fitting.tasks import (
    HELD_OUT_COLUMNS,
    HeldOut,
    fit_detector,
    fit_to_shards,
    pretrain_detector,
    score_held_out,
    split_columns,
    subsample_shard,
)
from mvad.memory import MemoryBudget
from mvad.model_store import FittedModel, save_model
from mvad.options import as_json
from mvad.runtime.resources import ActorPool
from mvad.runtime.versions import versions
from mvad.search.duplicates import group_near_duplicates

MIN_CALIBRATION_GROUPS = 4  # of images, those that are no near duplicates of others
PRIOR_IMAGES = 12  # images of each other category that a `Pretrained` method learns from first
MAX_TASKS_PER_CORE = 16  # waiting tasks: Ray looks through all of them whenever one ends


@dataclass
class _Fit:
    """A job in progress: the model, and the scores that calibrate it."""

    outcome: FitOutcome
    rows: NDArray[np.int64]  # of the category's features: each image, then its variants
    groups: NDArray[np.int64]  # of near duplicates: the number of each image's
    n_images: int
    digest: str
    seconds: float  # of actors' time, for extraction
    state: State | None = None
    calibration: NDArray[np.float32] | None = None  # (n_groups,)
    map_peaks: NDArray[np.float32] | None = None  # (n_groups,), of methods that localise
    patch_sample: NDArray[np.float32] | None = None  # (n_groups, patches), of methods that localise
    held_out: NDArray[np.float32] | None = None  # `HeldOut.columns` of all images by folds, until all are there
    calibration_seconds: float = 0.0
    owners: NDArray[np.int64] | None = None  # if images calibrate left out: the shard of each vector of the bank
    shards: NDArray[np.int64] | None = None  # and that of each image

    @property
    def n_groups(self) -> int:
        return int(self.groups.max(initial=-1)) + 1

    def take_state(self, state: State) -> None:
        self.state = state
        if state.loo_scores is not None:
            self.calibration = state.loo_scores

    def take_fold(self, held_out: NDArray[np.int64], outcome: HeldOut) -> None:
        assert self.held_out is not None
        self.held_out[held_out] = outcome.columns
        self.calibration_seconds += outcome.seconds

    def calibrate(self, held_out: NDArray[np.float32], groups: NDArray[np.int64], seed: int) -> None:
        """Take `HeldOut.columns`, (n, columns), of one image of each group of near duplicates."""
        self.calibration, peaks, patches = split_columns(one_per_group(held_out, groups, seed))
        self.map_peaks, self.patch_sample = peaks, patches


@dataclass
class _ShardedFit:
    """A fit whose shards are on their way, by number: references to coresets, and to features that calibrate."""

    fit: _Fit
    image_ids: dict[int, list[str]] = field(default_factory=dict)
    coresets: dict[int, ray.ObjectRef] = field(default_factory=dict)
    held_out: dict[int, ray.ObjectRef] = field(default_factory=dict)
    is_held_out: dict[int, NDArray[np.bool_]] = field(default_factory=dict)
    fingerprints: dict[int, NDArray[np.uint8]] = field(default_factory=dict)
    n_patches: int = 0
    n_fitted: int = 0
    n_subsampled: int = 0
    subsample_seconds: float = 0.0


class _Task(NamedTuple):
    """A task that has not come back, and the features in Ray's object store that it reads."""

    fit: _Fit
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
        self.uncalibrated: list[_Fit] = []  # fits whose images calibrate left out, to be saved afterwards
        self._tasks: dict[ray.ObjectRef, _Task] = {}
        self._sharded: dict[str, _ShardedFit] = {}
        self._pretrained: list[tuple[_Fit, ray.ObjectRef]] = []
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
            else:
                self._fail(fit, ValueError("it learns from other categories first, and there are none"))
        while self._tasks:
            self._take_one()
        return self.outcomes

    def _begin(self, outcome: FitOutcome, category: CategoryFeatures) -> _Fit:
        options = outcome.job.options
        image_ids = pick(category.all_image_ids, options, category.category)
        outcome.errors = {name: category.errors[name] for name in image_ids if name in category.errors}
        rows = category.rows_of(image_ids, variants=options.rows_per_image > 1)
        share = len(image_ids) / len(category.all_image_ids) / self._pool.actors
        seconds = self._stage.totals.seconds(category.category) * share
        n_images = len(image_ids) - len(outcome.errors)
        groups = category.groups_of(rows.reshape(n_images, -1)[:, 0] if n_images else rows)
        return _Fit(outcome, rows, groups, n_images, digest(image_ids), seconds)

    def _start(self, fit: _Fit, features: ray.ObjectRef, n_bytes: int, prior: ray.ObjectRef | None = None) -> None:
        """Start the fit to all images, and one to the other images of each fold; near duplicates share a fold."""
        job, all_cores = fit.outcome.job, not self._pool.gpus
        self._stage.busy_with(f"{job.title}: fitting to {fit.n_images:,} images", passing=len(self.outcomes) > 1)
        groups = fit.groups if fit.n_groups < fit.n_images else None
        fit_all = self._remote(fit_detector).remote(
            job.options, features, fit.rows, prior, groups=groups, all_cores=all_cores
        )
        self._watch(fit_all, _Task(fit, fit.take_state, features, n_bytes))
        if issubclass(job.method, LeaveOneOut) or not job.options.folds or fit.n_groups < MIN_CALIBRATION_GROUPS:
            return
        rows = fit.rows.reshape(fit.n_images, -1)  # an image and its variants per row
        fit.held_out = np.full((fit.n_images, HELD_OUT_COLUMNS), np.nan, np.float32)
        for others, held_out in fold_splits(fit.groups, job.options.folds, job.options.seed):
            fitted, scored = rows[others].ravel(), rows[held_out, 0]
            fold = self._remote(score_held_out).remote(job.options, features, fitted, scored, prior, job.size)
            self._watch(fold, _Task(fit, functools.partial(fit.take_fold, held_out), features, n_bytes))

    def _add_shard(self, shard: CategoryFeatures, references: Mapping[str, ray.ObjectRef]) -> None:
        (outcome,), plan = self._of_category[shard.category], self._shards[shard.category]
        if shard.category not in self._sharded:
            no_images = np.empty(0, np.int64), np.empty(0, np.int64)
            self._sharded[shard.category] = _ShardedFit(_Fit(outcome, *no_images, 0, "", 0.0))
        sharded, kind = self._sharded[shard.category], outcome.job.method.feature
        held_out = plan.is_held_out(shard.shard, len(shard.all_image_ids))
        held_out = held_out[np.isin(shard.all_image_ids, shard.image_ids)]
        if held_out.any():
            sharded.held_out[shard.shard] = ray.put(shard.features[kind][held_out])
        sharded.image_ids[shard.shard] = shard.all_image_ids
        sharded.is_held_out[shard.shard] = held_out
        if shard.fingerprints is not None:
            sharded.fingerprints[shard.shard] = shard.fingerprints
        sharded.n_fitted += int((~held_out).sum())
        sharded.fit.n_images += len(held_out)
        outcome.errors |= shard.errors

        def take(subsampled: tuple[Any, float]) -> None:
            coreset, seconds = subsampled
            sharded.coresets[shard.shard] = ray.put(coreset)
            sharded.n_patches += len(coreset.vectors)
            sharded.subsample_seconds += seconds
            self._end_shard(sharded, plan)

        if held_out.all():
            self._end_shard(sharded, plan)
            return
        rows = np.flatnonzero(~held_out)
        task = self._remote(subsample_shard).remote(outcome.job.options, references[kind], rows, plan.share)
        self._watch(task, _Task(sharded.fit, take, references[kind], shard.nbytes))

    def _end_shard(self, sharded: _ShardedFit, plan: Shards) -> None:
        """Fit to the coresets once the last shard has been subsampled."""
        fit, sharded.n_subsampled = sharded.fit, sharded.n_subsampled + 1
        outcome, options = fit.outcome, fit.outcome.job.options
        progress = f"{sharded.n_subsampled} of {plan.count} shards subsampled"
        self._stage.busy_with(f"{outcome.job.category}: {progress}", passing=True)
        if sharded.n_subsampled < plan.count:
            return
        if not sharded.n_fitted:
            outcome.failure = f"no model: none of its {len(outcome.errors)} training images is usable"
            return
        size = bank_size(options, sharded.n_fitted * plan.patches)
        if sharded.n_patches < size:
            limit = f"{options.memory_limit / (1 << 20):,.0f} MiB"
            outcome.note = f"the bank holds {sharded.n_patches:,} patches, not {size:,}: --memory-limit is {limit}"
        fit.digest = digest([name for shard in sorted(sharded.image_ids) for name in sharded.image_ids[shard]])
        fit.seconds = self._stage.totals.seconds(outcome.job.category) / self._pool.actors + sharded.subsample_seconds
        fit.rows = fit.groups = np.arange(fit.n_images)
        if sharded.fingerprints:
            fit.groups = group_near_duplicates(_in_order(sharded.fingerprints))
        is_held_out = _in_order(sharded.is_held_out)
        # The images that calibrate were held out before their near duplicates were known.
        held_groups = fit.groups[is_held_out]
        calibrates = ~np.isin(held_groups, fit.groups[~is_held_out])

        def take(fitted: tuple[State, HeldOut | None, NDArray[np.int64]]) -> None:
            fit.state, found, owners = fitted
            if plan.left_out and fit.n_groups >= MIN_CALIBRATION_GROUPS:
                fit.shards = np.array(sorted(sharded.coresets))
                fit.owners = fit.shards[owners]
            if found is not None:
                fit.calibrate(found.columns[calibrates], held_groups[calibrates], options.seed)

        held_out, coresets = (
            [references[shard] for shard in sorted(references)] for references in (sharded.held_out, sharded.coresets)
        )
        task = self._remote(fit_to_shards).remote(options, size, held_out, coresets, outcome.job.size)
        self._watch(task, _Task(fit, take, None, 0))

    def _remote(self, function: Callable[..., Any]) -> Any:
        return ray.remote(function).options(**self._pool.task_resources)

    def _watch(self, reference: ray.ObjectRef, task: _Task) -> None:
        self._tasks[reference] = task
        while len(self._tasks) > MAX_TASKS_PER_CORE * self._pool.tasks:
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
            if fit.owners is None:
                self.save(fit)
            else:
                self.uncalibrated.append(fit)

    def save(self, fit: _Fit) -> None:
        """Save the model of a fit that is calibrated."""
        job, state = fit.outcome.job, fit.state
        assert state is not None
        try:
            job.method.check_state(state, job.feature_shape)
        except ValueError as error:  # scoring would refuse the model
            reason = f"no model: what was learnt is not usable ({error}); try other options, or other images"
            self._fail(fit, UsageError(f"{job.title}: {reason}."), reason)
            return
        if fit.held_out is not None:
            fit.calibrate(fit.held_out, fit.groups, job.options.seed)
        record = {
            "n_train": fit.n_images,
            "n_groups": fit.n_groups,
            **groups_of_record(job.method, fit.groups),
            "n_variants": len(fit.rows) - fit.n_images,
            "errors": [{"image_id": name, "error": text} for name, text in fit.outcome.errors.items()],
            "training_sha256": fit.digest,
            "fit_id": job.fit_id,
            "options": as_json(job.options),
            "bit_depth": job.bit_depth,
            "feature_shape": job.feature_shape,
            "fit_seconds": round(fit.seconds + state.seconds, 3),
            "calibration_seconds": round(fit.calibration_seconds, 3),
            "versions": versions(),
        }
        network = job.network
        assert job.size is not None
        model = FittedModel(
            job.category,
            job.method,
            state,
            network.spec,
            network.sha256,
            job.size,
            record,
            fit.calibration,
            fit.map_peaks,
            fit.patch_sample,
        )
        fit.outcome.model = save_model(job.models, model)
        fit.state = None  # its arrays may be large
        n_left = len({id(task.fit) for task in self._tasks.values()})
        to_go = f", {n_left} to go" if n_left else ""
        self._stage.busy_with(f"{job.title}: fitted{to_go}", passing=len(self.outcomes) > 1 and bool(n_left))

    def _fail(self, fit: _Fit, error: Exception, reason: str | None = None) -> None:
        if not self._keep_going:
            raise error
        fit.outcome.failure = fit.outcome.failure or reason or f"no model: {failure_reason(error)}"


def _in_order(arrays: Mapping[int, NDArray[Any]]) -> NDArray[Any]:
    """The arrays of all shards, one after the other."""
    return np.concatenate([arrays[shard] for shard in sorted(arrays)])
