"""What runs inside Ray's actors: a backbone, and in scoring the detectors too."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping

import faiss
import numpy as np
import ray
import torch
from numpy.typing import NDArray

from mvad.backbones import Backbone, BackboneSpec
from mvad.detectors import METHODS, Detector
from mvad.images import Batch
from mvad.models import ModelInfo
from mvad.options import ImageSize
from mvad.patches import patch_features

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
    """Actor of the fitting pool: pixels to patch features."""

    def __init__(self, spec: BackboneSpec, weights: ray.ObjectRef, size: ImageSize) -> None:
        self.device = _device()
        self.backbone = Backbone(spec, ray.get(weights), self.device)
        self.shape = tuple(self.patches(np.zeros((1, size.crop, size.crop, 3), np.uint8)).shape[1:])

    def patches(self, pixels: NDArray[np.uint8]) -> torch.Tensor:
        return patch_features(self.backbone.stages(pixels))

    def __call__(self, batch: Batch) -> Batch:
        started = time.perf_counter()
        good = np.flatnonzero(batch["error"] == "")
        features = np.zeros((len(batch["error"]), *self.shape), np.float32)
        if len(good):
            features[good] = self.patches(batch["pixels"][good]).cpu().numpy()
        seconds = np.full(len(features), (time.perf_counter() - started) / len(features))
        return {"row": batch["row"], "error": batch["error"], "features": features, "seconds": seconds}


class Scorer(Extractor):
    """Actor of the scoring pool: pixels to scores; patch features never leave it."""

    def __init__(
        self,
        spec: BackboneSpec,
        weights: ray.ObjectRef,
        size: ImageSize,
        models: Mapping[str, ModelInfo],
        arrays: Mapping[str, ray.ObjectRef],
        maps: str,
    ) -> None:
        super().__init__(spec, weights, size)
        self.models, self.arrays, self.maps = models, arrays, maps
        self.detector = functools.lru_cache(maxsize=CACHED_MODELS)(self._detector)

    def _detector(self, category: str) -> Detector:
        model = self.models[category]
        # All actors of a node look at one read-only copy of the arrays.
        return METHODS[model.method].from_state(model.settings, ray.get(self.arrays[category]), self.device)

    def __call__(self, batch: Batch) -> Batch:
        count = len(batch["error"])
        image, seconds = np.full(count, np.nan, np.float32), np.zeros(count)
        grids = np.full((count, *self.shape[:2]), np.nan, np.float32)
        for category in np.unique(batch["category"]):
            rows = np.flatnonzero((batch["category"] == category) & (batch["error"] == ""))
            if not len(rows):
                continue
            started = time.perf_counter()
            image[rows], grids[rows] = self.detector(category).score(self.patches(batch["pixels"][rows]))
            seconds[rows] = (time.perf_counter() - started) / len(rows)
        columns = {name: batch[name] for name in batch if name != "pixels"} | {
            "score": image,
            "seconds": seconds,
        }
        if self.maps == "all":
            columns["patch_scores"] = grids.reshape(count, -1)
            columns["patch_grid"] = np.tile(np.array(self.shape[:2], np.int32), (count, 1))
        return columns
