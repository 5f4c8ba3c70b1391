"""Categories with more training images than memory holds: which are taken in, and how a model is fitted in shards."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mvad.data.sampling import evenly_spaced
from mvad.detectors import METHODS, Shardable, State, find_method
from mvad.fitting.by_category import CategoryFeatures
from mvad.memory import MemoryBudget
from mvad.options import FitOptions
from mvad.runtime.tensors import as_tensor
from mvad.search.coreset import ShardCoreset

SHARD_PATCHES = 1 << 17  # choosing takes the product of points and centres: smaller shards are faster, and cover worse
KEPT_BEYOND = 2.0  # times the patches that the bank takes from a shard in the end, so many are kept of it
ON_DRIVER, IN_TRAINING = 1.25, 3.0  # times the features' size
HELD_SHARE = 8  # of the room: features of the images that calibrate
HELD_SHARE_OF_IMAGES = 10
HELD_MOST = 1000  # images


@dataclass(frozen=True)
class Shards:
    """How a category is divided; the result does not depend on how many actors there are or which is first.

    Every patch is at most the radius of its shard's coreset away from a patch of the shards' union, and that one at
    most the radius of the last choice from the bank: the bank covers all patches within the sum of the two, which is
    what the model records as its coverage. Greedy's own radius is at most twice the best one for as many centres
    (Gonzalez 1985). Where every shard keeps as many patches as the bank holds, the sum is at most four times the best
    (Malkomes et al. 2015, Fast Distributed k-Center Clustering with Outliers on Massive Data, section 3); shards here
    keep `KEPT_BEYOND` times their part of the bank, for which there is no such bound but the recorded sum.

    Attributes
    ----------
    n_images
        Of the category.
    images
        Of a shard; the last may have fewer.
    patches
        Of an image.
    kept
        Share of a shard's patches that it is condensed to.
    held
        Places of the images that are not fitted to: they calibrate the model, which never saw them.
    """

    n_images: int
    images: int
    patches: int
    kept: float
    held: NDArray[np.int64]

    @classmethod
    def plan(cls, n_images: int, shape: Sequence[int], options: FitOptions, budget: MemoryBudget) -> Shards:
        """Shards of images whose features have this shape: (height, width, channels)."""
        patches, width = math.prod(shape[:-1]), shape[-1]
        most = _patches_in(budget, width, options.projection, 1.0)
        images = max(1, min(SHARD_PATCHES, most // 4) // patches)
        # A third of the room is the union's: it is put together from the shards' coresets, which lie beside it.
        kept = min(1.0, KEPT_BEYOND * options.coreset_ratio, most / 3 / (n_images * patches))
        held = min(HELD_MOST, n_images // HELD_SHARE_OF_IMAGES, most // HELD_SHARE // patches) if options.folds else 0
        return cls(n_images, images, patches, kept, np.sort(evenly_spaced(n_images, held)))

    @property
    def count(self) -> int:
        return math.ceil(self.n_images / self.images)


def _patches_in(budget: MemoryBudget, width: int, projection: int, ratio: float) -> int:
    return budget.patches(width, projection if 0 < projection < width else 0, ratio)


def most_images(shapes: Mapping[str, Sequence[int]], options: FitOptions, budget: MemoryBudget) -> int:
    """How many images the features of which, and what a fit makes of them, the room holds."""
    if set(shapes) == {"patches"}:
        *grid, width = shapes["patches"]
        most = _patches_in(budget, width, options.projection, options.coreset_ratio) // math.prod(grid)
    else:
        sizes = [4 * math.prod(shape) for shape in shapes.values()]
        # All kinds lie on the driver; a task that trains on one holds it, its scaled copy, and what training needs.
        most = int(budget.bytes / max(ON_DRIVER * sum(sizes), IN_TRAINING * max(sizes)))
    return max(1, most // options.copies)


def thin(train: pa.Table, most: int) -> tuple[pa.Table, list[str]]:
    """At most so many images of each category, evenly spaced, and the categories that had more."""
    names = np.array(train["category"].to_pylist(), object)
    keep = np.ones(len(names), bool)
    thinned = []
    for name in dict.fromkeys(names):
        (rows,) = np.nonzero(names == name)
        if len(rows) > most:
            thinned.append(name)
            keep[rows] = False
            keep[rows[evenly_spaced(len(rows), most)]] = True
    return train.filter(pa.array(keep)), thinned


@dataclass
class ShardedFit:
    """One method fitted to one category, shard by shard as they come."""

    options: FitOptions
    shards: Shards
    condensed: dict[int, ShardCoreset] = field(default_factory=dict)
    held: dict[int, NDArray[np.float32]] = field(default_factory=dict)
    ids: dict[int, list[str]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    n_fitted: int = 0
    note: str = ""
    _seen: int = 0
    _seconds_here: float = 0.0

    def add(self, shard: CategoryFeatures) -> None:
        """Condense a shard, and keep the features of those of its images that calibrate."""
        started = time.perf_counter()
        method = find_method(self.options.method)
        features = shard.features.get(method.feature, np.empty(0, np.float32))
        held = np.isin(shard.kept + shard.shard * self.shards.images, self.shards.held)
        if len(features) and not held.all():
            rows = as_tensor(features[~held] if held.any() else features)
            detector = method.from_options(self.options, self.options.copies)
            assert isinstance(detector, Shardable)
            self.condensed[shard.shard] = detector.subsample(rows, self.shards.kept)
        if held.any():
            self.held[shard.shard] = features[held]
        self.ids[shard.shard], self._seen = shard.image_ids, self._seen + 1
        self.errors |= shard.errors
        self.seconds += shard.seconds
        self.n_fitted += int((~held).sum())
        self._seconds_here += time.perf_counter() - started

    @property
    def complete(self) -> bool:
        return self._seen == self.shards.count

    @property
    def progress(self) -> str:
        return f"{self._seen} of {self.shards.count} shards condensed"

    @property
    def image_ids(self) -> list[str]:
        return [name for shard in sorted(self.ids) for name in self.ids[shard]]

    @property
    def n_held(self) -> int:
        return sum(len(features) for features in self.held.values())

    def fit(self) -> State:
        """Fit to all shards, which are complete, and forget them."""
        started = time.perf_counter()
        detector = METHODS[self.options.method].from_options(self.options, self.options.copies)
        assert isinstance(detector, Shardable)
        wanted = max(1, round(self.options.coreset_ratio * self.n_fitted * self.shards.patches))
        found = sum(len(shard.vectors) for shard in self.condensed.values())
        if found < wanted:
            self.note = (
                f"the bank holds {found:,} patches instead of {wanted:,}, which is what --memory-limit "
                f"{self.options.memory_limit} allows"
            )
        detector.fit_shards([self.condensed.pop(shard) for shard in sorted(self.condensed)], wanted)
        seconds = self._seconds_here + time.perf_counter() - started
        return detector.state._replace(seconds=seconds)

    def calibrate(self, state: State) -> NDArray[np.float32] | None:
        """Scores of the images that were held out, in their order; None if there are none."""
        if not self.held:
            return None
        detector = METHODS[self.options.method].from_state(state)
        return np.concatenate([detector.image_scores(as_tensor(self.held[shard])) for shard in sorted(self.held)])
