"""What runs inside Ray's actors: a backbone, and in scoring the detectors too."""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Mapping

import faiss
import numpy as np
import ray
import torch
from numpy.typing import NDArray

from mvad.backbones import BackboneSpec
from mvad.detectors import METHODS, Detector, State
from mvad.features import FeatureExtractor
from mvad.images import Batch
from mvad.models import ModelInfo
from mvad.options import FitOptions, ImageSize

CACHED_MODELS = 4  # in a scoring actor; images come sorted by category, so mostly one is in use


def _device() -> str:
    """The device of this actor, which Ray has given a GPU or not; a CPU actor keeps to one thread."""
    if torch.cuda.is_available():
        torch.backends.cudnn.deterministic = True
        return "cuda"
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    return "cpu"


class Extractor:
    """Actor of the fitting pool: pixels to features of one kind."""

    def __init__(self, kind: str, spec: BackboneSpec, weights: ray.ObjectRef, size: ImageSize) -> None:
        self.kind = kind
        self.extract = FeatureExtractor([kind], spec, ray.get(weights), size, _device())

    def __call__(self, batch: Batch) -> Batch:
        started = time.perf_counter()
        good = np.flatnonzero(batch["error"] == "")
        features = np.zeros((len(batch["error"]), *self.extract.shapes[self.kind]), np.float32)
        if len(good):
            features[good] = self.extract(batch["pixels"][good])[self.kind].cpu().numpy()
        seconds = np.full(len(features), (time.perf_counter() - started) / len(features))
        return {"row": batch["row"], "error": batch["error"], "features": features, "seconds": seconds}


def fit_detector(method: str, options: FitOptions, features: NDArray[np.float32], device: str | None = None) -> State:
    """Fit a method to the features of good images.

    Without a device it runs on the one that Ray has given to this task.
    """
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        rows = torch.from_numpy(features).to(device or _device())
    detector = METHODS[method].from_options(options).fit(rows)
    return State(detector.settings, detector.arrays, time.perf_counter() - started)


class Scorer:
    """Actor of the scoring pool: pixels to scores; features never leave it.

    Parameters
    ----------
    models
        By category; of one backbone and image size.
    arrays
        References to the arrays of each model: all actors of a node look at one read-only copy.
    maps
        ``none`` or ``all``, as given to ``--maps``.
    """

    def __init__(
        self,
        spec: BackboneSpec,
        weights: ray.ObjectRef,
        size: ImageSize,
        models: Mapping[str, ModelInfo],
        arrays: Mapping[str, ray.ObjectRef],
        maps: str,
    ) -> None:
        kinds = sorted({METHODS[model.method].feature for model in models.values()})
        self.extract = FeatureExtractor(kinds, spec, ray.get(weights), size, _device())
        self.models, self.arrays, self.maps = models, arrays, maps
        self.detector = functools.lru_cache(maxsize=CACHED_MODELS)(self._detector)

    def _detector(self, category: str) -> Detector:
        model = self.models[category]
        return METHODS[model.method].from_state(model.settings, ray.get(self.arrays[category]), self.extract.device)

    def __call__(self, batch: Batch) -> Batch:
        count = len(batch["error"])
        image, seconds = np.full(count, np.nan, np.float32), np.zeros(count)
        grids: list[NDArray[np.float32]] = [np.empty((0, 0), np.float32)] * count
        for category in np.unique(batch["category"]):
            rows = np.flatnonzero((batch["category"] == category) & (batch["error"] == ""))
            if not len(rows):
                continue
            started = time.perf_counter()
            detector = self.detector(category)
            found = detector.score(self.extract(batch["pixels"][rows])[detector.feature])
            image[rows] = found.image
            if self.maps == "all" and found.grid is not None:
                for row, grid in zip(rows, found.grid, strict=True):
                    grids[row] = grid
            seconds[rows] = (time.perf_counter() - started) / len(rows)
        columns = {name: batch[name] for name in batch if name != "pixels"} | {"score": image, "seconds": seconds}
        if self.maps == "all":
            # Of one size a batch or not: flat bytes keep the columns plain whatever they are.
            columns["patch_scores"] = np.array([grid.tobytes() for grid in grids], object)
            columns["patch_grid"] = np.array([grid.shape for grid in grids], np.int32)
        return columns
