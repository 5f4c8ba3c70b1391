"""The actor that turns pixels into scores; features never leave it."""

from __future__ import annotations

import functools
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray
from ray.exceptions import RayError
from torch import Tensor

from mvad.detectors import Detector, State, find_method
from mvad.errors import ModelError, failure_reason
from mvad.model_store import ModelInfo
from mvad.pipeline.columns import SCORED, Batch, usable
from mvad.results.schema import REGIONS
from mvad.runtime.stage_totals import StageTotals
from mvad.runtime.threads import Threads, worker_device
from mvad.scoring.jobs import MODEL_UNUSABLE, SCORING_FAILED, ScoringJob
from mvad.scoring.model_sharing import Broadcast
from mvad.scoring.outcomes import Outcome, score_large, score_whole

MAX_CACHED_CATEGORIES = 4  # images come sorted by category, so one is mostly enough


class Scorer:
    """Actor that extracts the features of images once for all jobs of their category: one row per image and job.

    ``spec`` refers to an `specs.ExtractorSpec`, and ``jobs``, by number, are of one backbone and image size. Models
    that cannot be used, or fail, make error rows; what is lost with a node is an exception, for Ray to try again.
    """

    def __init__(
        self,
        spec: ray.ObjectRef,
        jobs: Mapping[int, ScoringJob],
        broadcast: Broadcast,
        threads: int,
        totals: StageTotals,
    ) -> None:
        self.extract = ray.get(spec).load(worker_device())
        self.threads, self.totals, self.name = Threads(threads), totals, uuid.uuid4().hex
        self.jobs, self.broadcast = jobs, broadcast
        self.numbers: dict[str, list[int]] = defaultdict(list)
        for number, job in jobs.items():
            self.numbers[job.category].append(number)
        self.detectors = functools.lru_cache(maxsize=MAX_CACHED_CATEGORIES)(self._detectors)

    def _detectors(self, category: str) -> dict[int, Detector | str]:
        """By number of the job: a detector, or why its model cannot be used."""
        return {number: self._detector(self.jobs[number].model) for number in self.numbers[category]}

    def _detector(self, model: ModelInfo) -> Detector | str:
        try:
            state = State(model.settings, self.broadcast.arrays(model))
            return find_method(model.method).from_state(state, self.extract.device)
        except RayError:
            raise
        except Exception as error:
            reason = error.reason if isinstance(error, ModelError) else failure_reason(error)
            return f"{MODEL_UNUSABLE}: {reason}"

    def __call__(self, batch: Batch) -> pa.Table:
        """A table of `columns.SCORED` for decoded images."""
        started, tables = time.perf_counter(), []
        shares: dict[int, float] = defaultdict(float)  # by number of the job
        for category in dict.fromkeys(batch["category"]):
            (rows,) = np.nonzero(batch["category"] == category)
            if self.extract.size.window is None:
                score = functools.partial(self._score, batch, self.detectors(category))
                scored = self.threads.map(score, self.threads.portions(rows, self.extract.chunk))
            else:
                scored = [self._score_large(batch, self.detectors(category), row) for row in rows.tolist()]
            for parts in scored:
                for number, (table, seconds) in parts.items():
                    tables.append(table)
                    shares[number] += seconds
        # Threads wait for each other: their seconds say how the actor's time is shared out, not how much it was.
        scale = (time.perf_counter() - started) / max(sum(shares.values()), 1e-9)
        n_images, bytes_read = len(batch["error"]), int(batch["file_size"].sum())
        seconds_of_job = {number: seconds * scale for number, seconds in shares.items()}
        self.totals.add_batch(seconds_of_job, n_images, n_images - len(usable(batch)), bytes_read, self.name)
        return pa.concat_tables(tables)

    def _score(
        self, batch: Batch, detectors: Mapping[int, Detector | str], rows: NDArray[np.int64]
    ) -> dict[int, tuple[pa.Table, float]]:
        """Score some images of one category: by number of the job, a table and the seconds it took."""
        started = time.perf_counter()
        images = {name: column[rows] for name, column in batch.items() if name != "pixels"}
        good = usable(images)
        features = self.extract(batch["pixels"][rows[good]]) if len(good) else {}
        extraction = time.perf_counter() - started
        parts = {}
        for number, detector in detectors.items():
            started = time.perf_counter()
            table = self._score_job(number, detector, images, good, features)
            parts[number] = table, extraction + time.perf_counter() - started
        return parts

    def _score_job(
        self,
        number: int,
        detector: Detector | str,
        images: Batch,
        good: NDArray[np.int64],
        features: Mapping[str, Tensor],
    ) -> pa.Table:
        def score() -> list[Outcome]:
            assert isinstance(detector, Detector)
            sides = images["width"][good], images["height"][good]
            return score_whole(self.jobs[number].map_rule, detector, features[detector.feature], *sides)

        outcomes = _guarded(detector, len(good), score)
        of_image = dict(zip(good.tolist(), outcomes, strict=True))
        unusable = (Outcome(error) for error in images["error"])
        return _table(number, images, [of_image.get(row, other) for row, other in enumerate(unusable)])

    def _score_large(
        self, batch: Batch, detectors: Mapping[int, Detector | str], row: int
    ) -> dict[int, tuple[pa.Table, float]]:
        """Score an image window by window: by number of the job, a table and its share of the seconds it took."""
        started = time.perf_counter()
        image = {name: column[row : row + 1] for name, column in batch.items() if name != "pixels"}
        usable_detectors = {number: one for number, one in detectors.items() if isinstance(one, Detector)}

        def score() -> list[Outcome]:
            rules = {number: self.jobs[number].map_rule for number in usable_detectors}
            width, height = image["width"][0], image["height"][0]
            found = score_large(
                batch["pixels"][row], self.extract, rules, usable_detectors, width, height, self.threads
            )
            return [found[number] for number in usable_detectors]

        error = image["error"][0]
        outcomes: dict[int, Outcome] = dict.fromkeys(detectors, Outcome(error))
        if not error:
            outcomes = {number: Outcome(one) for number, one in detectors.items() if isinstance(one, str)}
            if usable_detectors:
                scored = _guarded(next(iter(usable_detectors.values())), len(usable_detectors), score)
                outcomes |= zip(usable_detectors, scored, strict=True)
        seconds = (time.perf_counter() - started) / len(detectors)
        return {number: (_table(number, image, [outcome]), seconds) for number, outcome in outcomes.items()}


