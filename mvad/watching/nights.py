"""The nights of a folder of results, and what those before tonight have scored."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from mvad import storage
from mvad.errors import UsageError
from mvad.results.nights import list_nights
from mvad.results.store import read_run, read_status
from mvad.watching.seen import SeenFiles


class EarlierNight(NamedTuple):
    """A night before tonight."""

    day: datetime.date
    folder: str  # a URI
    is_running: bool  # its run has not ended


def earlier_nights(out: str, dump: str, today: datetime.date) -> Iterator[EarlierNight]:
    """The nights in OUT before ``today`` of the same dump, the last first; OUT and ``dump`` are URIs."""
    for folder, day in reversed(list_nights(out, until=today - datetime.timedelta(1)).items()):
        with suppress(UsageError):  # it is none, or its run.json is damaged
            content = read_run(folder)
            if content.get("data") == storage.readable(dump):
                yield EarlierNight(day, folder, content.get("status") == "running")


def scored_before(images: pa.Table, out: str, dump: str, now: datetime.datetime) -> pa.Table:
    """Those of the images, in rows of the manifest, that an earlier night has a row of, as they still are.

    Only nights are looked at that may have one: none if all files have changed since midnight. A night that cannot be
    read counts as having none.
    """
    midnight = pa.scalar(now.replace(hour=0, minute=0, second=0, microsecond=0), pa.timestamp("us", "UTC"))
    left = images.filter(pc.fill_null(pc.less(images["file_mtime"], midnight), True))
    found = [images.slice(0, 0)]
    nights = earlier_nights(out, dump, now.date())
    while len(left) and (night := next(nights, None)) is not None:
        with suppress(UsageError):
            seen = SeenFiles()
            seen.add(read_status(night.folder))
            unseen = seen.unseen(left)
            found.append(left.filter(pc.invert(pc.is_in(left["image_id"], unseen["image_id"].combine_chunks()))))
            left = unseen
    return pa.concat_tables(found)
