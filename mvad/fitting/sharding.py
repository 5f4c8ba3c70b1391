"""Fit categories that do not fit into memory, shard by shard."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mvad.data.image_size import TILES
from mvad.data.sampling import evenly_spaced
from mvad.detectors.patchcore import LAYERS, bank_size
from mvad.memory import MemoryBudget
from mvad.options import MethodOptions

MAX_SHARD_PATCHES = 1 << 17  # choosing costs patches x centres: smaller shards are faster, and cover less well
OVERSAMPLING = 2.0  # patches kept of a shard, as a multiple of those that the bank takes from it in the end
DRIVER_OVERHEAD, TRAINING_OVERHEAD = 1.25, 3.0  # memory needed, as a multiple of the features' size
CALIBRATION_FRACTION = 1 / 8  # of the budget, for features of images that calibrate
CALIBRATION_IMAGES_FRACTION = 10  # one image in so many calibrates
MAX_CALIBRATION_IMAGES = 1000


@dataclass(frozen=True)
class Shards:
    """How a category is divided; the result does not depend on the number or order of actors.

    Every patch is at most the radius of its shard's coreset away from a patch of the shards' union, and that one is at
    most the radius of the last choice away from the bank: the bank covers all patches within the sum of the two, which
    the model records as its covering radius. Greedy's own radius is at most twice the best one for as many centres
    (Gonzalez 1985). If every shard keeps as many patches as the bank holds, the sum is at most four times the best
    (Malkomes et al. 2015, Fast Distributed k-Center Clustering with Outliers on Massive Data, section 3). Shards here
    keep `OVERSAMPLING` times their part of the bank, for which the recorded sum is the only bound.
    """

    n_images: int  # of the category
    shard_images: int  # images per shard; the last may have fewer
    patches: int  # per image, with those of its variants
    share: float  # of a shard's patches that is kept
    held_out: NDArray[np.int64]  # numbers of the images that are not fitted to: they calibrate
    left_out: bool = False  # whether images calibrate by leaving each out of the bank

    @classmethod
    def plan(
        cls, n_images: int, shape: Sequence[int], options: MethodOptions, budget: MemoryBudget, *, alone: bool = False
    ) -> Shards:
        """Divide images whose features have this shape, as those of their variants: (height, width, channels).

        With ``alone``, each image is a shard, and none is held out: they calibrate one by one, left out of the bank.
        """
        patches, width = options.rows_per_image * math.prod(shape[:-1]), shape[-1]
        max_patches = _max_patches(budget, width, options, 1.0)
        shard_images = 1 if alone else max(1, min(MAX_SHARD_PATCHES, max_patches // 4) // patches)
        # A third of the budget is for the union, which is put together from the shards' coresets next to it.
        wanted = bank_size(options, n_images * patches) / (n_images * patches)
        share = min(1.0, OVERSAMPLING * wanted, max_patches / 3 / (n_images * patches))
        n_held_out = 0
        if options.calibrates and not alone:
            room = int(max_patches * CALIBRATION_FRACTION) // math.prod(shape[:-1])
            n_held_out = min(MAX_CALIBRATION_IMAGES, n_images // CALIBRATION_IMAGES_FRACTION, room)
        held_out = np.sort(evenly_spaced(n_images, n_held_out))
        return cls(n_images, shard_images, patches, share, held_out, alone and options.calibrates)

    @property
    def count(self) -> int:
        return math.ceil(self.n_images / self.shard_images)

    def is_held_out(self, shard: int, n_images: int) -> NDArray[np.bool_]:
        """Which of the images of a shard calibrate: (n_images,)."""
        return np.isin(np.arange(n_images) + shard * self.shard_images, self.held_out)


def _max_patches(budget: MemoryBudget, width: int, options: MethodOptions, ratio: float) -> int:
    projected = options.projection if 0 < options.projection < width else width
    # Patches of a layer are copied out of those of all, those of windows out of those of both levels, and all of them
    # to get their places.
    copied = options.banks == LAYERS or options.tile_levels != TILES or options.position_weight > 0
    return budget.max_patches(width, projected + (width if copied else 0), ratio)


def patch_step(shapes: Mapping[str, Sequence[int]], options: MethodOptions, budget: MemoryBudget) -> int:
    """How far apart, in rows and columns, the patches of a large image must be for the budget to hold those of a few.

    ``shapes`` are those of one image's features, by kind: (rows, columns, channels) each. Variants of images count.
    """
    share = 4 * options.rows_per_image
    room = {kind: max(1, _max_patches(budget, width, options, 1.0) // share) for kind, (*_, width) in shapes.items()}
    return max(math.ceil(math.sqrt(rows * columns / room[kind])) for kind, (rows, columns, _) in shapes.items())


def max_images(shapes: Mapping[str, Sequence[int]], options: MethodOptions, budget: MemoryBudget) -> int:
    """Number of images whose features, and what a fit makes of them, fit into the budget."""
    if set(shapes) == {"patches"}:
        *grid, width = shapes["patches"]
        n_images = _max_patches(budget, width, options, options.coreset_ratio) // math.prod(grid)
    else:
        sizes = [4 * math.prod(shape) for shape in shapes.values()]
        # The driver holds all kinds; a task that trains on one holds it, its scaled copy, and what training needs.
        n_images = int(budget.bytes / max(DRIVER_OVERHEAD * sum(sizes), TRAINING_OVERHEAD * max(sizes)))
    return max(1, n_images // options.rows_per_image)


def subsample_categories(train: pa.Table, max_rows: int) -> tuple[pa.Table, list[str]]:
    """At most so many images of each category, evenly spaced, and the categories that had more."""
    categories = np.array(train["category"].to_pylist(), object)
    keep, large = np.ones(len(categories), bool), []
    for category in dict.fromkeys(categories):
        rows = np.flatnonzero(categories == category)
        if len(rows) > max_rows:
            large.append(category)
            keep[rows] = False
            keep[rows[evenly_spaced(len(rows), max_rows)]] = True
    return train.filter(pa.array(keep)), large
