"""What runs inside Ray's actors and tasks: a backbone, and the detectors."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import faiss
import numpy as np
import ray
import torch
from numpy.typing import NDArray
from torch import Tensor

from mvad.data.image_size import ImageSize
from mvad.data.images import Batch, decode_batch
from mvad.detectors import METHODS, Detector, Extendable, Pretrained, Scores, State
from mvad.fitting.by_category import PREFIX
from mvad.model_store import ModelInfo
from mvad.options import FitOptions
from mvad.runtime import telemetry
from mvad.runtime.tensors import as_tensor
from mvad.scoring.model_sharing import Broadcast

SCORING_FAILED = "scoring failed"  # how the error of an image begins that its model could not score
CACHED_CATEGORIES = 4  # in a scoring actor; images come sorted by category, so mostly one is in use
AT_ONCE = 8  # images that a thread of a CPU actor takes in hand

Item = TypeVar("Item")
Found = TypeVar("Found")


def _device() -> str:
    """The device of this actor, which Ray has given a GPU or not; a CPU actor keeps to one thread."""
    if torch.cuda.is_available():
        torch.backends.cudnn.deterministic = True
        return "cuda"
    _one_thread()
    return "cpu"


def _one_thread() -> None:
    """Keep what this thread computes to it: with more threads, sums are rounded differently."""
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)


class Threads:
    """Threads of an actor, each with work of its own."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._pool = ThreadPoolExecutor(count, initializer=_one_thread) if count > 1 else None

    def portions(self, rows: NDArray[np.int64], chunk: int) -> list[NDArray[np.int64]]:
        """Rows divided among the threads; on a GPU, which has one and takes ``chunk`` images at once, in chunks."""
        step = max(chunk, min(AT_ONCE, math.ceil(len(rows) / self._count)))
        return [rows[start : start + step] for start in range(0, len(rows), step)]

    def map(self, function: Callable[[Item], Found], items: Iterable[Item]) -> list[Found]:
        """What a function gives for each item, in their order."""
        return list(map(function, items) if self._pool is None else self._pool.map(function, items))


def reason(error: Exception) -> str:
    """One line that says what went wrong, for a row or a note."""
    cause = getattr(error, "cause", None) or error  # Ray wraps what a task raises
    return " ".join(f"{type(cause).__name__}: {cause}".split())


class Extractor:
    """Actor of the fitting pool: pixels to features of some kinds.

    Parameters
    ----------
    shapes
        Of an image's features, by kind.
    package
        Reference to the `engines.ExtractorSpec` of them.
    """

    def __init__(self, shapes: Mapping[str, Sequence[int]], package: ray.ObjectRef, threads: int) -> None:
        self.extract = ray.get(package).load(_device())
        self.shapes, self.threads, self.name = shapes, Threads(threads), telemetry.new_name()

    def __call__(self, batch: Batch) -> Batch:
        return self.features(batch) | {name: batch[name] for name in ("row", "error", "bytes", "retries")}

    def features(self, batch: Batch) -> Batch:
        """The features of a batch, zeros where there is an error, with the actor's seconds, name and memory."""
        started = time.perf_counter()
        count = len(batch["error"])
        good = np.flatnonzero(batch["error"] == "")
        columns: Batch = {PREFIX + kind: np.zeros((count, *shape), np.float32) for kind, shape in self.shapes.items()}

        def extract(rows: NDArray[np.int64]) -> None:
            for kind, values in self.extract(batch["pixels"][rows]).items():
                columns[PREFIX + kind][rows] = values.cpu().numpy()

        self.threads.map(extract, self.threads.portions(good, self.extract.chunk))
        taken = time.perf_counter() - started
        telemetry.count("fit", len(good), count - len(good), int(batch["bytes"].sum()), taken)
        columns["seconds"] = np.full(count, taken / count)
        return columns | telemetry.columns(self.name, count)


