"""Fitting to categories as their features arrive: on the driver, or in tasks where a network is trained or GPUs are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from numpy.typing import NDArray

from mvad.calibration import fold_splits
from mvad.console import Stage
from mvad.data.few_shot import TrainingSet
from mvad.data.manifest import Manifest
from mvad.data.sampling import evenly_spaced
from mvad.detectors import Detector, LeaveOneOut, Pretrained, State, TrainedDetector, find_method
from mvad.features.weights import Network
from mvad.fitting.by_category import CategoryFeatures
from mvad.fitting.sharding import ShardedFit, Shards
from mvad.memory import MemoryBudget
from mvad.model_store import ModelInfo, save_model
from mvad.options import FitOptions, as_json
from mvad.pipeline.actors import fit_detector, pretrain_detector, reason, score_held_out
from mvad.results.run_record import versions
from mvad.runtime.session import ActorPool

LEAST_IMAGES = 4  # that are calibrated on
PRIOR_IMAGES = 12  # of each other category, that a method which transfers learns from first
TASKS_A_CORE = 16  # that wait at most: Ray looks through all of them for every one that ends


class Entry(NamedTuple):
    """One way of fitting models, one a category, and the folder (a URI) they go to; a run has one entry."""

    name: str
    options: FitOptions
    models: str
    network: Network

    @property
    def method(self) -> type[Detector]:
        return find_method(self.options.method)


@dataclass
class Fitted:
    """Models by category, the errors of training images by id, why a category has no model, and what else to know."""

    models: dict[str, ModelInfo] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def unreadable(self, manifest: Manifest) -> pa.Table:
        """The manifest's rows of the training images that could not be used."""
        train = manifest.split("train")
        return train.filter(pc.is_in(train["image_id"], pa.array(list(self.errors), pa.string())))


@dataclass
class _Job:
    """One entry fitted to one category: the model, and the scores that calibrate it.

    Attributes
    ----------
    rows
        Of the category's features: each image with its variants right behind it.
    waiting
        Fits that have not come back yet.
    held_bytes
        Of the object store, until then.
    """

    entry: Entry
    category: str
    rows: NDArray[np.int64]
    n_images: int
    errors: dict[str, str]
    digest: str
    seconds: float
    state: State | None = None
    calibration: NDArray[np.float32] | None = None
    calibration_seconds: float = 0.0
    waiting: int = 1
    held_bytes: int = 0

    @property
    def title(self) -> str:
        return f"{self.category}: {self.entry.name or self.entry.options.method}"