def _guarded(detector: Detector | str, count: int, score: Callable[[], list[Outcome]]) -> list[Outcome]:
    """The outcomes of so many images; an error if the model cannot be used or fails."""
    if isinstance(detector, str):
        return [Outcome(detector)] * count
    try:
        return score() if count else []
    except RayError:
        raise
    except Exception as error:
        return [Outcome(f"{SCORING_FAILED}: {failure_reason(error)}")] * count


def _table(number: int, images: Batch, outcomes: Sequence[Outcome]) -> pa.Table:
    """A table of `columns.SCORED` of images that a job has scored."""
    failed = np.array([outcome.error != "" for outcome in outcomes], bool)
    grids = [outcome.patch_scores for outcome in outcomes]
    regions = [
        None if outcome.regions is None else [region._asdict() for region in outcome.regions] for outcome in outcomes
    ]
    columns = {
        "row": images["row"],
        "job": np.full(len(outcomes), number, np.int32),
        "error": pa.array([outcome.error for outcome in outcomes], pa.string(), mask=~failed),
        **{name: pa.array(images[name], pa.int32(), mask=failed) for name in ("width", "height")},
        "score": pa.array([outcome.score for outcome in outcomes], pa.float32()),
        "patch_scores": pa.array([None if grid is None else grid.ravel() for grid in grids], pa.list_(pa.float32())),
        "patch_grid": pa.array([None if grid is None else grid.shape for grid in grids], pa.list_(pa.int32())),
        "regions": pa.array(regions, REGIONS),
        "anomalous_area": pa.array([outcome.anomalous_area for outcome in outcomes], pa.float64()),
    }
    return pa.table(columns, SCORED)
