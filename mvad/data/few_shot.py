"""Few shots: which training images a model learns from, and how many variants of each (see `augmentation`)."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mvad.options import VARIANTS, FitOptions


def pick(count: int, options: FitOptions, category: str) -> NDArray[np.int64]:
    """Which of the ``count`` training images of a category a fit uses, ascending; of one seed, fewer are among more."""
    if options.shots is None or options.shots >= count:
        return np.arange(count)
    random = np.random.default_rng([options.shot_seed, zlib.crc32(category.encode())])
    return np.sort(random.permutation(count)[: options.shots])


@dataclass(frozen=True)
class TrainingSet:
    """The images that one or more fits learn from, each once, with the variants they need.

    Attributes
    ----------
    table
        Rows of the manifest, those of a category next to each other: its images in the manifest's order, then their
        variants. Column ``variant`` is the seed of a variant, or 0 for the image itself.
    places
        By category and number of the image in it: where among the category's rows are the image and its variants.
    """

    table: pa.Table
    places: dict[str, dict[int, list[int]]]

    @classmethod
    def of(cls, train: pa.Table, fits: Sequence[FitOptions], *, whole: bool = False) -> TrainingSet:
        """What ``fits`` need of the training images ``train``, sorted by category; all of them if ``whole``."""
        names = np.array(train["category"].to_pylist(), object)
        ids = train["image_id"].to_pylist()
        taken: list[int] = []
        seeds: list[int] = []
        places: dict[str, dict[int, list[int]]] = {}
        for name in dict.fromkeys(names):
            (rows,) = np.nonzero(names == name)
            picks = [(pick(len(rows), fit, name), fit) for fit in fits]
            images = range(len(rows)) if whole else np.unique(np.concatenate([chosen for chosen, _ in picks])).tolist()
            wanted = [(image, 0) for image in images]
            for image in sorted({int(image) for chosen, fit in picks if fit.copies > 1 for image in chosen}):
                wanted += [(image, seed) for seed in variant_seeds(ids[rows[image]], fits[0].seed)]
            places[name] = defaultdict(list)
            for place, (image, seed) in enumerate(wanted):
                places[name][image].append(place)
                taken.append(rows[image])
                seeds.append(seed)
        table = train.take(pa.array(taken, pa.int64())).append_column("variant", pa.array(seeds, pa.int64()))
        return cls(table, places)

    def places_of(self, fit: FitOptions, category: str) -> NDArray[np.int64]:
        """Where among the category's rows are those that a fit uses: each image with its variants right behind it."""
        found, copies = self.places[category], fit.copies
        chosen = [found[image][:copies] for image in pick(len(found), fit, category).tolist()]
        return np.concatenate(chosen).astype(np.int64)


def variant_seeds(image_id: str, seed: int) -> list[int]:
    """Seeds of the variants of an image, none of them 0."""
    return [1 + zlib.crc32(f"{seed}/{number}/{image_id}".encode()) for number in range(VARIANTS)]