def decode_task(batch: Batch, size: ImageSize, max_pixels: int, flips: str) -> Batch:
    """Task that decodes a block of images: `images.decode_batch`."""
    decoded = decode_batch(batch, size, max_pixels, flips)
    return decoded | {"retries": telemetry.retries_column(len(decoded["error"]))}


def fit_detector(
    options: FitOptions,
    features: NDArray[np.float32],
    rows: NDArray[np.int64] | None = None,
    prior: State | None = None,
    device: str | None = None,
) -> State:
    """Fit a method to the features of good images.

    Parameters
    ----------
    rows
        Of the features; default: all.
    prior
        What `pretrain_detector` learnt, for a method that transfers.
    device
        Default: the one that Ray has given to this task.
    """
    started = time.perf_counter()
    detector = METHODS[options.method].from_options(options, options.copies)
    device = device or _device()
    if prior is not None:
        assert isinstance(detector, Pretrained)
        detector.start_from(prior, device)
    chosen = features if rows is None or np.array_equal(rows, np.arange(len(features))) else features[rows]
    detector.fit(as_tensor(chosen, device))
    return detector.state._replace(seconds=time.perf_counter() - started)


def score_held_out(
    options: FitOptions,
    features: NDArray[np.float32],
    rows: NDArray[np.int64],
    held_out: NDArray[np.int64],
    prior: State | None = None,
) -> tuple[NDArray[np.float32], float]:
    """Fit a method to some rows of the features, as `fit_detector` does, and score others: scores and seconds."""
    started = time.perf_counter()
    state = fit_detector(options, features, rows, prior)
    device = _device()
    detector = METHODS[options.method].from_state(state, device)
    scores = detector.image_scores(as_tensor(features[held_out], device))
    return scores, time.perf_counter() - started


class Extension(NamedTuple):
    """A detector that has learnt more, and scores of some images by it and by what it was before."""

    state: State
    scores: NDArray[np.float32]
    scores_before: NDArray[np.float32]


def extend_detector(
    method: str,
    state: State,
    features: NDArray[np.float32],
    rows: NDArray[np.int64],
    others: NDArray[np.int64],
) -> Extension:
    """Extend a fitted detector by some rows of the features, and score others before and after."""
    started = time.perf_counter()
    device = _device()
    detector = METHODS[method].from_state(state, device)
    wanted = as_tensor(features[others], device)
    assert isinstance(detector, Extendable)
    before = detector.image_scores(wanted) if len(others) else np.empty(0, np.float32)
    detector.extend(as_tensor(features[rows], device))
    after = detector.image_scores(wanted) if len(others) else np.empty(0, np.float32)
    seconds = time.perf_counter() - started
    return Extension(detector.state._replace(seconds=seconds), after, before)


def pretrain_detector(options: FitOptions, samples: Sequence[NDArray[np.float32]]) -> State:
    """Learn from the good images of other categories what a method that transfers can learn from them.

    Parameters
    ----------
    samples
        Features of some good images of each, (n, ...).
    """
    started = time.perf_counter()
    device = _device()
    detector = METHODS[options.method].from_options(options, options.copies)
    assert isinstance(detector, Pretrained)
    detector.pretrain([as_tensor(sample, device) for sample in samples])
    return detector.state._replace(seconds=time.perf_counter() - started)


