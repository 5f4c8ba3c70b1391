"""Join the many small files of score rows of nights that have ended, without changing a row.

The rows of a group of files are read, sorted, written as one file and compared. Then a marker says which files it
replaces (see `results.joining`), it appears, all at once, and the others are removed. Whenever that is interrupted, the
commands of mvad see each row once; programs that take every file they find see rows twice until the next `mvad compact`
or the next run into the folder has removed the rest.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mvad import results, storage
from mvad.errors import UsageError, one_line
from mvad.results.joining import Joining, complete, finish_joining
from mvad.results.store import part_name, to_parquet

MAX_ROWS = 100_000  # of a joined file
MAX_BYTES = 1 << 27  # of its rows, before compression
ROWS_PER_GROUP = 4096  # of rows in a file, which readers read at once
SIZE = b"mvad.bytes"  # in the metadata of a joined file: what its files were counted with, so that they stay a group


class SmallFile(NamedTuple):
    """A file of score rows that may be joined with others."""

    uri: str
    state: storage.FileState
    first: str  # image id
    rows: int
    bytes: int  # before compression


class Compacted(NamedTuple):
    """What became of the files of score rows of a night."""

    files_before: int = 0
    files_after: int = 0
    rows: int = 0  # of the joined files
    problems: tuple[str, ...] = ()  # why files were left as they are, a sentence each


def is_finished(night: str) -> bool:
    """Whether the run in a folder (a URI) has ended."""
    try:
        return results.read_run(night).get("status") == "done"
    except UsageError:
        return False


def compact_night(night: str) -> Compacted:
    """Join the files of score rows in the folder of results ``night`` (a URI), whose run has ended.

    Files that are damaged, or whose columns have other types, are left as they are. UsageError if a joined file does
    not hold what was written: then all files are as they were.
    """
    scores = storage.join(night, "scores")
    storage.remove_unfinished(scores)
    finish_joining(scores)
    run, by_folder = results.read_run(night), defaultdict(list)
    for _, uri in results.list_parts(night):
        by_folder[storage.sibling(uri, "")].append(uri)
    n_before = n_after = n_rows = 0
    problems: list[str] = []
    for folder, uris in sorted(by_folder.items()):
        n_before, n_after = n_before + len(uris), n_after + len(uris)
        for group in _groups(uris, problems) if len(uris) > 1 else ():
            rows = _read_group(group, problems)
            if rows is None:
                continue
            if results.read_run(night) != run or any(storage.file_state(file.uri) != file.state for file in group):
                problems.append(
                    f"{storage.readable(night)} has changed meanwhile: its other files are left as they are"
                )
                return Compacted(n_before, n_after, n_rows, tuple(problems))
            _replace(folder, group, rows)
            n_after, n_rows = n_after + 1 - len(group), n_rows + len(rows)
    return Compacted(n_before, n_after, n_rows, tuple(problems))


def _groups(uris: Sequence[str], problems: list[str]) -> Iterator[list[SmallFile]]:
    """Two or more files at a time that become one, neighbours by the first of their images."""
    found = storage.parallel_map(_look_at, uris)
    problems += [file for file in found if isinstance(file, str)]
    files = sorted((file for file in found if isinstance(file, SmallFile)), key=lambda file: (file.first, file.uri))
    group: list[SmallFile] = []
    for file in files:
        together = [*group, file]
        if sum(one.rows for one in together) > MAX_ROWS or sum(one.bytes for one in together) > MAX_BYTES:
            if len(group) > 1:
                yield group
            together = [file]
        group = together
    if len(group) > 1:
        yield group


def _look_at(uri: str) -> SmallFile | str:
    """What there is to know of a file before it is joined, or what is wrong with it."""
    filesystem, path = storage.resolve(uri)
    state = storage.file_state(uri)
    try:
        with filesystem.open_input_file(path) as source, pq.ParquetFile(source) as file:
            names = file.read(["image_id"])["image_id"]
            groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
            size = int((file.schema_arrow.metadata or {}).get(SIZE, sum(group.total_byte_size for group in groups)))
        return SmallFile(uri, state, pc.min(names).as_py() or "", len(names), size)
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        return f"{storage.readable(uri)} is damaged ({one_line(error)[:200]}): it is left as it is"


def _read_group(group: Sequence[SmallFile], problems: list[str]) -> pa.Table | None:
    """The rows of some files, sorted by image; None if they cannot be read, or have columns that do not fit."""
    try:
        tables = storage.parallel_map(_read, [file.uri for file in group])
        rows = pa.concat_tables(tables, promote_options="default").sort_by("image_id").combine_chunks()
    except (pa.ArrowException, OSError) as error:
        first = storage.readable(group[0].uri)
        problems.append(f"{first} and its neighbours cannot be joined ({one_line(error)[:200]}): left as they are")
        return None
    if len(rows) != sum(file.rows for file in group):
        raise UsageError(f"{storage.readable(group[0].uri)} or its neighbours have changed meanwhile; try again.")
    return rows.replace_schema_metadata({SIZE: str(sum(file.bytes for file in group))})


def _read(uri: str) -> pa.Table:
    filesystem, path = storage.resolve(uri)
    with filesystem.open_input_file(path) as source, pq.ParquetFile(source) as file:
        return file.read()


def _replace(folder: str, group: Sequence[SmallFile], rows: pa.Table) -> None:
    """Put one file of rows in the place of some in a folder (a URI): see above."""
    names = [storage.name_of(file.uri) for file in group]
    joining = Joining(part_name(rows), names)
    content, target = to_parquet(rows, ROWS_PER_GROUP), storage.join(folder, joining.joined)
    if not same_table(pq.read_table(pa.BufferReader(content), partitioning=None), rows):
        raise UsageError(f"{storage.readable(target)} would not hold the rows of its files; nothing was changed.")
    storage.write(storage.join(folder, joining.marker), joining.to_bytes())
    storage.write(target, content)
    if storage.read(target) != content:
        storage.remove(target)
        storage.remove(storage.join(folder, joining.marker))
        raise UsageError(f"{storage.readable(target)} does not hold what was written; its files are as they were.")
    complete(folder, joining)


def same_table(one: pa.Table, other: pa.Table) -> bool:
    """Whether two tables have the same columns and values, bit by bit: NaN is the same as itself."""
    if one.schema != other.schema or len(one) != len(other):
        return False
    pairs = zip(one.combine_chunks().columns, other.combine_chunks().columns, strict=True)
    return all(_same(a.combine_chunks(), b.combine_chunks()) for a, b in pairs)


def _same(one: Any, other: Any) -> bool:
    if not one.is_valid().equals(other.is_valid()):
        return False
    if pa.types.is_floating(one.type):
        bits = {16: pa.int16(), 32: pa.int32(), 64: pa.int64()}[one.type.bit_width]
        return one.view(bits).equals(other.view(bits))
    if pa.types.is_list(one.type):
        lengths = pc.list_value_length(one).equals(pc.list_value_length(other))
        return lengths and _same(one.flatten(), other.flatten())
    if pa.types.is_struct(one.type):
        return all(map(_same, one.flatten(), other.flatten()))
    return one.equals(other)
