"""The size of the model's input, by category: the shape of the images that it is fitted to."""

import itertools
import math
import statistics
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray

from mvad import storage
from mvad.data.image_size import ImageSize
from mvad.data.images import measure_file
from mvad.data.sampling import evenly_spaced
from mvad.errors import ImageError
from mvad.features.backbone_spec import BackboneSpec
from mvad.options import MethodOptions

MAX_MEASURED_IMAGES = 64  # per category, evenly spaced


def measure_sizes(
    images: pa.Table, options: MethodOptions, spec: BackboneSpec, *, one_for_all: bool = False
) -> dict[str, ImageSize]:
    """The input size of each category of a manifest: that of its training images, or if it has none of all its images.

    With ``one_for_all``, all categories get the size that suits all images together. UsageError if the backbone cannot
    take images of a size.
    """
    categories = pc.unique(images["category"]).to_pylist()
    aspects: dict[str, list[float]] = {category: [] for category in categories}
    if options.keeps_shape:
        measure: Any = ray.remote(num_cpus=1)(aspect_ratios)
        tasks = []
        for category in categories:
            rows = images.filter(pc.equal(images["category"], category))
            train = rows.filter(pc.equal(rows["split"], "train"))
            uris = (train if len(train) else rows)["uri"]
            uris = uris.take(pa.array(evenly_spaced(len(uris), MAX_MEASURED_IMAGES))).to_pylist()
            tasks.append(measure.remote(uris, options.max_pixels, options.first_page, storage.Keys()))
        aspects = dict(zip(categories, ray.get(tasks), strict=True))
    if one_for_all:
        ratios_of_all = list(itertools.chain.from_iterable(aspects.values()))
        aspects = dict.fromkeys(categories, ratios_of_all)
    sizes = {category: options.size_for(_median(ratios), spec.cell) for category, ratios in aspects.items()}
    for size in sizes.values():
        spec.check_size(size)
    return sizes


def aspect_ratios(
    uris: Sequence[str], max_pixels: int, first_page: bool, keys: storage.Keys | None = None
) -> list[float]:
    """Width / height of the upright images that can be read, with the ``keys`` of object storage."""

    def measure(uri: str) -> float | None:
        try:
            width, height = measure_file(uri, max_pixels, first_page=first_page)
        except ImageError:
            return None
        return width / height

    return [ratio for ratio in storage.parallel_map(measure, uris) if ratio is not None]


def _median(ratios: Sequence[float]) -> float:
    """The median of aspect ratios; for an even number the geometric mean of the middle two. 1 if there is none."""
    return math.exp(statistics.median(map(math.log, ratios))) if ratios else 1.0
