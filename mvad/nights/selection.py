"""Rows that somebody asks for, and the file or the standard output that they are written to."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType

import pyarrow as pa

from mvad import results, storage
from mvad.errors import UsageError
from mvad.exports import fiftyone, label_studio
from mvad.nights import tables
from mvad.nights.rows import NightRows
from mvad.options import ResultsOptions
from mvad.results.nights import read_day

Parts = Callable[[pa.RecordBatchReader], Iterator[bytes]]  # of a file, from rows

FORMATS: Mapping[str, Parts] = MappingProxyType(
    {
        "csv": tables.csv_table,
        "json": tables.json_table,
        "jsonl": tables.jsonl_table,
        "parquet": tables.parquet_table,
        "xlsx": tables.xlsx_table,
        "fiftyone": fiftyone.fiftyone_document,
        "label-studio": label_studio.label_studio_document,
    }
)
OWN_COLUMNS = {"fiftyone": fiftyone.COLUMNS, "label-studio": label_studio.COLUMNS}  # of formats that have their own
FOR_FILES = ("parquet", "xlsx")  # formats that no terminal shows
SUFFIXES = {"fiftyone": ".json", "label-studio": ".json"}  # of formats that are not called like theirs
# Those that a person does not miss: maps, and what runs need to know of each other.
LEFT_OUT = (
    *("patch_scores", "patch_grid", "file_size", "file_mtime", "margin", "strange_share", "nearest_category"),
    *("mask_uri", "model_id", "run_id"),
)
PEOPLE_COLUMNS = ("night", *(name for name in results.SCORES.names if name not in (*LEFT_OUT, "night")))
ALL_COLUMNS = ("night", *(name for name in results.SCORES.names if name != "night"), "folder")


def target_of(options: ResultsOptions, source: str) -> tuple[str, str | None]:
    """The format, and the URI of the file to write, None for standard output.

    UsageError if both do not fit each other or the options, or the file lies among the results in ``source`` (a URI).
    """
    suffix = (options.out or "").partition("?")[0].rpartition("/")[2].rpartition(".")[2].lower()
    format = options.format or (suffix if suffix in FORMATS else "csv")
    if format in OWN_COLUMNS and options.columns is not None:
        raise UsageError(f"--format {format} has columns of its own; leave out --columns.")
    if options.out is None:
        if format in FOR_FILES:
            raise UsageError(f"--format {format} is not for a terminal; name a file with --out.")
        return format, None
    expected = SUFFIXES.get(format, f".{format}")
    if f".{suffix}" != expected:
        raise UsageError(f"--out {options.out} does not end in {expected}, as a file of --format {format} does.")
    target = storage.to_uri(options.out)
    if storage.lies_in(target, source):
        raise UsageError(f"--out {options.out} lies in the folder of the results; name another place.")
    storage.ensure_writable_folder(storage.sibling(target, ""))
    return format, target


def columns_of(options: ResultsOptions, format: str) -> list[str]:
    """The columns of the rows that a format takes."""
    if format in OWN_COLUMNS:
        return list(OWN_COLUMNS[format])
    return list(ALL_COLUMNS if options.columns == ["all"] else options.columns or PEOPLE_COLUMNS)


def open_rows(source: str, options: ResultsOptions) -> NightRows:
    """The rows of the nights that are asked for, in the folder ``source`` (a URI)."""
    return NightRows.open(source, read_day("since", options.since), read_day("until", options.until))


class Counted:
    """Rows on their way to a file: ``count`` is how many have passed."""

    def __init__(self, rows: pa.RecordBatchReader) -> None:
        self.count = 0
        self.reader = pa.RecordBatchReader.from_batches(rows.schema, self._pass(rows))

    def _pass(self, rows: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
        for batch in rows:
            self.count += len(batch)
            yield batch


def print_parts(parts: Iterable[bytes]) -> None:
    """Write to standard output, until nobody reads it any more; OSError if it cannot be written otherwise."""
    stream = getattr(sys.stdout, "buffer", None)
    try:
        for part in parts:
            if stream is None:
                sys.stdout.write(part.decode())
            else:
                stream.write(part)
        (stream or sys.stdout).flush()
    except BrokenPipeError:
        return
