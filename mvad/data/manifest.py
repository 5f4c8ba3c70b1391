"""The manifest: one row per image, made from listings and tables alone; no pixel is read."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mvad import storage
from mvad.data.description import Tally
from mvad.data.layouts import LEFT_OUT, Contents, read_folder
from mvad.data.sampling import evenly_spaced
from mvad.data.tables import SCHEMA as SCHEMA
from mvad.data.tables import is_table, read_table
from mvad.errors import UsageError

if TYPE_CHECKING:
    from mvad.options import DataOptions


@dataclass(frozen=True)
class Manifest:
    """The images of a data set."""

    root: str  # URI of the folder (or table) it was made from
    table: pa.Table  # one row per image, columns of ``SCHEMA``, sorted by category, split and image id
    # Images that have no place in the layout, and what could not be looked at; columns of ``LEFT_OUT``.
    left_out: pa.Table = field(default_factory=LEFT_OUT.empty_table)
    remarks: Mapping[str, Sequence[str]] = field(default_factory=dict)  # how it was understood, by category
    others: Mapping[str, int] = field(default_factory=dict)  # files that are no images, by suffix
    ignore: Mapping[str, str] = field(default_factory=dict)  # masks of what is not looked at: see `Contents`

    @property
    def tally(self) -> Tally:
        """How many images of each kind there are."""
        return Tally().add(self.table)

    @property
    def errors(self) -> list[dict[str, str]]:
        """The images that are left out: image_id, category, split and error."""
        return self.left_out.select(["image_id", "category", "split", "error"]).to_pylist()

    @property
    def n_images(self) -> int:
        return len(self.table)

    @property
    def n_files(self) -> int:
        """Images, and files that are left out."""
        return len(self.table) + len(self.left_out)

    @property
    def categories(self) -> list[str]:
        """The categories that have images, sorted."""
        return sorted(pc.unique(self.table["category"]).to_pylist())

    def split(self, name: str) -> pa.Table:
        """Return the rows of one split (``train`` or ``test``), in their order."""
        return self.table.filter(pc.equal(self.table["split"], name))


def ignore_uris(ignore: Mapping[str, str], categories: Iterable[str]) -> dict[str, str]:
    """The mask of what is ignored (a URI) of each category that has one; ``ignore`` is as in a `Manifest`."""
    uris = {name: ignore.get(name, ignore.get("")) for name in categories}
    return {name: uri for name, uri in uris.items() if uri is not None}


def read_manifest(data: str, options: DataOptions, *, to_learn: bool = False) -> Manifest:
    """List DATA and apply ``--layout``, ``--category``, ``--categories`` and ``--limit``.

    ``to_learn``: training images are needed, as for `layouts.read_folder`.

    UsageError if DATA does not exist, has no images, names an image twice, or lacks a category of ``--categories``.
    """
    root = storage.to_uri(data)
    if is_table(root):
        table, ignore = read_table(root, options.category)
        contents = Contents(table, ignore=ignore)
    else:
        contents = read_folder(root, options.layout, options.category, to_learn=to_learn)
    table = contents.table
    repeated = repeated_ids(table)
    if len(repeated):
        raise UsageError(f"{storage.readable(root)} names {repeated[0].as_py()!r} more than once.")
    require_categories(options.categories, pc.unique(table["category"]).to_pylist(), root)
    table = select_categories(table, options.categories)
    if options.limit is not None:
        table = _limit(table, options.limit)
    left_out = select_categories(contents.left_out, options.categories)
    return Manifest(root, table, left_out, contents.remarks, contents.others, contents.ignore)


def repeated_ids(images: pa.Table) -> pa.ChunkedArray:
    """Return the image ids that more than one row has."""
    counts = images.group_by("image_id").aggregate([([], "count_all")])
    return counts.filter(pc.greater(counts["count_all"], 1))["image_id"]


def require_categories(names: Sequence[str] | None, available: Collection[str], uri: str) -> None:
    """Raise a UsageError that lists the categories in ``uri`` if one of ``names`` (if any) is not among them."""
    unknown = [name for name in names or () if name not in available]
    if unknown:
        listed = ", ".join(sorted(available))
        raise UsageError(f"unknown category {unknown[0]!r}; {storage.readable(uri)} has: {listed}.")


def select_categories(table: pa.Table, names: Sequence[str] | None) -> pa.Table:
    """Return the rows of some categories, or of all for None, sorted by category, split and image id."""
    if names is not None:
        table = table.filter(pc.is_in(table["category"], pa.array(names, pa.string())))
    return table.sort_by([(key, "ascending") for key in ("category", "split", "image_id")])


def _limit(table: pa.Table, limit: int) -> pa.Table:
    """Keep at most ``limit`` evenly spaced rows per category and split of a sorted table, so of every defect."""
    groups = table.group_by(["category", "split"], use_threads=False)
    counts = groups.aggregate([([], "count_all")])["count_all"].to_numpy()
    starts = np.cumsum(counts) - counts
    rows = [start + evenly_spaced(count, limit) for start, count in zip(starts, counts, strict=True)]
    return table.take(pa.array(np.concatenate(rows)))


def require_training_images(manifest: Manifest) -> pa.Table:
    """The rows of the training images; UsageError if a category has none."""
    train, folder = manifest.split("train"), storage.readable(manifest.root)
    trained = set(train["category"].to_pylist())
    missing = [name for name in manifest.categories if name not in trained]
    if not trained:
        raise UsageError(f"no train/good images under {folder}; a model is learnt from them.")
    if missing:
        raise UsageError(
            f"category {missing[0]!r} under {folder} has no train/good images; add some, or leave it out with "
            "--categories."
        )
    return train


def require_test_images(manifest: Manifest, advice: str) -> pa.Table:
    """The rows of the test images; UsageError, which ends in ``advice``, if there are none."""
    images = manifest.split("test")
    if not len(images):
        raise UsageError(f"no test images under {storage.readable(manifest.root)}{advice}")
    return images
