"""Score rows of one run or of many nights, queried with DuckDB where they lie."""

from __future__ import annotations

import datetime
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Any
from urllib.parse import unquote

import duckdb
import pyarrow as pa
import pyarrow.dataset as pads

from mvad import storage
from mvad.errors import UsageError, one_line
from mvad.results.joining import superseded
from mvad.results.nights import list_nights
from mvad.results.schema import SCORES
from mvad.results.store import PART_NAME

KEY = re.compile(r"/scores/category=([^/]*)/")  # a folder of older results, whose files do not say the category
MEMORY_LIMIT = "1GB"  # of a query; what is larger goes to temporary files
NOT_FOR_DUCKDB = re.compile(rf"[*?\[]|{KEY.pattern}")  # paths that it takes for patterns; older results
VIEW = "rows"
NO_ROWS = "no_rows"  # a table with the columns of `VIEW`, for checks of expressions
ORDER = "night, category, image_id, folder"
BATCH_ROWS = 4096  # that are held at once
WITH_FILE = SCORES.append(pa.field("file", pa.string()))


@dataclass(frozen=True)
class NightRows:
    """The score rows of the nights from ``since`` to ``until`` below a folder (a URI), or of one run in it.

    Rows are those of the files that were there when the object was made. Queries may run in several threads.

    Attributes
    ----------
    files
        Files of score rows by folder of results, both URIs, sorted.
    dates
        The date of each of these folders; None of a run that is no night.
    """

    root: str
    files: Mapping[str, Sequence[storage.FileEntry]]
    dates: Mapping[str, datetime.date | None]
    _lock: threading.Lock = field(
        default_factory=threading.Lock, init=False, repr=False
    )  # a connection answers one at a time

    @classmethod
    def open(cls, root: str, since: datetime.date | None = None, until: datetime.date | None = None) -> NightRows:
        """List the files; UsageError if there are no results."""
        dates: dict[str, datetime.date | None] = dict(list_nights(root, since, until))
        if not dates and not list_nights(root):
            dates = {root: None}
        files = dict(zip(dates, storage.parallel_map(_parts, dates), strict=True))
        if not any(files.values()):
            between = "" if since is until is None else f" from {since or 'the first night'} to {until or 'the last'}"
            raise UsageError(
                f"no results in {storage.readable(root)}{between}; make some with mvad nightly, mvad run or mvad score."
            )
        return cls(root, files, dates)

    def name_of(self, folder: str) -> str:
        """The name of a folder of results (a URI) below the root; empty for the root itself."""
        return "" if folder == self.root else storage.name_of(folder)

    def query(self, sql: str, parameters: Mapping[str, Any] | None = None) -> pa.Table:
        """What a SELECT over the table ``rows`` gives: score rows, with ``folder``, the URI of their results.

        ``night`` is also known of rows that do not say it themselves. UsageError if a file is damaged, or the SQL is
        not right; no other file can be read or written by it.
        """
        with self._lock, self._naming_trouble():
            return self._connection.sql(sql, params=parameters).to_arrow_table()

    def select(
        self, columns: Sequence[str], where: str | None = None, order: str | None = None, limit: int | None = None
    ) -> pa.RecordBatchReader:
        """Some columns of the rows for which the SQL expression ``where`` is true, `BATCH_ROWS` at a time.

        ``order`` is what SQL writes after ORDER BY: by default by night, category and image. Rows that are sorted wait
        in temporary files where they are many, so any number takes little memory. Until the reader has ended, other
        queries wait. UsageError, which names the columns there are, if a column is unknown or an expression is not
        right; and as for `query`, also while rows are read.
        """
        with self._lock, self._naming_trouble():
            known = self._connection.table(NO_ROWS)
            for name in columns:
                if name not in known.columns:
                    raise UsageError(f"--columns {name!r} is unknown; {_named(known.columns)}.")
            sql = f"SELECT {', '.join(columns)} FROM {VIEW}{self._condition(where)}"
            if order is not None:
                _check("order", order, lambda: known.order(order), known.columns)
            sql += f" ORDER BY {order or ORDER}\n" + ("" if limit is None else f"LIMIT {limit:d}")
            schema = known.select(*columns).to_arrow_table().schema
        batches = self._batches(sql)
        first = next(batches, None)  # what is wrong is said before anything is written
        return pa.RecordBatchReader.from_batches(schema, batches if first is None else chain([first], batches))

    def count(self, where: str | None = None) -> int:
        """How many rows there are for which the SQL expression ``where`` is true; UsageError as for `select`."""
        with self._lock, self._naming_trouble():
            condition = self._condition(where)
        return self.query(f"SELECT count(*) AS n FROM {VIEW}{condition}")["n"][0].as_py()

    def _condition(self, where: str | None) -> str:
        """The WHERE of an expression; UsageError if it is not one. A comment in it ends with its line."""
        if where is None:
            return ""
        known = self._connection.table(NO_ROWS)
        _check("where", where, lambda: known.filter(where), known.columns)
        return f" WHERE ({where}\n)"

    def _batches(self, sql: str) -> Iterator[pa.RecordBatch]:
        with self._lock, self._naming_trouble():
            relation = self._connection.sql(sql)
            read = getattr(relation, "to_arrow_reader", None) or relation.fetch_arrow_reader  # of older versions
            yield from read(BATCH_ROWS)

    @contextmanager
    def _naming_trouble(self) -> Iterator[None]:
        try:
            yield
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            reason = one_line(str(error).partition("\nLINE")[0])
            raise UsageError(f"the rows in {storage.readable(self.root)} cannot be read: {reason}") from error

    @cached_property
    def _connection(self) -> duckdb.DuckDBPyConnection:
        connection = duckdb.connect(
            ":memory:", config={"memory_limit": MEMORY_LIMIT, "preserve_insertion_order": False}
        )
        places = [
            (storage.resolve(entry.uri)[1], folder, self.dates[folder])
            for folder, entries in self.files.items()
            for entry in entries
        ]
        paths, folders, dates = map(list, zip(*places, strict=True))
        columns = {"file": pa.array(paths), "folder": pa.array(folders), "date": pa.array(dates, pa.date32())}
        connection.register("places", pa.table(columns))
        connection.register("stored_columns", WITH_FILE.empty_table())
        uris = [entry.uri for files in self.files.values() for entry in files]
        if all(map(storage.is_local, uris)) and not any(map(NOT_FOR_DUCKDB.search, paths)):
            connection.execute("SET VARIABLE paths = $paths", {"paths": paths})
            connection.execute("SET allowed_paths = $paths", {"paths": paths})
            stored = (
                "read_parquet(getvariable('paths'), union_by_name = true, hive_partitioning = false, filename = 'file')"
            )
        else:
            connection.register("stored", _dataset(uris))
            stored = "stored"
        names = ", ".join(name for name in SCORES.names if name != "night")
        connection.execute(
            f"CREATE TEMP VIEW {VIEW} AS SELECT {names}, coalesce(night, date) AS night, folder FROM "
            f"(SELECT * FROM stored_columns UNION ALL BY NAME SELECT * FROM {stored}) JOIN places USING (file)"
        )
        columns_only = f"SELECT {names}, night, ''::VARCHAR AS folder FROM stored_columns"
        connection.execute(f"CREATE TEMP TABLE {NO_ROWS} AS {columns_only}")
        for setting in ("TimeZone = 'UTC'", "enable_external_access = false", "lock_configuration = true"):
            connection.execute(f"SET {setting}")
        return connection