class Scorer:
    """Actor of the scoring pool: pixels to scores; features never leave it.

    Images are extracted once for all models of their category. There is one row a model: where models of several
    entries are given, the rows of one entry follow those of another, and ``entry`` says which is which.

    Parameters
    ----------
    package
        Reference to the `engines.ExtractorSpec` of the features.
    models
        By entry and category; of one backbone and image size.
    broadcast
        The arrays of each model.
    map_above
        By entry and category: images that score above this keep their grids; the others may have none.
    keep_going
        Whether a model that fails makes error rows, or an exception.
    """

    def __init__(
        self,
        package: ray.ObjectRef,
        threads: int,
        models: Mapping[str, Mapping[str, ModelInfo]],
        broadcast: Broadcast,
        map_above: Mapping[tuple[str, str], float],
        keep_going: bool,
    ) -> None:
        self.extract = ray.get(package).load(_device())
        self.threads, self.name = Threads(threads), telemetry.new_name()
        self.models, self.broadcast, self.map_above, self.keep_going = models, broadcast, map_above, keep_going
        self.maps = min(map_above.values()) < np.inf
        self.detectors = functools.lru_cache(maxsize=CACHED_CATEGORIES)(self._detectors)

    def _detectors(self, category: str) -> dict[str, Detector]:
        """The detectors of a category by entry."""
        found = {}
        for entry, own in self.models.items():
            if category in own:
                model = own[category]
                arrays = self.broadcast.arrays(model)
                found[entry] = METHODS[model.method].from_state(State(model.settings, arrays), self.extract.device)
        return found

    def __call__(self, batch: Batch) -> Batch:
        started, parts = time.perf_counter(), []
        for category in np.unique(batch["category"]):
            (rows,) = np.nonzero(batch["category"] == category)
            score = functools.partial(self._score, batch, category, self.detectors(category))
            for part in self.threads.map(score, self.threads.portions(rows, self.extract.chunk)):
                parts += part
        scored = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        taken, good = time.perf_counter() - started, scored["error"] == ""
        telemetry.count("score", int(good.sum()), int((~good).sum()), int(batch["bytes"].sum()), taken)
        # Threads wait for each other: an image's own seconds say how they are shared out, not how many there were.
        scored["seconds"] *= taken / max(scored["seconds"].sum(), 1e-9)
        return scored | telemetry.columns(self.name, len(good))

    def _score(
        self, batch: Batch, category: str, detectors: Mapping[str, Detector], rows: NDArray[np.int64]
    ) -> list[Batch]:
        """The score rows of some images of one category, one batch an entry."""
        started = time.perf_counter()
        own = {name: column[rows] for name, column in batch.items() if name != "pixels"}
        good = np.flatnonzero(own["error"] == "")
        features = self.extract(batch["pixels"][rows[good]]) if len(good) else {}
        extracting = time.perf_counter() - started
        parts = []
        for entry, detector in detectors.items():
            started = time.perf_counter()
            part = self._score_entry(detector, own, good, features, self.map_above[entry, category])
            part["entry"] = np.full(len(rows), entry, object)
            seconds = extracting + time.perf_counter() - started
            part["seconds"] = np.where(own["error"] == "", seconds / max(1, len(good)), 0.0)
            parts.append(part)
        return parts

    def _score_entry(
        self,
        detector: Detector,
        batch: Batch,
        good: NDArray[np.int64],
        features: Mapping[str, Tensor],
        map_above: float,
    ) -> Batch:
        count = len(batch["error"])
        image, errors = np.full(count, np.nan, np.float32), batch["error"].copy()
        grids: list[NDArray[np.float32]] = [np.empty((0, 0), np.float32)] * count
        if len(good):
            try:
                own = features[detector.feature]
                found = detector.score(own) if map_above == -np.inf else Scores(detector.image_scores(own), None)
                image[good] = found.image
                mapped = np.flatnonzero(found.image.astype(np.float64) > map_above)
                if found.grid is None and len(mapped):
                    found = detector.score(own[torch.from_numpy(mapped).to(own.device)])
                if found.grid is not None:
                    for row, grid in zip(good[mapped], found.grid, strict=True):
                        grids[row] = grid
            except Exception as error:
                if not self.keep_going:
                    raise
                errors[good] = f"{SCORING_FAILED}: {reason(error)}"
        columns = {**batch, "score": image, "error": errors}
        if self.maps:
            # Of one size a batch or not: flat bytes keep the columns plain whatever they are.
            columns["patch_scores"] = np.array([grid.tobytes() for grid in grids], object)
            columns["patch_grid"] = np.array([grid.shape for grid in grids], np.int32)
        return columns
