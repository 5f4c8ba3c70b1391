"""Assign images of a mixed dump to the categories of models: see `calibration.assignment`."""

from __future__ import annotations

import functools
import uuid
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from numpy.typing import NDArray
from ray.exceptions import RayError
from torch import Tensor

from mvad import storage
from mvad.anomaly_maps.sampled import sampled_patches
from mvad.calibration import UNKNOWN_PRODUCT, Assignment, Fits, PatchReference, assign, fit_of, patch_reference
from mvad.console import Stage, plural
from mvad.data.image_size import ImageSize
from mvad.data.images import Batch
from mvad.detectors import Detector, State, find_method
from mvad.errors import ModelError, UsageError, failure_reason
from mvad.features.backbone_spec import BackboneSpec
from mvad.features.specs import feature_shapes, prepare
from mvad.features.weights import Network
from mvad.model_store import ModelInfo, ModelSet, read_patch_sample
from mvad.options import MixedOptions
from mvad.pipeline.columns import usable
from mvad.pipeline.dataset import decoded_images
from mvad.results.run_record import Run
from mvad.runtime.resources import actor_pool
from mvad.runtime.stage_totals import StageTotals
from mvad.runtime.threads import Threads, worker_device
from mvad.runtime.watchdog import watch_nodes
from mvad.scoring.model_sharing import Broadcast
from mvad.scoring.windows import sample_windows

NOT_ASSIGNED = "it could not be compared with all categories"  # prefix of the error of an image


def patch_references(models: ModelSet) -> dict[str, PatchReference]:
    """What good patches of each category score; UsageError if a model cannot say, or cannot be used.

    Without one of the models, its images would go to another category.
    """
    if models.errors:
        raise UsageError(
            f"--category auto needs all models, and one cannot be used: {next(iter(models.errors.values()))}"
        )
    samples = dict(zip(models, storage.parallel_map(read_patch_sample, models.values()), strict=True))
    missing = [name for name, sample in samples.items() if sample is None]
    if missing:
        which = f"{plural(len(missing), 'model does', 'models do')} not say it ({', '.join(missing[:5])})"
        raise UsageError(
            f"--category auto needs to know what good patches score, and {which}: fit again, by this version of mvad, "
            "with --folds and a method that scores patches, such as patchcore."
        )
    return {name: patch_reference(sample) for name, sample in samples.items() if sample is not None}


@dataclass(frozen=True)
class Candidate:
    """A category that images may belong to: its place among all, its model, and what its good patches score."""

    number: int
    model: ModelInfo
    reference: PatchReference


class FitMeasurer:
    """Actor that says how well images fit categories whose models share a backbone and an image size.

    Its tables have the columns ``row``, ``error``, and ``share`` and ``level`` with a value per candidate: see `Fits`.
    """

    def __init__(
        self,
        spec: ray.ObjectRef,
        candidates: Sequence[Candidate],
        needed: NDArray[np.bool_],
        broadcast: Broadcast,
        threads: int,
        totals: StageTotals,
    ) -> None:
        self.extract, self.threads = ray.get(spec).load(worker_device()), Threads(threads)
        self.candidates, self.needed, self.totals, self.name = candidates, needed, totals, uuid.uuid4().hex
        self.detectors: dict[str, Detector] = {}
        self.failure = ""
        for one in candidates:
            try:
                state = State(one.model.settings, broadcast.arrays(one.model))
            except ModelError as error:
                self.failure = f"{NOT_ASSIGNED}: {error}"
                return
            self.detectors[one.model.category] = find_method(one.model.method).from_state(state, self.extract.device)

    def __call__(self, batch: Batch) -> Batch:
        good = usable(batch)
        fits, errors = np.full((2, len(batch["row"]), len(self.candidates)), np.nan), batch["error"].astype(object)

        def measure(rows: NDArray[np.int64]) -> None:
            features = self.extract(batch["pixels"][rows]) if self.extract.size.window is None else {}
            for number, row in enumerate(rows.tolist()):
                try:
                    of_image = {kind: values[number] for kind, values in features.items()}
                    fits[:, row] = self._fits(batch["pixels"][row], of_image)
                except RayError:
                    raise
                except Exception as error:
                    errors[row] = f"{NOT_ASSIGNED}: {failure_reason(error)}"

        if self.failure:
            errors[good] = self.failure
        elif self.extract.size.window is None:
            self.threads.map(measure, self.threads.portions(good, self.extract.chunk))
        else:  # threads share the windows of an image
            for row in good:
                measure(np.array([row]))
        self.totals.add_batch({}, len(errors), len(good), int(batch["file_size"].sum()), self.name)
        return {"row": batch["row"], "error": errors.astype(str), "share": fits[0], "level": fits[1]}

    def _fits(self, pixels: NDArray[np.uint8], features: Mapping[str, Tensor]) -> NDArray[np.float64]:
        """Share and level of one image for each candidate: (2, candidates)."""
        if self.extract.size.window is None:
            scores = {
                name: detector.patch_scores(features[detector.feature], self.needed)
                for name, detector in self.detectors.items()
            }
        else:
            scores = sample_windows(pixels, self.extract, self.detectors, self.needed, self.threads)
        fits = np.array([fit_of(scores[one.model.category], one.reference) for one in self.candidates]).T
        if not np.isfinite(fits).all():
            raise ValueError("a model gives its patches no finite scores")
        return fits


