"""Measure something of each category of a manifest on a few of its images, in tasks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import ray

from mvad import storage
from mvad.data.sampling import evenly_spaced

if TYPE_CHECKING:
    from mvad.options import DataOptions

MAX_MEASURED_IMAGES = 64  # per category, evenly spaced

Outcome = TypeVar("Outcome")


def measure_categories(images: pa.Table, measure: Callable[..., Outcome], options: DataOptions) -> dict[str, Outcome]:
    """What is measured of each category: on its training images, or if there are none on all of its images.

    ``measure`` takes URIs, the largest number of pixels, whether the first of several pages is used, and the keys of
    object storage.
    """
    task: Any = ray.remote(num_cpus=1)(measure)
    tasks = {}
    for category in pc.unique(images["category"]).to_pylist():
        rows = images.filter(pc.equal(images["category"], category))
        train = rows.filter(pc.equal(rows["split"], "train"))
        uris = (train if len(train) else rows)["uri"]
        uris = uris.take(pa.array(evenly_spaced(len(uris), MAX_MEASURED_IMAGES))).to_pylist()
        tasks[category] = task.remote(uris, options.max_pixels, options.first_page, storage.Keys())
    return dict(zip(tasks, ray.get(list(tasks.values())), strict=True))
