"""Which images are used: evenly spaced ones, and of training images a few, with variants (see `augmentation`)."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

if TYPE_CHECKING:
    from mvad.options import FitOptions

N_VARIANTS = 8  # variants of each of a few images, besides the image itself


def evenly_spaced(count: int, most: int) -> NDArray[np.int64]:
    """Return at most ``most`` of the numbers below ``count``, evenly spaced, with the first and the last."""
    return np.linspace(0, count - 1, min(most, count)).round().astype(np.int64)


def pick(image_ids: Sequence[str], options: FitOptions, category: str) -> list[str]:
    """The training images of a category that a fit uses, in their order.

    With one ``--shot-seed``, the images for a small number of shots are among those for a larger number.
    """
    if options.shots is None or options.shots >= len(image_ids):
        return list(image_ids)
    random = np.random.default_rng([options.shot_seed, zlib.crc32(category.encode())])
    return [image_ids[number] for number in np.sort(random.permutation(len(image_ids))[: options.shots])]


def training_rows(train: pa.Table, fits: Mapping[str, Sequence[FitOptions]], *, all_images: bool = False) -> pa.Table:
    """The rows of a manifest, sorted by category, that the fits of each category need: an image, then its variants.

    With ``all_images``, those that no fit picks are kept as well. The column ``variant`` is added: the seed of a
    variant, or 0 for the image itself.
    """
    categories, image_ids = np.array(train["category"].to_pylist(), object), train["image_id"].to_pylist()
    numbers: list[int] = []
    seeds: list[int] = []
    for category in dict.fromkeys(categories):
        rows = np.flatnonzero(categories == category).tolist()
        picks = [(set(pick([image_ids[row] for row in rows], fit, category)), fit) for fit in fits[category]]
        used = set().union(*(images for images, _ in picks))
        for row in rows:
            image_id = image_ids[row]
            if not all_images and image_id not in used:
                continue
            n_variants = max((fit.rows_per_image - 1 for images, fit in picks if image_id in images), default=0)
            variants = variant_seeds(image_id, fits[category][0].seed, n_variants)
            numbers += [row] * (1 + len(variants))
            seeds += [0, *variants]
    return train.take(pa.array(numbers, pa.int64())).append_column("variant", pa.array(seeds, pa.int64()))


def variant_seeds(image_id: str, seed: int, count: int = N_VARIANTS) -> list[int]:
    """Seeds of so many variants of an image, none of them 0; fewer are the first of more."""
    return [1 + zlib.crc32(f"{seed}/{number}/{image_id}".encode()) for number in range(count)]
