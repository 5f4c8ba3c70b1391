"""One fit in progress: the model of a category and the scores that calibrate it, wherever its steps are computed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mvad.calibration import fold_splits, one_per_group, suspect_rows, suspects_with_duplicates
from mvad.data.sampling import pick
from mvad.detectors import LeaveOneOut, State
from mvad.detectors.levels import with_units
from mvad.fitting.by_category import CategoryFeatures
from mvad.fitting.jobs import FitOutcome, digest, groups_of_record
from mvad.fitting.tasks import fit_and_leave_out, fit_detector, score_held_out
from mvad.model_store import FittedModel
from mvad.options import as_json
from mvad.origins.bank_origins import Image, Origins, origins_of
from mvad.runtime.versions import versions
from mvad.scoring.held_out import HELD_OUT_COLUMNS, OF_WHOLE, HeldOut, split_columns

if TYPE_CHECKING:
    import ray

MIN_CALIBRATION_GROUPS = 4  # of images, those that are no near duplicates of others


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
    images: list[Image] = field(default_factory=list)  # (n_images,), of fits that are not sharded
    learnt: list[Image] = field(default_factory=list)  # of those that are, in the order of the shards
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
        examined = np.ones(self.n_images, bool) if self.examined is None else self.examined
        self._combine_levels(examined, seed)
        drawn = one_per_group(self.held_out[examined], self.groups[examined], seed)
        self.calibration, self.map_peaks, self.patch_sample = split_columns(drawn)

    def _combine_levels(self, examined: NDArray[np.bool_], seed: int) -> None:
        """Bring what is known of images at two levels to one unit, if it is not yet: see `detectors.levels`."""
        assert self.held_out is not None
        columns = self.held_out[examined]
        if not len(columns) or np.isnan(columns[:, OF_WHOLE]).any():
            return
        assert self.state is not None
        scores, peaks = columns[:, [0, OF_WHOLE.start]].T, columns[:, [1, OF_WHOLE.start + 1]].T
        self.state, *combined = with_units(self.state, scores, peaks, self.groups[examined], seed)
        columns[:, :2] = np.stack(combined, axis=1)
        columns[:, OF_WHOLE] = np.nan
        self.held_out[examined] = columns

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

    @classmethod
    def of(cls, outcome: FitOutcome, category: CategoryFeatures) -> CategoryFit:
        """The fit of a job to the images of its category that its options pick; the outcome notes unusable ones."""
        options = outcome.job.options
        image_ids = pick(category.all_image_ids, options, category.category)
        outcome.errors = {name: category.errors[name] for name in image_ids if name in category.errors}
        rows = category.rows_of(image_ids, n_variants=options.rows_per_image - 1)
        n_images = len(image_ids) - len(outcome.errors)
        originals = rows.reshape(n_images, -1)[:, 0] if n_images else rows
        groups, usable = category.groups_of(originals), category.image_ids[originals]
        named = category.named(usable)
        return cls(outcome, rows, groups, n_images, usable, list(image_ids), 0.0, images=named)

    def settle(self) -> bool:
        """Calibrate by the images held out; whether suspects have been left out, so that it has to be fitted again.

        Without them the others vary less, and most that are then outliers are good: those are not left out, too.
        """
        options = self.outcome.job.options
        self.calibrate(options.seed)
        suspects = self.find_suspects()
        if not options.drop_suspects or not len(suspects) or self.has_dropped:
            return False
        self.drop(suspects)
        return True

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
        self.images = [self.images[number] for number in kept] if self.images else []
        self.held_out = None if self.held_out is None else self.held_out[kept]
        self.examined = None if self.examined is None else self.examined[kept]
        self.shards = None if self.shards is None else self.shards[kept]
        self.calibration = self.map_peaks = self.patch_sample = None
        self.has_dropped = True

    def model(self) -> FittedModel:
        """The model, once it is fitted and calibrated; ValueError if scoring would refuse what was learnt."""
        job, state = self.outcome.job, self.state
        assert state is not None
        assert job.size is not None
        if job.size.whole is not None and self.held_out is None:
            raise ValueError(
                f"--tile-levels {job.options.tile_levels} needs {MIN_CALIBRATION_GROUPS} good images that differ"
            )
        job.method.check_state(state, job.feature_shape)
        record = {
            "n_train": self.n_images,
            "n_groups": self.n_groups,
            **groups_of_record(job.method, self.groups),
            "n_variants": len(self.rows) - self.n_images,
            "errors": [{"image_id": name, "error": text} for name, text in self.outcome.errors.items()],
            "training_sha256": digest(self.all_image_ids),
            "suspects": self.suspects,
            "suspects_examined": self.n_examined,
            "fit_id": job.fit_id,
            "options": as_json(job.options),
            "bit_depth": job.bit_depth,
            "feature_shape": job.feature_shape,
            "fit_seconds": round(self.seconds + state.seconds, 3),
            "calibration_seconds": round(self.calibration_seconds, 3),
            "versions": versions(),
        }
        return FittedModel(
            job.category,
            job.method,
            state,
            job.network.spec,
            job.network.sha256,
            job.size,
            record,
            self.calibration,
            self.map_peaks,
            self.patch_sample,
            self._origins(),
        )

    def _origins(self) -> Origins | None:
        """Where the vectors of the model come from, if the method has some."""
        job, state, images = self.outcome.job, self.state, self.learnt or self.images
        if state is None or state.chosen is None or job.feature_shape is None or not images:
            return None
        *grid, _ = job.feature_shape
        return origins_of(state.chosen, images, grid, job.options.rows_per_image, step=job.patch_step)


class Step(NamedTuple):
    """A part of a fit: a function of the options, the features and more arguments, and who takes what it returns."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    take: Callable[[Any], None]


def steps_of(fit: CategoryFit, prior: Any = None, share: float = 0.0) -> Iterator[Step]:
    """The steps of a fit, in any order: to all images, and what calibrates; near duplicates are held out together.

    That is a part of the same step if images are left out of the bank, and else a fit to the others of each fold. For
    ``prior`` and ``share`` see `tasks.fit_detector`.
    """
    job = fit.outcome.job
    calibrates = job.options.calibrates and fit.n_groups >= MIN_CALIBRATION_GROUPS
    fit.held_out = None
    if calibrates and job.options.leaves_out(job.method):
        yield Step(fit_and_leave_out, (fit.rows, fit.groups, job.size), {"share": share}, fit.take_left_out)
        return
    groups = fit.groups if fit.n_groups < fit.n_images else None
    yield Step(fit_detector, (fit.rows, prior), {"groups": groups, "share": share}, fit.take_state)
    if issubclass(job.method, LeaveOneOut) or not calibrates:
        return
    rows = fit.rows.reshape(fit.n_images, -1)  # an image and its variants per row
    fit.held_out = np.full((fit.n_images, HELD_OUT_COLUMNS), np.nan, np.float32)
    for others, held_out in fold_splits(fit.groups, job.options.folds, job.options.seed):
        arguments = rows[others].ravel(), rows[held_out, 0], prior, job.size
        yield Step(score_held_out, arguments, {}, functools.partial(fit.take_fold, held_out))