def _check(option: str, text: str, use: Callable[[], Any], columns: Sequence[str]) -> None:
    """UsageError if DuckDB does not take a text for an expression."""
    try:
        use()
    except duckdb.Error as error:
        reason = str(error).partition("\n")[0].strip().rstrip(".!")
        raise UsageError(f"--{option} {text!r} is not right ({reason}); {_named(columns)}.") from error


def _named(columns: Sequence[str]) -> str:
    return f"the columns are {', '.join(columns)}"


def _dataset(uris: Sequence[str]) -> pads.Dataset:
    """Files of score rows that DuckDB cannot read itself, such as those in object storage; ``file`` is their path."""
    fragments = []
    for uri in uris:
        filesystem, path = storage.resolve(uri)
        known, key = pads.field("file") == path, KEY.search(path)
        if key:
            known &= pads.field("category") == unquote(key[1])
        fragments.append(pads.ParquetFileFormat().make_fragment(path, filesystem, known))
    return pads.FileSystemDataset(fragments, WITH_FILE, pads.ParquetFileFormat(), filesystem)


def _parts(folder: str) -> list[storage.FileEntry]:
    """The files of score rows of one folder of results."""
    scores = storage.join(folder, "scores")
    if not storage.exists(scores):
        return []
    entries = {entry.path: entry for entry in storage.list_files(scores)}
    left = superseded(entries, lambda path: storage.read(entries[path].uri))
    parts = [
        entry for path, entry in entries.items() if PART_NAME.fullmatch(path.rpartition("/")[2]) and path not in left
    ]
    return sorted(parts, key=lambda entry: entry.uri)
