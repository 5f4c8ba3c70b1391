"""The columns of a manifest; CSV and Parquet tables of images, with at least a ``uri`` column."""

import itertools
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from mvad import storage
from mvad.errors import UsageError
from mvad.storage import FileEntry

SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),  # path below ROOT, POSIX slashes
        pa.field("uri", pa.string(), nullable=False),
        pa.field("category", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),  # train | test
        pa.field("label", pa.int8()),  # 0 good, 1 defective, null unknown
        pa.field("defect", pa.string()),
        pa.field("mask_uri", pa.string()),
        pa.field("file_size", pa.int64()),  # bytes, when it was listed; null if unknown
        pa.field("file_mtime", pa.timestamp("us", "UTC")),  # when the file was last changed
    ]
)
ROWS_PER_CHUNK = 1 << 16  # rows that are Python objects at a time


def image_row(
    file: FileEntry, category: str, split: str, label: int | None, defect: str | None, mask_uri: str | None
) -> dict[str, Any]:
    """Return the manifest's row of an image."""
    values = (file.path, file.uri, category, split, label, defect, mask_uri, file.size, file.mtime)
    return dict(zip(SCHEMA.names, values, strict=True))


def is_table(uri: str) -> bool:
    """Return whether the URI names a table of images, not a folder."""
    return _suffix(uri) in (".csv", ".parquet")


def _suffix(uri: str) -> str:
    return PurePosixPath(urlsplit(uri).path).suffix.lower()  # a URI may have options after its path


def read_table(uri: str, category: str | None) -> pa.Table:
    """Read a table of images; its other columns that the manifest has are used too, where they exist.

    Relative paths in its ``uri`` column start from the folder of the table. Without a ``category`` for all images, it
    is read from the table, or from the first folder of relative paths. UsageError if the table does not exist, cannot
    be read, has no rows, or has a row that cannot be used.
    """
    if not storage.exists(uri):
        raise UsageError(f"no such file: {storage.readable(uri)}.")
    table = read_columns(uri, ("uri",))
    if not len(table):
        raise UsageError(f"{storage.readable(uri)} names no image.")
    table = table.select([name for name in SCHEMA.names if name in table.column_names])
    numbers = itertools.count(1)
    chunks = []
    for batch in table.to_batches(max_chunksize=ROWS_PER_CHUNK):
        rows = [_table_row(uri, next(numbers), entry, category) for entry in batch.to_pylist()]
        chunks.append(pa.Table.from_pylist(rows, SCHEMA))
    return pa.concat_tables(chunks)


def read_columns(uri: str, required: Sequence[str]) -> pa.Table:
    """Read a table; known columns of CSV, except ``label``, are strings. UsageError if it lacks a required column."""
    filesystem, path = storage.resolve(uri)
    kind = "CSV" if _suffix(uri) == ".csv" else "Parquet"
    try:
        if kind == "CSV":
            strings = dict.fromkeys({*SCHEMA.names, "object", "image", "mask"} - {"label"}, pa.string())
            options = pyarrow.csv.ConvertOptions(column_types=strings, strings_can_be_null=True)
            with filesystem.open_input_stream(path) as stream:
                table = pyarrow.csv.read_csv(stream, convert_options=options)
        else:
            table = pq.read_table(path, filesystem=filesystem)
    except (pa.ArrowInvalid, OSError) as error:
        raise UsageError(f"{storage.readable(uri)} cannot be read as {kind}: {error}.") from error
    missing = [name for name in required if name not in table.column_names]
    if missing:
        raise UsageError(f"{storage.readable(uri)} has no column {', '.join(missing)}.")
    return table


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
