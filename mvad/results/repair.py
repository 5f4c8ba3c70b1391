"""Remove rows: those that were written twice, and those of images that are scored again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection

import pyarrow as pa
import pyarrow.compute as pc

from mvad import storage
from mvad.data.manifest import repeated_ids
from mvad.results.store import read_status, rewrite


def drop_duplicates(out: str) -> pa.Table:
    """Remove what a run that was killed may have left in OUT (a URI): halves of files, and rows that are there twice.

    Work that is done again writes the same files again, unless its rows were divided differently; then they are there
    twice, and equal. The row in the file whose name comes first stays.

    Returns
    -------
    `store.read_status` of the rows that stay, without ``file``
    """
    storage.remove_unfinished(storage.join(out, "scores"))
    status = read_status(out)
    repeated = status.filter(pc.is_in(status["image_id"], repeated_ids(status).combine_chunks()))
    first: dict[str, str] = {}
    again: dict[str, set[str]] = defaultdict(set)
    for file, image_id in sorted(zip(repeated["file"].to_pylist(), repeated["image_id"].to_pylist(), strict=True)):
        if first.setdefault(image_id, file) != file:
            again[file].add(image_id)
    for file, image_ids in again.items():
        _drop_from(file, image_ids)
    unique = status.group_by("image_id").aggregate([("status", "min")])
    return unique.select(["image_id", "status_min"]).rename_columns(["image_id", "status"])


def drop_rows(out: str, image_ids: Collection[str]) -> None:
    """Remove the rows of some images, file by file; a reader sees each file as it was or as it will be."""
    if not image_ids:
        return
    status = read_status(out)
    rows = status.filter(pc.is_in(status["image_id"], pa.array(list(image_ids), pa.string())))
    for file in sorted(set(rows["file"].to_pylist())):
        _drop_from(file, image_ids)


def _drop_from(file: str, image_ids: Collection[str]) -> None:
    ids = pa.array(list(image_ids), pa.string())
    rewrite(file, lambda rows: rows.filter(pc.invert(pc.is_in(rows["image_id"], ids))))