class Fitter:
    """Fits the entries to the categories as they come, calibrates, and saves the models.

    Parameters
    ----------
    shards
        By category: how it is divided, if it is too large to be fitted to at once; then there is one entry.
    room
        Memory for features that tasks still need.
    pool
        The actors that extract: tasks take the same share of the machine.
    keep_going
        Whether a fit that fails is a reason among the failures of its entry, or an exception.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        images: TrainingSet,
        shards: Mapping[str, Shards],
        budget: MemoryBudget,
        pool: ActorPool,
        stage: Stage,
        keep_going: bool,
    ) -> None:
        self.fitted = {entry.name: Fitted() for entry in entries}
        self._entries, self._images, self._budget = entries, images, budget
        self._pool, self._stage, self._keep_going = pool, stage, keep_going
        self._merging = {name: ShardedFit(entries[0].options, own) for name, own in shards.items()}
        self._many = len(entries) > 1
        self._tasks: dict[ray.ObjectRef, tuple[_Job, NDArray[np.int64] | None]] = {}  # with the fold's images
        self._transfers: list[tuple[_Job, ray.ObjectRef]] = []
        self._samples: dict[tuple[str, str], NDArray[np.float32]] = {}  # by kind and category

    def add(self, category: CategoryFeatures) -> None:
        """A category is complete, or a shard of it: start what runs beside, and fit what does not."""
        if category.name in self._merging:
            self._add_shard(category)
            return
        size = sum(rows.nbytes for rows in category.features.values())
        while self._tasks and self._held_bytes() + size > self._budget.bytes:
            self._take_one()
        shared = {}
        for kind in {entry.method.feature for entry in self._entries if self._in_task(entry) or _folds(entry)}:
            # The features move to the object store; what is kept here is a view of them.
            shared[kind] = ray.put(category.features[kind])
            category.features[kind] = ray.get(shared[kind])
        for kind in {entry.method.feature for entry in self._entries if issubclass(entry.method, Pretrained)}:
            self._samples[kind, category.name] = self._sample(category, kind)
        # What runs in its own processes is started before this one is busy.
        for entry in sorted(self._entries, key=lambda entry: not self._in_task(entry)):
            job = self._job(entry, category)
            fitted, kind = self.fitted[entry.name], entry.method.feature
            fitted.errors |= job.errors
            if not job.n_images:
                fitted.failures[category.name] = f"no model: none of its {len(job.errors)} training images is usable"
            elif issubclass(entry.method, Pretrained):
                self._transfers.append((job, shared[kind]))
            else:
                job.held_bytes = size
                self._start(job, shared.get(kind))
                if not self._in_task(entry):
                    self._stage.busy_with(f"{job.title}: fitting to {job.n_images:,} images", passing=self._many)
                    self._fit_here(job, category.features[kind])

    def finish(self) -> None:
        """Wait for what runs, and do what needed all categories."""
        priors: dict[tuple[str, str], ray.ObjectRef] = {}
        for job, features in self._transfers:
            key = (job.entry.options.method, job.category)
            kind = job.entry.method.feature
            others = [self._samples[one] for one in sorted(self._samples) if one[0] == kind and one[1] != job.category]
            if key not in priors and others:
                task = ray.remote(pretrain_detector).options(**self._pool.task_resources)
                priors[key] = task.remote(job.entry.options, others)
            if others:
                self._start(job, features, priors[key])
            else:
                self._fail(job, ValueError("it learns from other categories first, and there is none"))
        while self._tasks:
            self._take_one()

    def _in_task(self, entry: Entry) -> bool:
        """Whether a category is fitted to in a task: the driver may have neither a GPU nor cores to spare."""
        return issubclass(entry.method, TrainedDetector) or self._pool.gpus

    def _held_bytes(self) -> int:
        """Features that tasks still need."""
        return sum({job.category: job.held_bytes for job, _ in self._tasks.values()}.values())

    def _take_one(self) -> None:
        """Wait for one of the tasks, and take what it found."""
        (done,), _ = ray.wait(list(self._tasks), num_returns=1)
        job, held_out = self._tasks.pop(done)
        try:
            outcome = ray.get(done)
        except Exception as error:
            self._fail(job, error)
            return
        if held_out is None:
            job.state = outcome
        else:
            assert job.calibration is not None
            job.calibration[held_out], seconds = outcome
            job.calibration_seconds += seconds
        self._end(job)

    def _add_shard(self, category: CategoryFeatures) -> None:
        entry, merging = self._entries[0], self._merging[category.name]
        merging.add(category)
        self._stage.busy_with(f"{category.name}: {merging.progress}", passing=True)
        if not merging.complete:
            return
        del self._merging[category.name]
        fitted = self.fitted[entry.name]
        fitted.errors |= merging.errors
        if not merging.n_fitted:
            fitted.failures[category.name] = f"no model: none of its {len(merging.errors)} training images is usable"
            return
        seconds = merging.seconds / self._pool.actors
        n_images = merging.n_fitted + merging.n_held
        job = _Job(
            entry,
            category.name,
            np.arange(n_images),
            n_images,
            merging.errors,
            _digest(merging.image_ids),
            seconds,
        )
        try:
            job.state = merging.fit()
            job.calibration = merging.calibrate(job.state)
        except Exception as error:
            self._fail(job, error)
        else:
            if merging.note:
                fitted.notes[category.name] = merging.note
            self._end(job)

    def _job(self, entry: Entry, category: CategoryFeatures) -> _Job:
        places = self._images.places_of(entry.options, category.name)
        ids = list(dict.fromkeys(category.image_ids[place] for place in places))
        errors = {name: category.errors[name] for name in ids if name in category.errors}
        return _Job(
            entry,
            category.name,
            category.rows(places),
            len(ids) - len(errors),
            errors,
            _digest(ids),
            category.seconds * len(places) / len(category.image_ids) / self._pool.actors,
        )

    def _sample(self, category: CategoryFeatures, kind: str) -> NDArray[np.float32]:
        """Features of a few of a category's images, evenly spaced."""
        plain = category.rows(np.sort([places[0] for places in self._images.places[category.name].values()]))
        return category.features[kind][plain[evenly_spaced(len(plain), PRIOR_IMAGES)]]

    def _start(self, job: _Job, features: ray.ObjectRef | None, prior: ray.ObjectRef | None = None) -> None:
        """Start the tasks of a job: a fit to each fold's other images, and if a network is trained that to all."""
        while len(self._tasks) > TASKS_A_CORE * self._pool.tasks:
            self._take_one()
        options = job.entry.options
        if self._in_task(job.entry):
            task = (
                ray.remote(fit_detector).options(**self._pool.task_resources).remote(options, features, job.rows, prior)
            )
            self._tasks[task] = job, None
        if not _folds(job.entry) or job.n_images < LEAST_IMAGES:
            return
        rows = job.rows.reshape(job.n_images, -1)  # an image and its variants each
        job.calibration = np.full(job.n_images, np.nan, np.float32)
        for rest, held_out in fold_splits(job.n_images, options.folds, options.seed):
            task = ray.remote(score_held_out).options(**self._pool.task_resources)
            arguments = (options, features, rows[rest].ravel(), rows[held_out, 0], prior)
            self._tasks[task.remote(*arguments)] = job, held_out
            job.waiting += 1

    def _fit_here(self, job: _Job, features: NDArray[np.float32]) -> None:
        try:
            job.state = fit_detector(job.entry.options, features, job.rows, device="cpu")
        except Exception as error:
            self._fail(job, error)
        else:
            self._end(job)

    def _end(self, job: _Job) -> None:
        """One of a job's fits has come back: save the model after the last."""
        job.waiting -= 1
        if job.waiting or job.category in self.fitted[job.entry.name].failures:
            return
        assert job.state is not None
        own = job.state.loo_scores
        record = {
            "n_train": job.n_images,
            "n_variants": len(job.rows) - job.n_images,
            "errors": [{"image_id": name, "error": text} for name, text in job.errors.items()],
            "training_sha256": job.digest,
            "options": as_json(job.entry.options),
            "fit_seconds": round(job.seconds + job.state.seconds, 3),
            "calibration_seconds": round(job.calibration_seconds, 3),
            "versions": versions(),
        }
        entry = job.entry
        self.fitted[entry.name].models[job.category] = save_model(
            entry.models,
            job.category,
            entry.method,
            job.state,
            entry.network.spec,
            entry.network.sha256,
            entry.options.size,
            record,
            job.calibration if own is None else own,
        )
        left = len({id(other) for other, _ in self._tasks.values()})
        to_go = f", {left} to go" if left else ""
        self._stage.busy_with(f"{job.title}: fitted{to_go}", passing=self._many and bool(left))

    def _fail(self, job: _Job, error: Exception) -> None:
        if not self._keep_going:
            raise error
        self.fitted[job.entry.name].failures.setdefault(job.category, f"no model: {reason(error)}")


def _digest(image_ids: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(image_ids).encode()).hexdigest()


def _folds(entry: Entry) -> bool:
    """Whether an entry is calibrated by folds."""
    return entry.options.folds > 0 and not issubclass(entry.method, LeaveOneOut)
