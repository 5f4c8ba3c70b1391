"""Fitting to categories as their features arrive: on the driver, or in a task where a network is trained."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from numpy.typing import NDArray

from mvad.actors import fit_detector, pretrain_detector, reason
from mvad.collect import CategoryFeatures
from mvad.console import Stage
from mvad.detectors import Detector, State, find_method
from mvad.manifest import Manifest
from mvad.models import ModelInfo, save_model
from mvad.options import FitOptions
from mvad.record import versions
from mvad.session import Pool
from mvad.shots import TrainingSet
from mvad.weights import Network

PRIOR_IMAGES = 12  # of each other category, that a method which transfers learns from first


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
    """Models by category, the errors of training images by id, and why a category has no model."""

    models: dict[str, ModelInfo] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def unreadable(self, manifest: Manifest) -> pa.Table:
        """The manifest's rows of the training images that could not be used."""
        train = manifest.split("train")
        return train.filter(pc.is_in(train["image_id"], pa.array(list(self.errors), pa.string())))


class _Job(NamedTuple):
    """A fit that is on its way: ``rows`` of the features in ``features``, and what the model's record will say."""

    entry: Entry
    category: str
    rows: NDArray[np.int64]
    n_images: int
    errors: dict[str, str]
    digest: str
    seconds: float


class Fitter:
    """Fits the entries to the categories as they come, and saves the models.

    Parameters
    ----------
    pool
        The actors that extract: training tasks take the same share of the machine.
    keep_going
        Whether a fit that fails is a reason among the failures of its entry, or an exception.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        images: TrainingSet,
        pool: Pool,
        stage: Stage,
        keep_going: bool,
    ) -> None:
        self.fitted = {entry.name: Fitted() for entry in entries}
        self._entries, self._images = entries, images
        self._pool, self._stage, self._keep_going = pool, stage, keep_going
        self._many = len(entries) > 1
        self._tasks: dict[ray.ObjectRef, _Job] = {}
        self._transfers: list[tuple[_Job, ray.ObjectRef]] = []
        self._samples: dict[tuple[str, str], NDArray[np.float32]] = {}  # by kind and category

    def add(self, category: CategoryFeatures) -> None:
        """A category is complete: fit what needs nothing else, and start what runs beside."""
        in_tasks = {entry.method.feature for entry in self._entries if entry.method.trained}
        shared = {}
        for kind in in_tasks:
            # The features move to the object store; what is kept here is a view of them.
            shared[kind] = ray.put(category.features[kind])
            category.features[kind] = ray.get(shared[kind])
        for kind in {entry.method.feature for entry in self._entries if entry.method.transfers}:
            self._samples[kind, category.name] = self._sample(category, kind)
        # What trains runs in its own processes: it is started before this one is busy.
        for entry in sorted(self._entries, key=lambda entry: not entry.method.trained):
            job = self._job(entry, category)
            fitted = self.fitted[entry.name]
            fitted.errors |= job.errors
            kind = entry.method.feature
            if not len(job.rows):
                fitted.failures[category.name] = f"no model: none of its {len(job.errors)} training images is usable"
            elif entry.method.transfers:
                self._transfers.append((job, shared[kind]))
            elif entry.method.trained:
                self._start(job, shared[kind])
            else:
                self._stage.busy_with(f"{self._title(job)}: fitting to {job.n_images:,} images", passing=self._many)
                features = category.features[kind]
                self._end(job, lambda: fit_detector(job.entry.options, features, job.rows, device="cpu"))  # noqa: B023

    def finish(self) -> None:
        """Wait for what runs, and do what needed all categories."""
        priors: dict[tuple[str, str], ray.ObjectRef] = {}
        for job, features in self._transfers:
            key = (job.entry.options.method, job.category)
            kind = job.entry.method.feature
            others = [self._samples[one] for one in sorted(self._samples) if one[0] == kind and one[1] != job.category]
            if key not in priors and others:
                task = ray.remote(pretrain_detector).options(**self._pool.share)
                priors[key] = task.remote(job.entry.options, others)
            if others:
                self._start(job, features, priors[key])
            else:
                self._fail(job, ValueError("it learns from other categories first, and there is none"))
        while self._tasks:
            (done,), _ = ray.wait(list(self._tasks), num_returns=1)
            job = self._tasks.pop(done)
            self._end(job, lambda: ray.get(done))  # noqa: B023
            left = f", {len(self._tasks)} to go" if self._tasks else ""
            self._stage.busy_with(f"{self._title(job)}: trained{left}", passing=self._many and bool(self._tasks))

    def _job(self, entry: Entry, category: CategoryFeatures) -> _Job:
        places = self._images.places_of(entry.options, category.name)
        ids = list(dict.fromkeys(category.image_ids[place] for place in places))
        rows = category.rows(places)
        errors = {name: category.errors[name] for name in ids if name in category.errors}
        return _Job(
            entry,
            category.name,
            rows,
            len(ids) - len(errors),
            errors,
            hashlib.sha256("\n".join(ids).encode()).hexdigest(),
            category.seconds * len(places) / len(category.image_ids) / self._pool.actors,
        )

    def _sample(self, category: CategoryFeatures, kind: str) -> NDArray[np.float32]:
        """Features of a few of a category's images, evenly spaced."""
        plain = category.rows(np.sort([places[0] for places in self._images.places[category.name].values()]))
        chosen = np.linspace(0, len(plain) - 1, min(PRIOR_IMAGES, len(plain))).round().astype(int)
        return category.features[kind][plain[chosen]]

    def _start(self, job: _Job, features: ray.ObjectRef, prior: ray.ObjectRef | None = None) -> None:
        task = ray.remote(fit_detector).options(**self._pool.share)
        self._tasks[task.remote(job.entry.options, features, job.rows, prior)] = job

    def _end(self, job: _Job, outcome: Callable[[], State]) -> None:
        """Save the model that a fit gave, or note why there is none."""
        try:
            state = outcome()
        except Exception as error:
            if not self._keep_going:
                raise
            self._fail(job, error)
            return
        record = {
            "n_train": job.n_images,
            "n_variants": len(job.rows) - job.n_images,
            "errors": [{"image_id": name, "error": text} for name, text in job.errors.items()],
            "training_sha256": job.digest,
            "fit_seconds": round(job.seconds + state.seconds, 3),
            "versions": versions(),
        }
        entry = job.entry
        self.fitted[entry.name].models[job.category] = save_model(
            entry.models,
            job.category,
            entry.method,
            state,
            entry.network.spec,
            entry.network.sha256,
            entry.options.size,
            record,
        )

    def _fail(self, job: _Job, error: Exception) -> None:
        self.fitted[job.entry.name].failures[job.category] = f"no model: {reason(error)}"

    @staticmethod
    def _title(job: _Job) -> str:
        return f"{job.category}: {job.entry.name or job.entry.options.method}"
