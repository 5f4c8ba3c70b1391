"""Schedule fits and folds as tasks, calibrate, and save the models."""

import functools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import ray
from numpy.typing import NDArray

from mvad.calibration import fold_splits, kfold, one_per_group, suspect_rows, suspects_with_duplicates
from mvad.console import Stage
from mvad.data.sampling import evenly_spaced, pick
from mvad.detectors import LeaveOneOut, Pretrained, State
from mvad.errors import UsageError, failure_reason
from mvad.fitting.by_category import CategoryFeatures
from mvad.fitting.jobs import FitJob, FitOutcome, digest, groups_of_record
from mvad.fitting.sharding import Shards
from mvad.fitting.tasks import (
    FittedShards,
    fit_and_leave_out,
    fit_detector,
    fit_to_shards,
    pretrain_detector,
    score_held_out,
    summarise_shard,
)
from mvad.memory import MemoryBudget
from mvad.model_store import FittedModel, save_model
from mvad.options import as_json
from mvad.runtime.resources import ActorPool
from mvad.runtime.versions import versions
from mvad.scoring.held_out import HELD_OUT_COLUMNS, HeldOut, split_columns
from mvad.search.duplicates import group_near_duplicates

MIN_CALIBRATION_GROUPS = 4  # of images, those that are no near duplicates of others
PRIOR_IMAGES = 12  # images of each other category that a `Pretrained` method learns from first
MAX_TASKS_PER_CORE = 16  # waiting tasks: Ray looks through all of them whenever one ends


