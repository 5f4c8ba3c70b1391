"""Measure images on Ray: image files -> measurements in tasks -> features in the actor pool -> arrays on the driver.

About a kilobyte per image comes back to the driver; pixels never do.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
import torch
from numpy.typing import NDArray

from mvad import storage
from mvad.data.images import Batch
from mvad.features.known import describe
from mvad.features.specs import feature_shapes, prepare
from mvad.features.weights import Network
from mvad.inspection.measure import measure_batch, thumbnail_batch
from mvad.pipeline.columns import FEATURES
from mvad.pipeline.dataset import Extractor, split_into_blocks
from mvad.runtime.resources import ActorPool
from mvad.search.coreset import random_projection

if TYPE_CHECKING:
    from mvad.console import Stage
    from mvad.options import InspectOptions

DIMENSIONS = 64  # of the features that come back to the driver
KIND = "pooled"


def load_network(options: InspectOptions) -> Network:
    """The backbone with its weights; UsageError if it cannot be had, or cannot take images of this size."""
    spec = describe(options.backbone)
    spec.check_size(options.size)
    return Network.load(spec, options.weights)


class InspectionExtractor(Extractor):
    """Actor: passes measurements through and turns pixels into pooled features, scaled to length 1 and projected."""

    def __call__(self, batch: Batch) -> Batch:
        features = self.features(batch)[FEATURES + KIND]
        features /= np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-9)
        projected = random_projection(torch.from_numpy(features), DIMENSIONS, seed=0).numpy()
        measurements = {name: column for name, column in batch.items() if name != "pixels"}
        return {**measurements, "features": projected.astype(np.float16)}


def measure_images(
    images: pa.Table,
    network: Network | None,
    options: InspectOptions,
    pool: ActorPool,
    stage: Stage,
    bit_depths: Mapping[str, int],
) -> dict[str, NDArray[Any]]:
    """Columns of `measure.Measurement`, in the order of the images, and (n, d) float16 ``features`` with a network."""
    size = None if network is None else options.size
    measure = storage.WithKeys(
        functools.partial(
            measure_batch,
            size=size,
            max_pixels=options.max_pixels,
            bit_depths=bit_depths,
            first_page=options.first_page,
        )
    )
    dataset = _files(images, range(len(images)), options, pool).map_batches(measure, batch_size=None, num_cpus=1)
    if network is not None:
        shapes = feature_shapes([KIND], network.spec, options.size)
        spec = ray.put(prepare([KIND], network, options.size, options.engine, pool.gpus))
        dataset = dataset.map_batches(
            InspectionExtractor,
            batch_size=options.memory_budget.after_weights(network.nbytes).batch_size(options.batch_size, shapes),
            fn_constructor_kwargs={"spec": spec, "shapes": shapes, "threads": pool.threads, "totals": stage.totals},
            **pool.arguments,
        )
    columns: dict[str, NDArray[Any]] = {}
    for batch in dataset.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0):
        rows = batch.pop("row")
        for name, values in batch.items():
            if name not in columns:
                columns[name] = np.zeros((len(images), *values.shape[1:]), values.dtype)
            columns[name][rows] = values
        stage.advance(len(rows))
    return columns


def make_thumbnails(
    images: pa.Table,
    rows: Sequence[int],
    options: InspectOptions,
    pool: ActorPool,
    stage: Stage,
    bit_depths: Mapping[str, int],
) -> dict[int, bytes]:
    """Small JPEG pictures of some rows, by row; images that can no longer be read are left out."""
    pictures: dict[int, bytes] = {}
    if not len(rows):
        return pictures
    shrink = storage.WithKeys(
        functools.partial(
            thumbnail_batch, max_pixels=options.max_pixels, bit_depths=bit_depths, first_page=options.first_page
        )
    )
    dataset = _files(images, rows, options, pool).map_batches(shrink, batch_size=None, num_cpus=1)
    for batch in dataset.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0):
        pictures |= {int(row): data for row, data in zip(batch["row"], batch["picture"], strict=True) if data}
        stage.advance(len(batch["row"]))
    return pictures


def _files(images: pa.Table, rows: Sequence[int], options: InspectOptions, pool: ActorPool) -> ray.data.Dataset:
    row_numbers = pa.array(rows, pa.int64())
    table = images.select(["uri", "category"]).take(row_numbers).add_column(0, "row", row_numbers)
    return ray.data.from_blocks(split_into_blocks(table, options.size.n_pixels, pool))
