"""The columns of a manifest; CSV and Parquet tables of images, with at least a ``uri`` column.

Spreadsheets, pandas and Windows write one list of images in many ways. All become the same text columns here, and each
that cannot is a UsageError that names the file, the row (the first below the header is 1) and the column.
"""

import codecs
import csv
import functools
import itertools
import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.fs as pafs

from mvad import storage
from mvad.data.names import meaning
from mvad.errors import UsageError, one_line
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
COLUMNS = ("image_id", "uri", "category", "split", "label", "defect", "mask_uri")  # that a table of images may have
IGNORE = "ignore_uri"  # column of masks of what is not looked at in images of a category
OTHER_COLUMNS = ("object", "image", "mask")  # of the tables of data sets
ROWS_PER_CHUNK = 1 << 16  # rows that are Python objects at a time
TEXT_SUFFIXES = (".csv", ".tsv")
DELIMITERS = (",", ";", "\t")
HEADER_BYTES = 1 << 16  # that surely hold the header of a CSV
MARKS = {  # byte order marks, the longer of two that begin alike first
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
WITHOUT_MARK = ("utf-8", "cp1252", "latin-1")  # latin-1 has a character for every byte
NO_LABEL = ("", "nan", "none", "null", "na", "n/a", "?", "unknown", "unlabeled", "unlabelled")
LABELS = {**dict.fromkeys(("0", "0.0", "0,0", "false"), 0), **dict.fromkeys(("1", "1.0", "1,0", "true"), 1)}


def image_row(
    file: FileEntry, category: str, split: str, label: int | None, defect: str | None, mask_uri: str | None
) -> dict[str, Any]:
    """Return the manifest's row of an image."""
    values = (file.path, file.uri, category, split, label, defect, mask_uri, file.size, file.mtime)
    return dict(zip(SCHEMA.names, values, strict=True))


def is_table(uri: str) -> bool:
    """Return whether the URI names a table of images, not a folder."""
    return _suffix(uri) in (*TEXT_SUFFIXES, ".parquet")


def _suffix(uri: str) -> str:
    return PurePosixPath(urlsplit(uri).path).suffix.lower()  # a URI may have options after its path


def read_table(uri: str, category: str | None) -> tuple[pa.Table, dict[str, str]]:
    """Read a table of images: rows of the manifest, and by category the masks of what is ignored.

    Its other columns that the manifest has are used too, where they exist.

    Relative paths in it start from the folder of the table. Without a ``category`` for all images, it is read from the
    table, or from the first folder of relative paths. UsageError if the table does not exist, cannot be read, has no
    rows, or has a row that cannot be used.
    """
    if not storage.exists(uri):
        raise UsageError(f"no such file: {storage.readable(uri)}.")
    table = read_columns(uri, ("uri",))
    table = table.select([name for name in (*COLUMNS, IGNORE) if name in table.column_names])
    numbers = itertools.count(1)
    chunks: list[pa.Table] = []
    ignore: dict[str, str] = {}
    for batch in table.to_batches(max_chunksize=ROWS_PER_CHUNK):
        entries = zip(batch.to_pylist(), numbers, strict=False)
        # A spreadsheet writes rows that were cleared as rows of nothing.
        rows = []
        for entry, number in entries:
            if any(entry.values()):
                mask = entry.pop(IGNORE, None)
                rows.append(_table_row(uri, number, entry, category))
                if mask:
                    _add_ignore(ignore, uri, number, rows[-1]["category"], mask)
        chunks.append(pa.Table.from_pylist(rows, SCHEMA))
    images = pa.concat_tables([SCHEMA.empty_table(), *chunks])
    if not len(images):
        raise UsageError(f"{storage.readable(uri)} names no image.")
    return images, ignore


def _add_ignore(ignore: dict[str, str], uri: str, number: int, category: str, mask: str) -> None:
    """Note the mask that a row names for its category; UsageError if an earlier row names another."""
    mask_uri = storage.uri_in_table(_posix(uri, mask), uri)
    known = ignore.setdefault(category, mask_uri)
    if known != mask_uri:
        raise UsageError(
            f"{storage.readable(uri)}, row {number}: {IGNORE} of category {category!r} is "
            f"{storage.readable(mask_uri)!r}, and {storage.readable(known)} in a row before; a category has one."
        )


def read_columns(uri: str, required: Sequence[str]) -> pa.Table:
    """Read the ``required`` and all other known columns of a table as text, an empty cell as null.

    Capitals, and blanks around the names of columns, do not matter. UsageError if the table cannot be read, lacks a
    required column, or has two of one name.
    """
    known = (*COLUMNS, IGNORE, *OTHER_COLUMNS, *required)
    is_text = _suffix(uri) in TEXT_SUFFIXES
    try:
        table = _read_text(uri, known, required) if is_text else _read_parquet(uri, known, required)
    except (pa.ArrowException, OSError, ValueError) as error:
        kind = "CSV" if is_text else "Parquet"
        raise UsageError(f"{storage.readable(uri)} cannot be read as {kind}: {one_line(error)}.") from error
    return pa.table({name: _as_text(uri, name, column) for name, column in table.items()})


def _find_columns(uri: str, names: Sequence[str], known: Sequence[str], required: Sequence[str]) -> dict[str, int]:
    """The positions of the known among the columns of a table."""
    positions: dict[str, int] = {}
    for position, name in enumerate(names):
        plain = name.strip().casefold()
        if plain not in known:
            continue
        if plain in positions:
            raise UsageError(f"{storage.readable(uri)} has two columns {plain}; remove or rename one.")
        positions[plain] = position
    missing = [name for name in required if name not in positions]
    if missing:
        has = f"it has {', '.join(map(repr, names))}" if any(names) else "it has none"
        raise UsageError(f"{storage.readable(uri)} has no column {', '.join(missing)}; {has}.")
    return positions


class _Header(NamedTuple):
    """How a CSV begins."""

    encodings: Sequence[str]  # that it may be in, to be tried in turn
    delimiter: str
    names: list[str]
    n_lines: int  # up to the first row


def _read_text(uri: str, known: Sequence[str], required: Sequence[str]) -> dict[str, pa.ChunkedArray]:
    filesystem, path = storage.resolve(uri)
    with filesystem.open_input_stream(path) as stream:
        header = _read_header(stream.read(HEADER_BYTES), required)
    positions = _find_columns(uri, header.names, known, required)
    names = [f"column {position}" for position in range(len(header.names))]
    invalid: list[pyarrow.csv.InvalidRow] = []

    def stop(row: pyarrow.csv.InvalidRow) -> str:
        invalid.append(row)
        return "error"

    for encoding in header.encodings:
        read = pyarrow.csv.ReadOptions(
            use_threads=False, encoding=encoding, column_names=names, skip_rows=header.n_lines
        )
        parse = pyarrow.csv.ParseOptions(delimiter=header.delimiter, newlines_in_values=True, invalid_row_handler=stop)
        convert = pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()),
            include_columns=[names[position] for position in positions.values()],
            strings_can_be_null=True,
            null_values=[""],
        )
        with filesystem.open_input_stream(path) as stream:
            try:
                table = pyarrow.csv.read_csv(stream, read, parse, convert)
            except (pa.ArrowInvalid, UnicodeDecodeError) as error:
                if invalid:
                    number, columns = invalid[0].number - header.n_lines, invalid[0].actual_columns
                    raise UsageError(
                        f"{storage.readable(uri)}, row {number}: it has {columns} columns, not {len(header.names)} as "
                        f"the header; put quotes around what holds a {header.delimiter!r}."
                    ) from error
                if "Empty CSV" in str(error):
                    return {name: pa.chunked_array([], pa.string()) for name in positions}
                if encoding == header.encodings[-1]:
                    raise
                continue
        columns = dict(zip(positions, table.columns, strict=True))
        # "uri, label" means blanks after all delimiters of the column.
        blank = {name for name, position in positions.items() if header.names[position][:1].isspace()}
        return {n: pc.utf8_trim_whitespace(column) if n in blank else column for n, column in columns.items()}
    raise AssertionError("the last encoding has a character for every byte")


