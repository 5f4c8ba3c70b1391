"""The flow of an inspection: image files -> measured in tasks -> features in the actor pool -> plain arrays.

What comes back to the driver is small, about a kilobyte an image; pixels never do.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from numpy.typing import NDArray

from mvad.console import Stage
from mvad.data.images import Batch
from mvad.features.extractor import feature_shapes, prepare
from mvad.features.weights import Network
from mvad.fitting.by_category import PREFIX
from mvad.inspection.measure import measure_batch, photo_batch
from mvad.options import InspectOptions
from mvad.pipeline.actors import Extractor
from mvad.pipeline.flow import in_blocks
from mvad.runtime.session import ActorPool

DIMENSIONS = 64  # of the random projection that features come back in
KIND = "pooled"


class Examiner(Extractor):
    """Actor: what was measured goes through, pixels become pooled features of length 1, projected at random."""

    def __init__(self, shapes: Mapping[str, Sequence[int]], package: ray.ObjectRef, threads: int) -> None:
        super().__init__(shapes, package, threads)
        self.projection = projection(shapes[KIND][0])

    def __call__(self, batch: Batch) -> Batch:
        features = self.features(batch)[PREFIX + KIND]
        features /= np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-9)
        measured = {name: column for name, column in batch.items() if name != "pixels"}
        return {**measured, "features": (features @ self.projection).astype(np.float16)}


def projection(channels: int) -> NDArray[np.float32]:
    """A fixed (channels, at most ``DIMENSIONS``) matrix that keeps distances nearly (Johnson and Lindenstrauss)."""
    if channels <= DIMENSIONS:
        return np.eye(channels, dtype=np.float32)
    matrix = np.random.default_rng(0).standard_normal((channels, DIMENSIONS)) / math.sqrt(DIMENSIONS)
    return matrix.astype(np.float32)


def measured(
    images: pa.Table, network: Network | None, options: InspectOptions, pool: ActorPool, stage: Stage
) -> dict[str, NDArray[Any]]:
    """Measure all images: the columns of `measure.Measured`, and ``features`` if there is a network, row by row.

    Parameters
    ----------
    images
        Rows of a manifest.
    """
    size = None if network is None else options.size
    measure = functools.partial(measure_batch, size=size, max_pixels=options.max_pixels)
    dataset = _files(images, range(len(images)), options, pool).map_batches(measure, batch_size=None, num_cpus=1)
    if network is not None:
        shapes = feature_shapes([KIND], network.spec, options.size)
        package = ray.put(prepare([KIND], network, options.size, options.engine, pool.gpus))
        constructor = {"shapes": shapes, "package": package, "threads": pool.threads}
        dataset = dataset.map_batches(
            Examiner,
            batch_size=options.budget.after_weights(network.nbytes).batch_size(options.batch_size, shapes),
            fn_constructor_kwargs=constructor,
            **pool.arguments,
        )
    columns: dict[str, NDArray[Any]] = {}
    for batch in _batches(dataset):
        rows = batch.pop("row")
        for name, values in batch.items():
            if name not in columns:
                columns[name] = np.zeros((len(images), *values.shape[1:]), values.dtype)
            columns[name][rows] = values
        stage.advance(len(rows))
    return columns


def photos(
    images: pa.Table, rows: Sequence[int], options: InspectOptions, pool: ActorPool, stage: Stage
) -> dict[int, bytes]:
    """Small JPEG pictures of some rows, by row; those that cannot be read any more are left out."""
    found: dict[int, bytes] = {}
    if not len(rows):
        return found
    shrink = functools.partial(photo_batch, max_pixels=options.max_pixels)
    for batch in _batches(_files(images, rows, options, pool).map_batches(shrink, batch_size=None, num_cpus=1)):
        found |= {int(row): data for row, data in zip(batch["row"], batch["photo"], strict=True) if data}
        stage.advance(len(batch["row"]))
    return found


def _files(images: pa.Table, rows: Sequence[int], options: InspectOptions, pool: ActorPool) -> ray.data.Dataset:
    chosen = pa.array(rows, pa.int64())
    table = pa.table({"row": chosen, "uri": images["uri"].take(chosen)})
    return ray.data.from_arrow(in_blocks(table, options.image_size, pool))


def _batches(dataset: ray.data.Dataset) -> Iterator[Batch]:
    yield from dataset.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0)
