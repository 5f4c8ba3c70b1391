"""Features of training images merged on the driver: every image at its own place, whatever order they arrive in."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mvad.data.images import Batch

PREFIX = "features_"  # of the columns that hold features, one a kind


@dataclass
class CategoryFeatures:
    """The training features of one category, or of one shard of it: some rows that follow each other.

    Attributes
    ----------
    features : by kind, (n, ...) float32
        Of the usable images, in the table's order.
    kept : (n,) int64
        Their places among all these rows of the table.
    image_ids
        Of all these rows.
    errors
        Why the others are not usable, by image id.
    seconds
        Spent by actors on its images.
    shard
        Its number, from 0.
    """

    name: str
    features: dict[str, NDArray[np.float32]]
    kept: NDArray[np.int64]
    image_ids: list[str]
    errors: dict[str, str]
    seconds: float
    shard: int = 0

    def rows(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of ``features`` of the usable ones among some places, in their order."""
        usable = places[np.isin(places, self.kept)]
        return np.searchsorted(self.kept, usable)


@dataclass
class _Incomplete:
    """A category, or shard, some of whose images have not arrived; ``ids`` are those of all, in the table's order."""

    first: int
    ids: list[str] = field(default_factory=list)
    features: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)
    seconds: float = 0.0
    arrived: int = 0

    def add(
        self,
        places: NDArray[np.int64],
        features: Mapping[str, NDArray[np.float32]],
        errors: list[str],
        seconds: float,
    ) -> None:
        for kind, rows in features.items():
            if kind not in self.features:
                self.features[kind] = np.empty((len(self.ids), *rows.shape[1:]), np.float32)
            self.features[kind][places] = rows
        self.errors |= {int(place): error for place, error in zip(places, errors, strict=True) if error}
        self.seconds += seconds
        self.arrived += len(places)

    def finish(self, name: str, shard: int) -> CategoryFeatures:
        bad = sorted(self.errors)
        kept = np.delete(np.arange(len(self.ids)), bad)
        if bad:
            for rows in self.features.values():
                for place, old in enumerate(kept):
                    rows[place] = rows[old]  # where they lie: a copy might not fit in memory beside them
        features = {kind: rows[: len(kept)] for kind, rows in self.features.items()}
        errors = {self.ids[place]: self.errors[place] for place in bad}
        return CategoryFeatures(name, features, kept, self.ids, errors, self.seconds, shard)


def group_by_category(
    batches: Iterable[Batch], images: pa.Table, shards: NDArray[np.int64] | None = None
) -> Iterator[CategoryFeatures]:
    """Give out each category, or shard, as soon as the last of its images has arrived, and forget it.

    Parameters
    ----------
    batches
        With columns ``row`` (in ``images``), ``features_<kind>`` for each kind, ``error`` ("" if there is none) and
        ``seconds``.
    images
        The rows of the training images, those of a category next to each other.
    shards : (n,) int64
        The shard of each row in its category; default: a category is one.
    """
    waiting: dict[tuple[str, int], _Incomplete] = {}
    names = images["category"].to_pylist()
    units = list(zip(names, [0] * len(names) if shards is None else shards.tolist(), strict=True))
    for row, (unit, image_id) in enumerate(zip(units, images["image_id"].to_pylist(), strict=True)):
        waiting.setdefault(unit, _Incomplete(row)).ids.append(image_id)
    for batch in batches:
        first = 0
        for unit, rows in itertools.groupby(batch["row"], key=units.__getitem__):
            own = slice(first, first := first + len(list(rows)))
            category = waiting[unit]
            category.add(
                batch["row"][own] - category.first,
                {name.removeprefix(PREFIX): batch[name][own] for name in batch if name.startswith(PREFIX)},
                batch["error"][own].tolist(),
                float(batch["seconds"][own].sum()),
            )
            if category.arrived == len(category.ids):
                yield waiting.pop(unit).finish(*unit)
                del category
