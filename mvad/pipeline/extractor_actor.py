"""The actor that turns pixels into features for fitting."""

from __future__ import annotations

import time
import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import ray
from numpy.typing import NDArray

from mvad.pipeline.columns import FEATURES, Batch, usable
from mvad.runtime.stage_totals import StageTotals
from mvad.runtime.threads import Threads, worker_device


def seconds_by_category(categories: NDArray[np.object_], seconds: float) -> dict[str, float]:
    """Share out an actor's time among the categories of a batch, equally per image."""
    shares: dict[str, float] = defaultdict(float)
    for category in categories:
        shares[category] += seconds / len(categories)
    return shares


class Extractor:
    """Actor of the fitting pool: pixels to features of some kinds.

    Parameters
    ----------
    spec
        Reference to the `extractor.ExtractorSpec` of the features.
    shapes
        Shape of one image's features, by kind.
    """

    def __init__(
        self, spec: ray.ObjectRef, shapes: Mapping[str, Sequence[int]], threads: int, totals: StageTotals
    ) -> None:
        self.extract = ray.get(spec).load(worker_device())
        self.shapes, self.threads, self.totals = shapes, Threads(threads), totals
        self.name = uuid.uuid4().hex

    def __call__(self, batch: Batch) -> Batch:
        """Extract features of a batch, and note the seconds that took."""
        started = time.perf_counter()
        columns = self.features(batch)
        seconds = seconds_by_category(batch["category"], time.perf_counter() - started)
        n_images, bytes_read = len(batch["error"]), int(batch["file_size"].sum())
        self.totals.add_batch(seconds, n_images, n_images - len(usable(batch)), bytes_read, self.name)
        return columns | {name: batch[name] for name in ("row", "error")}

    def features(self, batch: Batch) -> Batch:
        """Extract features of a batch; rows with an error are zero."""
        n_images = len(batch["error"])
        columns: Batch = {
            FEATURES + kind: np.zeros((n_images, *shape), np.float32) for kind, shape in self.shapes.items()
        }

        def extract(rows: NDArray[np.int64]) -> None:
            for kind, values in self.extract(batch["pixels"][rows]).items():
                columns[FEATURES + kind][rows] = values.cpu().numpy()

        self.threads.map(extract, self.threads.portions(usable(batch), self.extract.chunk))
        return columns
