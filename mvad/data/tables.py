"""CSV and Parquet tables of images, with at least a ``uri`` column."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from mvad import storage
from mvad.data.schema import SCHEMA, image_row
from mvad.errors import UsageError
from mvad.storage import FileEntry

ROWS_PER_CHUNK = 1 << 16  # rows that are Python objects at a time


def is_table(uri: str) -> bool:
    """Return whether the URI names a table of images, not a folder."""
    return _suffix(uri) in (".csv", ".parquet")


def _suffix(uri: str) -> str:
    return PurePosixPath(urlsplit(uri).path).suffix.lower()  # a URI may have options after its path


def read_table(uri: str, category: str | None) -> pa.Table:
    """Read a table of images; its other columns that the manifest has are used too, where they exist.

    Parameters
    ----------
    uri
        URI of the table. Relative paths in its ``uri`` column start from the folder of the table.
    category
        The category of all images; None to read it from the table, or from the first folder of relative paths.

    Raises
    ------
    UsageError
        The table does not exist, cannot be read, has no rows, or has a row that cannot be used.
    """
    if not storage.exists(uri):
        raise UsageError(f"no such file: {storage.readable(uri)}.")
    if _suffix(uri) == ".csv":
        table = read_csv(uri, ("uri",))
    else:
        filesystem, path = storage.resolve(uri)
        try:
            table = pq.read_table(path, filesystem=filesystem)
        except (pa.ArrowInvalid, OSError) as error:
            raise UsageError(f"{storage.readable(uri)} cannot be read as Parquet: {error}.") from error
        _require_columns(table, uri, ("uri",))
    if not len(table):
        raise UsageError(f"{storage.readable(uri)} names no image.")
    table = table.select([name for name in SCHEMA.names if name in table.column_names])
    chunks, first = [], 1
    for batch in table.to_batches(max_chunksize=ROWS_PER_CHUNK):
        rows = [_table_row(uri, number, entry, category) for number, entry in enumerate(batch.to_pylist(), first)]
        chunks.append(pa.Table.from_pylist(rows, SCHEMA))
        first += len(batch)
    return pa.concat_tables(chunks)


def read_csv(uri: str, required: Sequence[str]) -> pa.Table:
    """Read a CSV file whose known columns, except ``label``, are strings; UsageError if it lacks a required column."""
    filesystem, path = storage.resolve(uri)
    string_columns = {*SCHEMA.names, "object", "image", "mask"} - {"label"}
    options = pyarrow.csv.ConvertOptions(
        column_types=dict.fromkeys(string_columns, pa.string()), strings_can_be_null=True
    )
    try:
        with filesystem.open_input_stream(path) as stream:
            table = pyarrow.csv.read_csv(stream, convert_options=options)
    except (pa.ArrowInvalid, OSError) as error:
        raise UsageError(f"{storage.readable(uri)} cannot be read as CSV: {error}.") from error
    _require_columns(table, uri, required)
    return table


def _require_columns(table: pa.Table, uri: str, required: Sequence[str]) -> None:
    missing = [name for name in required if name not in table.column_names]
    if missing:
        raise UsageError(f"{storage.readable(uri)} has no column {', '.join(missing)}.")


def _table_row(table_uri: str, number: int, entry: dict[str, Any], category: str | None) -> dict[str, Any]:
    position = f"{storage.readable(table_uri)}, row {number}"
    uri = entry["uri"]
    if not uri:
        raise UsageError(f"{position}: the uri is empty.")
    is_relative = not uri.startswith("/") and "://" not in uri
    category = category or entry.get("category") or (uri.split("/")[0] if is_relative and "/" in uri else None)
    if category is None:
        raise UsageError(f"{position}: the category is unknown; add a category column or --category NAME.")
    label, split, mask = entry.get("label"), entry.get("split") or "test", entry.get("mask_uri")
    if label not in (None, 0, 1):
        raise UsageError(f"{position}: label {label!r} is not 0, 1 or empty.")
    if split not in ("train", "test"):
        raise UsageError(f"{position}: split {split!r} is not train or test.")
    image_uri = storage.sibling(table_uri, uri) if is_relative else storage.to_uri(uri)
    file = FileEntry(entry.get("image_id") or uri, image_uri)
    return image_row(file, category, split, label, entry.get("defect"), storage.to_uri(mask) if mask else None)
