"""Counts and seconds for a cluster's dashboards: Ray exports them from every node, for Prometheus, as ``ray_mvad_*``."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from ray.util.metrics import Counter, Histogram

from mvad.images import Batch

BOUNDARIES = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0]  # seconds


@functools.cache
def _images() -> Counter:
    return Counter("mvad_images", "Images that a stage is done with.", tag_keys=("stage", "status"))


@functools.cache
def _seconds() -> Histogram:
    return Histogram("mvad_batch_seconds", "Seconds of a stage on a batch.", BOUNDARIES, tag_keys=("stage",))


def count(stage: str, errors: NDArray[np.object_], seconds: float) -> None:
    """A stage is done with a batch: the error of each image, "" where there is none, and the seconds it took."""
    failed = int((errors != "").sum())
    for status, images in (("ok", len(errors) - failed), ("error", failed)):
        if images:
            _images().inc(images, {"stage": stage, "status": status})
    _seconds().observe(seconds, {"stage": stage})


@dataclass(frozen=True)
class Counted:
    """A function of batches whose result has ``error``, counted as a stage."""

    stage: str
    function: Callable[[Batch], Batch]

    def __call__(self, batch: Batch) -> Batch:
        started = time.perf_counter()
        result = self.function(batch)
        count(self.stage, result["error"], time.perf_counter() - started)
        return result
