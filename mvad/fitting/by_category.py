"""Regroup features by category on the driver, in manifest order, whatever order they arrive in."""

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mvad.origins.bank_origins import Image
from mvad.pipeline.columns import FEATURES, FINGERPRINT, Batch
from mvad.search.duplicates import group_near_duplicates


@dataclass
class CategoryFeatures:
    """The training features of one category, or of one shard of it: consecutive rows of the table of images."""

    category: str
    features: dict[str, NDArray[np.float32]]  # by kind: (n, ...), of the usable rows, in the table's order
    image_ids: NDArray[np.object_]  # (n,), the image of each row of the features
    variants: NDArray[np.int64]  # (n,), the variant of that image: 0 is the image itself
    all_image_ids: list[str]  # also of images that cannot be used
    errors: dict[str, str]  # why images cannot be used, by image id
    shard: int = 0
    fingerprints: NDArray[np.uint8] | None = None  # (n, side, side), of the rows of the features; None if not known
    uris: Mapping[str, str] = field(default_factory=dict)  # by image id

    def groups_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Numbers, from 0, of the groups of near duplicates that some rows belong to: (m,)."""
        if self.fingerprints is None:
            return np.arange(len(rows))
        return group_near_duplicates(self.fingerprints[rows])

    def rows_of(self, image_ids: Collection[str], *, n_variants: int = 0) -> NDArray[np.int64]:
        """Rows of the features of some images, in their order, each followed by its first ``n_variants`` variants."""
        rows = np.arange(len(self.image_ids))
        originals = np.maximum.accumulate(np.where(self.variants == 0, rows, 0))
        return rows[np.isin(self.image_ids, list(image_ids)) & (rows - originals <= n_variants)]

    def named(self, image_ids: Iterable[str]) -> list[Image]:
        """Images with their URIs; none if these are not known."""
        return [Image(name, self.uris[name]) for name in image_ids] if self.uris else []

    @property
    def nbytes(self) -> int:
        return sum(rows.nbytes for rows in self.features.values())


@dataclass
class _Incomplete:
    """A category, or shard, of which some rows have not arrived yet; ``images`` are all of its rows."""

    first: int  # row of the table
    images: pa.Table
    features: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    fingerprints: NDArray[np.uint8] | None = None
    errors: dict[int, str] = field(default_factory=dict)
    n_arrived: int = 0

    def add(self, batch: Batch) -> None:
        positions = batch["row"] - self.first
        for name, rows in batch.items():
            if name.startswith(FEATURES):
                kind = name.removeprefix(FEATURES)
                if kind not in self.features:
                    self.features[kind] = np.empty((len(self.images), *rows.shape[1:]), np.float32)
                self.features[kind][positions] = rows
        if FINGERPRINT in batch:
            if self.fingerprints is None:
                self.fingerprints = np.empty((len(self.images), *batch[FINGERPRINT].shape[1:]), np.uint8)
            self.fingerprints[positions] = batch[FINGERPRINT]
        self.errors |= {int(row): error for row, error in zip(positions, batch["error"], strict=True) if error}
        self.n_arrived += len(positions)

    def finish(self, category: str, shard: int) -> CategoryFeatures:
        image_ids = np.array(self.images["image_id"].to_pylist(), object)
        variants = np.zeros(len(image_ids), np.int64)
        if "variant" in self.images.column_names:
            variants = self.images["variant"].to_numpy()
        usable = np.delete(np.arange(len(image_ids)), sorted(self.errors))
        if self.errors:
            for rows in self.features.values():
                for row, old in enumerate(usable):
                    rows[row] = rows[old]  # in place: memory might not hold a copy
        features = {kind: rows[: len(usable)] for kind, rows in self.features.items()}
        errors = {image_ids[row]: self.errors[row] for row in sorted(self.errors)}
        all_ids = list(dict.fromkeys(image_ids))
        prints = None if self.fingerprints is None else self.fingerprints[usable]
        uris = dict(zip(image_ids, self.images["uri"].to_pylist(), strict=True))
        known = image_ids[usable], variants[usable], all_ids, errors
        return CategoryFeatures(category, features, *known, shard, prints, uris)


def group_by_category(
    batches: Iterable[Batch], images: pa.Table, shards: NDArray[np.int64] | None = None
) -> Iterator[CategoryFeatures]:
    """Yield each category, or shard, as soon as its last image has arrived, and forget it.

    ``batches`` are as extracted (`pipeline.columns`). In ``images``, rows of a category stand next to each other, and
    ``variant`` is as in `sampling`. ``shards``, (n,), is each row's shard within its category; by default there is one.
    """
    numbers = np.zeros(len(images), np.int64) if shards is None else shards
    units = list(zip(images["category"].to_pylist(), numbers.tolist(), strict=True))
    incomplete: dict[tuple[str, int], _Incomplete] = {}
    first = 0
    for unit, group in itertools.groupby(units):
        n_rows = len(list(group))
        incomplete[unit] = _Incomplete(first, images.slice(first, n_rows))
        first += n_rows
    for batch in batches:
        start = 0
        for unit, group in itertools.groupby(batch["row"], key=units.__getitem__):
            rows = slice(start, start := start + len(list(group)))
            category = incomplete[unit]
            category.add({name: column[rows] for name, column in batch.items()})
            if category.n_arrived == len(category.images):
                yield incomplete.pop(unit).finish(*unit)
                del category