class MixedDump:
    """Assigns images to the categories of models, all of which see each image.

    Models of one backbone, image size and bit depth are compared with an image in one pass over it. Images that fit no
    category, and those that cannot be read, get their rows in the folder of the run at once.
    """

    def __init__(
        self,
        models: ModelSet,
        networks: Mapping[BackboneSpec, Network],
        options: MixedOptions,
    ) -> None:
        """UsageError as from `patch_references`."""
        references = patch_references(models)
        self.names, self.networks, self.options = sorted(models), networks, options
        self.groups: dict[tuple[BackboneSpec, ImageSize, int], list[Candidate]] = defaultdict(list)
        for number, name in enumerate(self.names):
            model = models[name]
            candidate = Candidate(number, model, references[name])
            self.groups[model.backbone, model.size, model.bit_depth].append(candidate)

    @functools.cached_property
    def _totals(self) -> StageTotals:
        return StageTotals("assign")  # an actor: it needs a session

    @functools.cached_property
    def _broadcast(self) -> Broadcast:
        broadcast = Broadcast([one.model for group in self.groups.values() for one in group])
        for error in broadcast.errors.values():
            raise UsageError(f"--category auto needs all models, and one cannot be used: {error}")
        return broadcast

    def assigned(self, images: pa.Table, run: Run, stage: Stage) -> pa.Table:
        """The images that belong to a category, with it and how well they fit it, sorted; the others get their rows."""
        images = _with_columns(images, {"category": pa.array([UNKNOWN_PRODUCT] * len(images), pa.string())})
        shape = len(images), len(self.names)
        share, level = (np.full(shape, np.nan, np.float32) for _ in range(2))
        errors = np.full(len(images), "", object)
        for (spec, size, bit_depth), group in self.groups.items():
            stage.busy_with("assigning images to categories")
            numbers = np.array([one.number for one in group])
            for batch in self._measured(images, self.networks[spec], size, bit_depth, group, stage):
                rows = batch["row"]
                share[np.ix_(rows, numbers)], level[np.ix_(rows, numbers)] = batch["share"], batch["level"]
                errors[rows] = np.where(errors[rows] == "", batch["error"], errors[rows])
        images, is_known = self._with_categories(images, assign(Fits(share, level), self.options.unknown_above), errors)
        reasons = dict(zip(images["image_id"].to_pylist(), errors.tolist(), strict=True))
        run.write_unscored(
            images.filter(pc.invert(is_known)), {name: reason for name, reason in reasons.items() if reason}
        )
        return images.filter(is_known).sort_by([("category", "ascending"), ("image_id", "ascending")])

    def _measured(
        self,
        images: pa.Table,
        network: Network,
        size: ImageSize,
        bit_depth: int,
        candidates: Sequence[Candidate],
        stage: Stage,
    ) -> Iterator[Batch]:
        """Batches of `FitMeasurer`."""
        options, pool = self.options, actor_pool(self.options.actors, len(images))
        kinds = sorted({find_method(one.model.method).feature for one in candidates})
        shapes = feature_shapes(kinds, network.spec, size)
        measurer = {
            "spec": ray.put(prepare(kinds, network, size, options.engine, pool.gpus)),
            "candidates": candidates,
            "needed": sampled_patches(
                size, feature_shapes(kinds, network.spec, replace(size, whole=None))[kinds[0]][:2]
            ),
            "broadcast": self._broadcast,
            "threads": pool.threads,
            "totals": self._totals,
        }
        budget = options.memory_budget.after_weights(network.nbytes)
        n_images = options.batch_size if pool.gpus else budget.batch_size(options.batch_size, shapes)
        dataset = decoded_images(images, size, options, pool, self._totals, {UNKNOWN_PRODUCT: bit_depth}).map_batches(
            FitMeasurer, batch_size=n_images, fn_constructor_kwargs=measurer, **pool.arguments
        )
        dataset.set_name("mvad_assign")
        batches = dataset.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0)
        yield from watch_nodes(batches, pool.actor_resources, stage.report.warn)

    def _with_categories(
        self, images: pa.Table, found: Assignment, errors: NDArray[Any]
    ) -> tuple[pa.Table, pa.BooleanArray]:
        """Images with what is known of their category, and which of them belong to one."""
        failed = errors != ""
        best = np.array(self.names, object)[found.best]
        columns = {
            "category": pa.array(np.where(found.unknown | failed, UNKNOWN_PRODUCT, best), pa.string()),
            "nearest_category": pa.array(best, pa.string(), mask=failed),
            "strange_share": pa.array(found.share, pa.float64(), mask=failed),
            "margin": pa.array(found.margin, pa.float64(), mask=failed | np.isnan(found.margin)),
        }
        return _with_columns(images, columns), pa.array(~(found.unknown | failed))


def _with_columns(images: pa.Table, columns: Mapping[str, pa.Array]) -> pa.Table:
    """A table with these columns, in the place of its own of the same names."""
    for name, column in columns.items():
        images = (images.drop_columns([name]) if name in images.column_names else images).append_column(name, column)
    return images