def _read_header(head: bytes, required: Sequence[str]) -> _Header:
    """Find encoding, delimiter and header of a CSV in its first bytes; lines of comments may come first."""
    encodings: Sequence[str] = WITHOUT_MARK
    for mark, encoding in MARKS.items():
        if head.startswith(mark):
            encodings = (encoding,)
            break
    else:
        if b"\0" in head[:2]:
            encodings = ("utf-16-be" if head[:1] == b"\0" else "utf-16-le",)
    text = head.decode(encodings[0], "replace").removeprefix("\ufeff")
    delimiters: Sequence[str] = DELIMITERS
    number = 0
    for number, line in enumerate(text.splitlines(), start=1):
        if separator := re.fullmatch(r"sep=(.)\s*", line, re.IGNORECASE):  # Excel's own
            delimiters = (separator[1],)
            continue
        if not line.strip() or line.startswith("#"):
            continue
        headers = {one: next(csv.reader([line], delimiter=one), []) for one in delimiters}
        # The delimiter that sets the required columns apart; else, for the message, the one with most columns.
        best = max(headers, key=lambda one: (set(required) <= _plain(headers[one]), len(headers[one])))
        return _Header(encodings, best, headers[best], number)
    return _Header(encodings, ",", [], number)


def _plain(names: Sequence[str]) -> set[str]:
    return {name.strip().casefold() for name in names}