@dataclass
class CategoryFit:
    """A job in progress: the model, and the scores that calibrate it."""

    outcome: FitOutcome
    rows: NDArray[np.int64]  # of the category's features: each image, then its variants
    groups: NDArray[np.int64]  # of near duplicates: the number of each image's
    n_images: int
    image_ids: NDArray[np.object_]  # (n_images,)
    all_image_ids: list[str]  # also of images that cannot be used
    seconds: float  # of actors' time, for extraction, and for fits that suspects were left out of
    features: ray.ObjectRef | None = None  # for another fit, if suspects are left out
    n_bytes: int = 0  # of those
    prior: ray.ObjectRef | None = None
    state: State | None = None
    calibration: NDArray[np.float32] | None = None  # (n_groups,)
    map_peaks: NDArray[np.float32] | None = None  # (n_groups,), of methods that localise
    patch_sample: NDArray[np.float32] | None = None  # (n_groups, patches), of methods that localise
    held_out: NDArray[np.float32] | None = None  # (n_images, columns): `HeldOut.columns` of images held out
    examined: NDArray[np.bool_] | None = None  # which images have such scores; None: all, or none
    n_examined: int = 0  # when suspects were first looked for
    suspects: list[dict[str, Any]] = field(default_factory=list)  # of the record
    has_dropped: bool = False  # whether suspects were left out; those that are found then are named alone
    calibration_seconds: float = 0.0
    origins: Any = None  # if images calibrate left out: what `Shardable.without` needs
    shards: NDArray[np.int64] | None = None  # and the number of each image's shard, in the order of `fit_shards`

    @property
    def n_groups(self) -> int:
        return int(self.groups.max(initial=-1)) + 1

    def take_state(self, state: State) -> None:
        self.state = state
        if state.loo_scores is not None:
            self.calibration = state.loo_scores

    def take_left_out(self, fitted: tuple[State, HeldOut]) -> None:
        self.state, outcome = fitted
        self.held_out, self.calibration_seconds = outcome.columns, outcome.seconds

    def take_fold(self, held_out: NDArray[np.int64], outcome: HeldOut) -> None:
        assert self.held_out is not None
        self.held_out[held_out] = outcome.columns
        self.calibration_seconds += outcome.seconds

    def hold_out(self, images: NDArray[np.int64], columns: NDArray[np.float32]) -> None:
        """Note `HeldOut.columns` of some images."""
        self.held_out = np.full((self.n_images, HELD_OUT_COLUMNS), np.nan, np.float32)
        self.held_out[images] = columns
        self.examined = np.isin(np.arange(self.n_images), images)

    def calibrate(self, seed: int) -> None:
        """Take what is known of one image of each group of near duplicates that was held out."""
        if self.held_out is None:
            return
        examined = slice(None) if self.examined is None else self.examined
        drawn = one_per_group(self.held_out[examined], self.groups[examined], seed)
        self.calibration, self.map_peaks, self.patch_sample = split_columns(drawn)

    def find_suspects(self) -> NDArray[np.int64]:
        """Numbers of the images whose held-out scores are outliers, and of their near duplicates; notes them."""
        scores = np.full(self.n_images, np.nan, np.float32)
        if self.held_out is not None:
            scores = self.held_out[:, 0]
        elif self.calibration is not None and len(self.calibration) == self.n_groups:
            scores = self.calibration[self.groups]
        reference = np.empty(0, np.float32) if self.calibration is None else self.calibration
        found, of_found = suspects_with_duplicates(scores, self.groups, reference)
        if not self.has_dropped:
            self.n_examined = int(np.isfinite(scores).sum())
        self.suspects = [one for one in self.suspects if one["dropped"]]
        self.suspects += suspect_rows(self.image_ids[found], of_found, dropped=False)
        return found

    def drop(self, images: NDArray[np.int64]) -> None:
        """Leave out images that are suspects."""
        for one in self.suspects:
            one["dropped"] = True
        kept = np.setdiff1d(np.arange(self.n_images), images)
        self.rows = self.rows.reshape(self.n_images, -1)[kept].ravel()
        self.groups = np.unique(self.groups[kept], return_inverse=True)[1].astype(np.int64)
        dropped = {*self.image_ids[images].tolist()}
        self.all_image_ids = [name for name in self.all_image_ids if name not in dropped]
        self.image_ids, self.n_images = self.image_ids[kept], len(kept)
        self.held_out = None if self.held_out is None else self.held_out[kept]
        self.examined = None if self.examined is None else self.examined[kept]
        self.shards = None if self.shards is None else self.shards[kept]
        self.calibration = self.map_peaks = self.patch_sample = None
        self.has_dropped = True


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
        options = outcome.job.options
        image_ids = pick(category.all_image_ids, options, category.category)
        outcome.errors = {name: category.errors[name] for name in image_ids if name in category.errors}
        rows = category.rows_of(image_ids, n_variants=options.rows_per_image - 1)
        share = len(image_ids) / len(category.all_image_ids) / self._pool.actors
        seconds = self._stage.totals.seconds(category.category) * share
        n_images = len(image_ids) - len(outcome.errors)
        originals = rows.reshape(n_images, -1)[:, 0] if n_images else rows
        groups, usable = category.groups_of(originals), category.image_ids[originals]
        return CategoryFit(outcome, rows, groups, n_images, usable, list(image_ids), seconds)

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
        calibrates = job.options.calibrates and fit.n_groups >= MIN_CALIBRATION_GROUPS
        fit.held_out = None
        if calibrates and job.options.leaves_out(job.method):
            task = self._remote(fit_and_leave_out).remote(
                job.options, features, fit.rows, fit.groups, job.size, share=share
            )
            self._watch(task, _Task(fit, fit.take_left_out, features, n_bytes))
            return
        groups = fit.groups if fit.n_groups < fit.n_images else None
        fit_all = self._remote(fit_detector).remote(job.options, features, fit.rows, prior, groups=groups, share=share)
        self._watch(fit_all, _Task(fit, fit.take_state, features, n_bytes))
        if issubclass(job.method, LeaveOneOut) or not calibrates:
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
            if fit.origins is None:
                self.end(fit)
            else:
                self.uncalibrated.append(fit)

    def end(self, fit: CategoryFit) -> None:
        """Calibrate a fit whose held-out scores are there, and save it, or fit once more without its suspects.

        Without them the others vary less, and most that are then outliers are good: those are not left out, too.
        """
        options = fit.outcome.job.options
        fit.calibrate(options.seed)
        suspects = fit.find_suspects()
        if not options.drop_suspects or not len(suspects) or fit.has_dropped:
            self.save(fit)
            return
        assert fit.state is not None
        fit.drop(suspects)
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
        job, state = fit.outcome.job, fit.state
        assert state is not None
        try:
            job.method.check_state(state, job.feature_shape)
        except ValueError as error:  # scoring would refuse the model
            reason = f"no model: what was learnt is not usable ({error}); try other options, or other images"
            self._fail(fit, UsageError(f"{job.title}: {reason}."), reason)
            return
        record = {
            "n_train": fit.n_images,
            "n_groups": fit.n_groups,
            **groups_of_record(job.method, fit.groups),
            "n_variants": len(fit.rows) - fit.n_images,
            "errors": [{"image_id": name, "error": text} for name, text in fit.outcome.errors.items()],
            "training_sha256": digest(fit.all_image_ids),
            "suspects": fit.suspects,
            "suspects_examined": fit.n_examined,
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
