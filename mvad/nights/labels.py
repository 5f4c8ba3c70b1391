"""What people said of images: rows of small Parquet files in ``labels``, appended and never changed.

Each file appears whole or not at all under a name of its own, so that several people can review at once. Of several
labels of an image, the last one counts; one without a judgement takes back those before it.
"""

from __future__ import annotations

import datetime
import threading
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mvad import storage
from mvad.errors import UsageError, one_line
from mvad.results.store import to_parquet

FOLDER = "labels"
MAX_FILE_BYTES = 1 << 28
Judgement = Literal["good", "defect", "unsure"]
# How a reviewer came to see an image: the most abnormal first, the nearest to the threshold first, at random, or by
# a search of their own. Only images that were drawn at random tell how often something is so.
Drawn = Literal["score", "threshold", "random", "chosen"]
LABELS = pa.schema(
    [
        pa.field("label_id", pa.string(), nullable=False),
        pa.field("labelled_at", pa.timestamp("us", "UTC"), nullable=False),
        pa.field("reviewer", pa.string(), nullable=False),
        pa.field("folder", pa.string(), nullable=False),  # of the results, below that of the labels; empty: that itself
        pa.field("night", pa.date32()),
        pa.field("category", pa.string(), nullable=False),
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("judgement", pa.string()),  # good | defect | unsure; null: taken back
        pa.field("defect", pa.string()),  # its kind, if somebody named it
        pa.field("drawn", pa.string(), nullable=False),  # score | threshold | random | chosen
        pa.field("score", pa.float32()),  # with the next three, what the image's row said when it was reviewed
        pa.field("verdict", pa.string()),
        pa.field("model_id", pa.string()),
        pa.field("run_id", pa.string()),
    ]
)
KEYS = ("folder", "image_id")  # of an image


class Judged(NamedTuple):
    """What a reviewer says of an image; without a ``judgement``, that they take back what was said."""

    row: dict[str, Any]  # the image's score row
    folder: str
    judgement: Judgement | None
    drawn: Drawn
    defect: str | None = None


def append_labels(root: str, judged: Sequence[Judged], reviewer: str) -> pa.Table:
    """Write labels as one file into the folder of nights (a URI), and return its rows; ValueError for unknown words."""
    now = datetime.datetime.now(datetime.timezone.utc)
    rows = []
    for number, one in enumerate(judged):
        if one.judgement not in (None, *get_args(Judgement)) or one.drawn not in get_args(Drawn):
            raise ValueError(f"{one.judgement!r}, {one.drawn!r}: no such judgement")
        facts = {
            "label_id": uuid.uuid4().hex,
            "labelled_at": now + datetime.timedelta(microseconds=number),
            "reviewer": reviewer,
            "folder": one.folder,
        }
        said = {"judgement": one.judgement, "drawn": one.drawn, "defect": one.defect}
        rows.append({name: one.row.get(name) for name in LABELS.names} | facts | said)
    table = pa.Table.from_pylist(rows, LABELS)
    if rows:
        name = f"{now:%Y%m%dT%H%M%S}-{uuid.uuid4().hex}.parquet"
        storage.write(storage.join(root, FOLDER, name), to_parquet(table))
    return table


class Labels(NamedTuple):
    """All labels, the first one first, and what is wrong with files that cannot be read, a sentence each."""

    table: pa.Table
    current: pa.Table  # those that count: see `current_labels`
    problems: list[str]


class LabelFiles:
    """The labels in a folder of nights (a URI), of which only files that are new are read; for several threads."""

    def __init__(self, root: str) -> None:
        self._folder, self._lock = storage.join(root, FOLDER), threading.Lock()
        self._found: dict[str, pa.Table | str] = {}  # by name: no file ever changes
        self._labels: Labels | None = None

    def read(self) -> Labels:
        """All labels: see `read_labels`."""
        with self._lock:
            names = [name for name in storage.list_folder(self._folder) if name.endswith(".parquet")]
            new = [name for name in names if name not in self._found]
            if new or self._labels is None or len(names) != len(self._found):
                uris = [storage.join(self._folder, name) for name in new]
                self._found |= zip(new, storage.parallel_map(_read, uris), strict=True)
                self._found = {name: self._found[name] for name in names}
                self._labels = _together(self._found.values())
            return self._labels


def read_labels(root: str) -> Labels:
    """Read the labels in a folder of nights (a URI); none if there are none."""
    return LabelFiles(root).read()


def _together(found: Iterable[pa.Table | str]) -> Labels:
    found = list(found)
    tables = [table for table in found if isinstance(table, pa.Table)]
    problems = [problem for problem in found if isinstance(problem, str)]
    table = pa.concat_tables([LABELS.empty_table(), *tables])
    table = table.sort_by([("labelled_at", "ascending"), ("label_id", "ascending")])
    return Labels(table, current_labels(table), problems)


def _read(uri: str) -> pa.Table | str:
    try:
        table = pq.read_table(pa.BufferReader(storage.read_bytes(uri, MAX_FILE_BYTES)))
        return table.select(LABELS.names).cast(LABELS)
    except (pa.ArrowException, OSError, ValueError, KeyError, UsageError) as error:
        return f"{storage.readable(uri)} is damaged ({one_line(error)[:200]}): its labels are left out"


def current_labels(labels: pa.Table) -> pa.Table:
    """The last label of each image, of those that are not taken back, in the order of ``labels``."""
    last = {tuple(row.values()): number for number, row in enumerate(labels.select(KEYS).to_pylist())}
    table = labels.take(pa.array(sorted(last.values()), pa.int64()))
    return table.filter(pc.is_valid(table["judgement"]))


def full_name(label: Mapping[str, Any]) -> str:
    """The name of a labelled image among those of all nights: its night's folder, and its own name."""
    return "/".join(filter(None, (label["folder"], label["image_id"])))
