"""The actor that turns pixels into scores; features never leave it."""

import functools
import time
import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import ray
import torch
from numpy.typing import NDArray
from ray.exceptions import RayError
from torch import Tensor

from mvad.detectors import Detector, Scores, State, find_method
from mvad.errors import ModelError, failure_reason
from mvad.model_store import ModelInfo
from mvad.pipeline.columns import SCORED, Batch, usable
from mvad.runtime.stage_totals import StageTotals
from mvad.runtime.threads import Threads, worker_device
from mvad.scoring.jobs import MODEL_UNUSABLE, SCORING_FAILED, ScoringJob
from mvad.scoring.model_sharing import Broadcast

MAX_CACHED_CATEGORIES = 4  # images come sorted by category, so one is mostly enough


class Scorer:
    """Actor that extracts the features of images once for all jobs of their category: one row per image and job.

    ``spec`` refers to an `extractor.ExtractorSpec`, and ``jobs``, by number, are of one backbone and image size. Models
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
            score = functools.partial(self._score, batch, self.detectors(category))
            for parts in self.threads.map(score, self.threads.portions(rows, self.extract.chunk)):
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
        n_images, errors = len(images["error"]), images["error"].copy()
        scores: list[np.float32 | None] = [None] * n_images
        maps: list[NDArray[np.float32] | None] = [None] * n_images
        if isinstance(detector, str):
            errors[good] = detector
        elif len(good):
            try:
                image_scores, grids = _scores(detector, features[detector.feature], self.jobs[number].map_threshold)
                for row, score, grid in zip(good, image_scores, grids, strict=True):
                    if np.isfinite(score):
                        scores[row], maps[row] = score, grid
                    else:
                        errors[row] = f"{SCORING_FAILED}: the model gives this image no finite score"
            except RayError:
                raise
            except Exception as error:
                errors[good] = f"{SCORING_FAILED}: {failure_reason(error)}"
        failed = errors != ""
        columns = {
            "row": images["row"],
            "job": np.full(n_images, number, np.int32),
            "error": pa.array(errors, pa.string(), mask=~failed),
            **{name: pa.array(images[name], pa.int32(), mask=failed) for name in ("width", "height")},
            "score": pa.array(scores, pa.float32()),
            "patch_scores": pa.array([None if grid is None else grid.ravel() for grid in maps], pa.list_(pa.float32())),
            "patch_grid": pa.array([None if grid is None else grid.shape for grid in maps], pa.list_(pa.int32())),
        }
        return pa.table(columns, SCORED)


def _scores(
    detector: Detector, features: Tensor, map_threshold: float
) -> tuple[NDArray[np.float32], Sequence[NDArray[np.float32] | None]]:
    """Scores of images, and the patch scores of those that score above ``map_threshold``."""
    scores = detector.score(features) if map_threshold == -np.inf else Scores(detector.image_scores(features), None)
    image_scores, grids = scores.image, scores.grid
    above = np.flatnonzero(image_scores.astype(np.float64) > map_threshold)
    if grids is None and len(above):
        grids = detector.score(features[torch.from_numpy(above).to(features.device)]).grid
    maps: list[NDArray[np.float32] | None] = [None] * len(image_scores)
    if grids is not None:
        for row, grid in zip(above, grids, strict=True):
            maps[row] = grid
    return image_scores, maps