def _read_parquet(uri: str, known: Sequence[str], required: Sequence[str]) -> dict[str, pa.ChunkedArray]:
    """Read a Parquet file, or a folder of them as Spark writes it."""
    # They import pandas, which takes half a second: here, since most data are no tables.
    import pyarrow.dataset as pads
    import pyarrow.parquet as pq

    filesystem, path = storage.resolve(uri)
    file: Any
    if filesystem.get_file_info(path).type == pafs.FileType.Directory:
        file = pads.dataset(path, filesystem=filesystem, format="parquet", partitioning="hive")
        names, read = file.schema.names, file.to_table
    else:
        file = pq.ParquetFile(pa.BufferReader(storage.read(uri)))
        names, read = file.schema_arrow.names, file.read
    positions = _find_columns(uri, names, known, required)
    table = read(columns=[names[position] for position in positions.values()])
    return {name: table[names[position]] for name, position in positions.items()}


def _as_text(uri: str, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column as text: 7 and 7.0 become "7", a missing number null."""
    try:
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if pa.types.is_floating(column.type):
            column = pc.if_else(pc.is_nan(column), None, column)
        text = column.cast(pa.string())
    except pa.ArrowException as error:
        problem = f"is of type {column.type}, which is not text ({one_line(error)})"
        raise UsageError(f"{storage.readable(uri)}, column {name}: it {problem}.") from error
    return pc.if_else(pc.equal(text, ""), None, text)


def _table_row(table_uri: str, number: int, entry: dict[str, Any], category: str | None) -> dict[str, Any]:
    position = f"{storage.readable(table_uri)}, row {number}"
    name = entry["uri"]
    if not name:
        raise UsageError(f"{position}, column uri: it is empty.")
    name = _posix(table_uri, name)
    is_below = storage.is_relative(name) and "/" in name
    category = category or entry.get("category") or (name.split("/")[0] if is_below else None)
    if category is None:
        raise UsageError(f"{position}: the category is unknown; add a category column or --category NAME.")
    try:
        label = _label(entry.get("label") or "")
    except ValueError as error:
        raise UsageError(f"{position}, column label: {error}.") from None
    split = (entry.get("split") or "test").strip().casefold()
    if split not in ("train", "test"):
        raise UsageError(f"{position}, column split: {entry['split']!r} is not train or test.")
    if split == "train" and label == 1:
        raise UsageError(
            f"{position}, column split: a defective image is not for training; make it test, or leave its label empty."
        )
    mask = entry.get("mask_uri")
    mask_uri = storage.uri_in_table(_posix(table_uri, mask), table_uri) if mask else None
    file = FileEntry(entry.get("image_id") or storage.split_keys(name)[0], storage.uri_in_table(name, table_uri))
    return image_row(file, category, split, label, entry.get("defect"), mask_uri)


def _posix(table_uri: str, name: str) -> str:
    """A path with slashes, if it has backslashes, as Windows writes them, and no file has this very name."""
    if "\\" not in name or "://" in name:
        return name
    is_own_name = storage.is_relative(name) and storage.is_local(table_uri)
    return name if is_own_name and storage.exists(storage.sibling(table_uri, name)) else name.replace("\\", "/")


@functools.lru_cache(maxsize=1024)
def _label(text: str) -> int | None:
    """0 for good, 1 for defective, None for unknown; ValueError if the text means none of these."""
    word = text.strip().casefold()
    if word in NO_LABEL:
        return None
    if word in LABELS:
        return LABELS[word]
    is_good = meaning(word).is_good
    if is_good is None:
        raise ValueError(f"{text!r} is not 0, 1, empty, or a word such as good, OK, bad or NG")
    return int(not is_good)
