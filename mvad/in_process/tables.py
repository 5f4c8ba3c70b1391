"""Results as tables, of one run or of nights."""

from __future__ import annotations

import datetime
import functools
import os
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mvad import results, storage
from mvad.anomaly_maps.export import full_map
from mvad.data.image_size import ImageSize
from mvad.errors import UsageError
from mvad.results.nights import PREFIX, list_nights, read_day
from mvad.results.stored_maps import stored_map

MAP_COLUMNS = ("image_id", "width", "height", "patch_scores", "patch_grid")


class Results:
    """The score rows, summaries and maps of a run, or of several nights.

    Columns are those of ``docs/results.md``. Files are read when they are asked for, and tables are kept.
    """

    def __init__(self, folders: dict[str, datetime.date | None]) -> None:
        self._folders = folders

    def __repr__(self) -> str:
        nights = [night.isoformat() for night in self._folders.values() if night is not None]
        if not nights:
            return f"<Results in {storage.readable(next(iter(self._folders)))}>"
        return f"<Results of {len(nights)} nights, {nights[0]} to {nights[-1]}>"

    @functools.cached_property
    def scores(self) -> pa.Table:
        """One row per image, without its map; ``.to_pandas()`` for a data frame. UsageError if a file is damaged."""
        names = [name for name in results.SCORES.names if name not in ("patch_scores", "patch_grid")]
        return pa.concat_tables([results.read_scores(folder, names) for folder in self._folders])

    @functools.cached_property
    def summary(self) -> pa.Table:
        """One row per category and night; of a single run also their mean."""
        tables = []
        for folder, night in self._folders.items():
            rows = pa.Table.from_pylist(results.read_summary(folder), results.SUMMARY)
            tables.append(rows if night is None else rows.append_column("night", pa.array([night] * len(rows))))
        return pa.concat_tables(tables)

    @property
    def runs(self) -> list[dict[str, Any]]:
        """What ``run.json`` says of each run: options, models, counts, seconds."""
        return [results.read_run(folder) for folder in self._folders]

    def maps(self, image_id: str, night: str | datetime.date | None = None) -> NDArray[np.float32] | None:
        """The anomaly map of an image in its own pixels, (height, width), NaN where the model did not look.

        None if it kept none. ``night`` says which, where the image has a row in several. UsageError if there is no
        such image.
        """
        day = night if isinstance(night, datetime.date) else read_day("night", night)
        found = [place for place in self._places(image_id) if day in (None, self._folders[place[0]])]
        if not found:
            raise UsageError(f"there is no row of the image {image_id!r}; see the column image_id of scores.")
        if len(found) > 1:
            raise UsageError(f"the image {image_id!r} has rows of {len(found)} nights; say which with night.")
        ((folder, category),) = found
        (row,) = results.read_images(folder, category, [image_id], MAP_COLUMNS).to_pylist()
        sides = results.read_run(folder)["categories"].get(category, {}).get("size")
        if sides is None:
            return None
        size = ImageSize(**sides)
        model_map = stored_map(row, size)
        return None if model_map is None else full_map(row, model_map, size, row["width"] * row["height"])

    def _places(self, image_id: str) -> list[tuple[str, str]]:
        """The folders that have a row of an image, and its category there."""
        rows = self.scores.select(["image_id", "category", "night"])
        rows = rows.filter(pc.equal(rows["image_id"], image_id))
        pairs = {(row["night"], row["category"]) for row in rows.to_pylist()}
        return [
            (folder, category)
            for folder, night in self._folders.items()
            for of_row, category in sorted(pairs, key=str)
            if night in (None, of_row)
        ]


def read_results(out: str | os.PathLike[str], since: str | None = None, until: str | None = None) -> Results:
    """The results in a folder: those of one run, or of the nights in it, from ``since`` to ``until`` if given.

    UsageError if there are none.
    """
    root = storage.to_uri(os.fspath(out))
    days = read_day("since", since), read_day("until", until)
    nights = list_nights(root, *days)
    if nights:
        return Results(dict(nights))
    if any(days):
        raise UsageError(
            f"{storage.readable(root)} holds no nights of these days, in folders such as {PREFIX}2026-11-23."
        )
    results.read_run(root)
    return Results({root: None})
