"""Score images with many models: decode and extract once per backbone, score, write."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import ray

from mvad.calibration.drift import import_ahead
from mvad.data.image_size import ImageSize
from mvad.detectors import find_method
from mvad.errors import ModelError
from mvad.features.backbone_spec import BackboneSpec
from mvad.features.specs import prepare
from mvad.features.weights import Network
from mvad.model_store import ModelInfo, recorded_shape
from mvad.pipeline.columns import Batch
from mvad.pipeline.dataset import decoded_images
from mvad.runtime.resources import ActorPool, actor_pool
from mvad.runtime.stage_totals import StageTotals
from mvad.runtime.watchdog import watch_nodes
from mvad.scoring.jobs import MODEL_UNUSABLE, NO_MODEL, ScoringJob
from mvad.scoring.model_sharing import Broadcast
from mvad.scoring.write import WriteScores

if TYPE_CHECKING:
    from mvad.console import Reporter, Stage
    from mvad.options import ScoreOptions
    from mvad.results.run_record import Run
    from mvad.scoring.assign import MixedDump


def score_images(
    portions: Iterable[pa.Table],
    jobs: Sequence[ScoringJob],
    runs: Sequence[Run],
    networks: Mapping[BackboneSpec, Network],
    options: ScoreOptions,
    report: Reporter,
    dump: MixedDump | None = None,
) -> None:
    """Decode and extract every image once per backbone, score it with every job of its category, write its rows.

    Each of ``portions``, rows of the manifest, is taken when the one before has been scored. Images of a category
    without a job become error rows of their run, and so do those whose model is damaged or fails. Images of
    a mixed ``dump``, which has one run, are assigned to categories first.
    """
    import_ahead()
    by_run_id = {run.run_id: run for run in runs}
    groups, usable_jobs = backbone_groups(jobs, runs, networks, options, report)
    noted_seconds: dict[int, float] = defaultdict(float)  # by number of the job
    with report.stage("score", 0, unit="images" if len(runs) == 1 else "scores") as stage:
        for images in portions:
            if dump is not None:
                images = dump.assigned(images, runs[0], stage)
            for run in runs:
                n_images = write_images_without_model(images, usable_jobs, run)
                stage.expect(len(images) - n_images)
            for group in groups:
                n_actors_before = stage.actors
                for number, n_rows in group.score(images, stage):
                    by_run_id[jobs[number].run_id].n_rows += n_rows
                # Each portion and group has actors of its own, by whose number its seconds are shared out.
                for number, seconds in stage.totals.get().seconds.items() if stage.actors > n_actors_before else ():
                    share = (seconds - noted_seconds[number]) / (stage.actors - n_actors_before)
                    by_run_id[jobs[number].run_id].add_seconds(jobs[number].category, share)
                    noted_seconds[number] = seconds


def backbone_groups(
    jobs: Sequence[ScoringJob],
    runs: Sequence[Run],
    networks: Mapping[BackboneSpec, Network],
    options: ScoreOptions,
    report: Reporter,
) -> tuple[list[BackboneGroup], list[ScoringJob]]:
    """The jobs by backbone and image size, and those whose models can be used as far as is known; runs note others."""
    by_backbone: dict[tuple[BackboneSpec, ImageSize], dict[int, ScoringJob]] = defaultdict(dict)
    for number, job in enumerate(jobs):
        by_backbone[job.model.backbone, job.model.size][number] = job
    groups = [BackboneGroup(jobs, group, networks[spec], size, options) for (spec, size), group in by_backbone.items()]
    by_run_id = {run.run_id: run for run in runs}
    errors = {number: error for group in groups for number, error in group.errors.items()}
    for number, error in errors.items():
        report.warn(str(error))
        by_run_id[jobs[number].run_id].add_failure(jobs[number].category, f"{MODEL_UNUSABLE}: {error.reason}")
    return groups, [job for number, job in enumerate(jobs) if number not in errors]


def prepare_networks(
    models: Iterable[ModelInfo], networks: Mapping[BackboneSpec, Network], options: ScoreOptions
) -> None:
    """Prepare the networks of models for CPU actors ahead of time; the outcome is cached."""
    kinds: dict[tuple[BackboneSpec, ImageSize], set[str]] = defaultdict(set)
    for model in models:
        kinds[model.backbone, model.size].add(find_method(model.method).feature)
    for (spec, size), names in kinds.items():
        prepare(sorted(names), networks[spec], size, options.engine)


def write_images_without_model(images: pa.Table, jobs: Sequence[ScoringJob], run: Run) -> int:
    """Write error rows for images of categories that a run has no model of; returns how many."""
    categories = pa.array([job.category for job in jobs if job.run_id == run.run_id], pa.string())
    orphans = images.filter(pc.invert(pc.is_in(images["category"], categories)))
    reasons = {
        row["image_id"]: run.failures.get(row["category"]) or f"{NO_MODEL} of category {row['category']!r}"
        for row in orphans.select(["image_id", "category"]).to_pylist()
    }
    run.write_unscored(orphans, reasons)
    return len(orphans)


class ScoringActor:
    """A `scorer_actor.Scorer`, which only the actor imports: it needs PyTorch, and the driver does not."""

    def __init__(self, **arguments: Any) -> None:
        from mvad.scoring.scorer_actor import Scorer

        self._score = Scorer(**arguments)

    def __call__(self, batch: Batch) -> pa.Table:
        return self._score(batch)


@dataclass
class BackboneGroup:
    """Jobs that share a backbone and an image size.

    What actors need is put into Ray's object store once for all portions of images. References are kept as long as the
    group: Ray may drop what nobody refers to.
    """

    jobs: Sequence[ScoringJob]  # all, by number
    group: Mapping[int, ScoringJob]  # those of this backbone and size
    network: Network
    size: ImageSize
    options: ScoreOptions

    def __post_init__(self) -> None:
        self.bit_depths = {job.category: job.model.bit_depth for job in self.group.values()}
        self._kinds = sorted({find_method(job.model.method).feature for job in self.group.values()})
        shapes = {find_method(job.model.method).feature: recorded_shape(job.model) for job in self.group.values()}
        budget = self.options.memory_budget.after_weights(self.network.nbytes)
        self._cpu_batch_size = budget.batch_size(self.options.batch_size, shapes)
        self._specs: dict[bool, ray.ObjectRef] = {}

    def batch_size(self, gpus: bool) -> int:
        """How many images an actor takes at a time.

        On a GPU the features stay there, and a chunk of the extractor that is not full takes as long as a full one.
        """
        return self.options.batch_size if gpus else self._cpu_batch_size

    @functools.cached_property
    def _broadcast(self) -> Broadcast:
        return Broadcast({job.model.model_id: job.model for job in self.group.values()}.values())

    @functools.cached_property
    def errors(self) -> dict[int, ModelError]:
        """What is wrong with models, as far as it is known on the driver, by number of the job."""
        of_model = self._broadcast.errors
        ids = {number: job.model.model_id for number, job in self.group.items()}
        return {number: of_model[model_id] for number, model_id in ids.items() if model_id in of_model}

    @functools.cached_property
    def usable(self) -> dict[int, ScoringJob]:
        return {number: job for number, job in self.group.items() if number not in self.errors}

    def _spec(self, gpus: bool) -> ray.ObjectRef:
        if gpus not in self._specs:
            spec = prepare(self._kinds, self.network, self.size, self.options.engine, gpus)
            self._specs[gpus] = ray.put(spec)
        return self._specs[gpus]

    def images_of(self, images: pa.Table) -> pa.Table:
        """The images that are of a category of these jobs."""
        categories = pa.array(sorted({job.category for job in self.usable.values()}), pa.string())
        return images.filter(pc.is_in(images["category"], categories))

    def scorer_arguments(self, pool: ActorPool, totals: StageTotals) -> dict[str, Any]:
        """What a `ScoringActor` of a pool needs."""
        return {
            "spec": self._spec(pool.gpus),
            "jobs": self.usable,
            "broadcast": self._broadcast,
            "threads": pool.threads,
            "totals": totals,
        }

    def score(self, images: pa.Table, stage: Stage) -> Iterable[tuple[int, int]]:
        """Score the images that are of a category of these jobs; number of a job and rows, as they are written."""
        images = self.images_of(images)
        if not len(images):
            return
        pool = actor_pool(self.options.actors, len(images))
        scorer = self.scorer_arguments(pool, stage.totals)
        receipts = (
            decoded_images(images, self.size, self.options, pool, stage.totals, self.bit_depths)
            .map_batches(
                ScoringActor, batch_size=self.batch_size(pool.gpus), fn_constructor_kwargs=scorer, **pool.arguments
            )
            .map_batches(
                WriteScores(self.jobs, ray.put(images), stage.totals),
                batch_format="pyarrow",
                batch_size=None,
                **pool.task_arguments,
            )
        )
        receipts.set_name(f"mvad_{stage.name}")
        stage.actors += pool.actors
        for receipt in watch_nodes(receipts.iter_rows(), pool.actor_resources, stage.report.warn):
            stage.advance(receipt["rows"])
            yield receipt["job"], receipt["rows"]
