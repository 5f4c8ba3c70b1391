"""Features of training images merged on the driver: every image at its own place, whatever order they arrive in."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mvad.images import Batch


@dataclass
class CategoryFeatures:
    """The training features of one category.

    Attributes
    ----------
    features : (n, ...) float32
        Of the usable images, in the manifest's order.
    errors
        Why the others are not usable, by image id.
    seconds
        Spent by actors on its images.
    digest
        SHA-256 of the ids of all its images.
    """

    name: str
    features: NDArray[np.float32]
    errors: dict[str, str]
    seconds: float
    digest: str


@dataclass
class _Incomplete:
    """A category some of whose images have not arrived; ``ids`` are those of all, in the manifest's order."""

    first: int
    ids: list[str] = field(default_factory=list)
    features: NDArray[np.float32] | None = None
    errors: dict[int, str] = field(default_factory=dict)
    seconds: float = 0.0
    arrived: int = 0

    def add(self, places: NDArray[np.int64], features: NDArray[np.float32], errors: list[str], seconds: float) -> None:
        if self.features is None:
            self.features = np.empty((len(self.ids), *features.shape[1:]), np.float32)
        self.features[places] = features
        self.errors |= {int(place): error for place, error in zip(places, errors, strict=True) if error}
        self.seconds += seconds
        self.arrived += len(places)

    def finish(self, name: str) -> CategoryFeatures:
        features = self.features
        if features is None:
            raise RuntimeError(f"no features of {name} have arrived")
        bad = sorted(self.errors)
        if bad:
            features = np.delete(features, bad, axis=0)
        digest = hashlib.sha256("\n".join(self.ids).encode()).hexdigest()
        return CategoryFeatures(
            name, features, {self.ids[place]: self.errors[place] for place in bad}, self.seconds, digest
        )


def collect(batches: Iterable[Batch], images: pa.Table) -> Iterator[CategoryFeatures]:
    """Give out each category as soon as the last of its images has arrived, and forget it.

    Parameters
    ----------
    batches
        With columns ``row`` (in ``images``), ``features``, ``error`` ("" if there is none) and ``seconds``.
    images
        The manifest's rows of the training images, those of a category next to each other.
    """
    waiting: dict[str, _Incomplete] = {}
    names = np.array(images["category"].to_pylist(), object)
    for row, (name, image_id) in enumerate(zip(names, images["image_id"].to_pylist(), strict=True)):
        waiting.setdefault(name, _Incomplete(row)).ids.append(image_id)
    for batch in batches:
        owners = names[batch["row"]]
        for name in dict.fromkeys(owners):
            mine = owners == name
            category = waiting[name]
            category.add(
                batch["row"][mine] - category.first,
                batch["features"][mine],
                batch["error"][mine].tolist(),
                float(batch["seconds"][mine].sum()),
            )
            if category.arrived == len(category.ids):
                yield waiting.pop(name).finish(name)
                del category
