"""Rows as tables for people and other programs: each format gives the parts of a file, from batches of rows."""

from __future__ import annotations

import datetime
import functools
import json
import tempfile
from collections.abc import Callable, Iterator
from typing import IO, Any

import pyarrow as pa

from mvad.errors import UsageError
from mvad.exports.csv_rows import to_csv, without_formulas
from mvad.results.schema import plain_rows

CHUNK_BYTES = 1 << 20
MAX_XLSX_ROWS = (1 << 20) - 1  # of a sheet, below its header
MAX_XLSX_TEXT = (1 << 15) - 1  # of a cell, in UTF-16
INSTEAD = "choose columns without it by --columns, or --format csv or parquet"


def csv_table(rows: pa.RecordBatchReader) -> Iterator[bytes]:
    """Give the parts of a CSV file, UTF-8; lists are JSON, and a text that a spreadsheet would compute is marked.

    That is one which it would take for a formula: it has an apostrophe in front, as in `exports.csv_rows`.
    """
    yield (",".join(rows.schema.names) + "\n").encode()
    for batch in rows:
        yield to_csv(pa.table({name: _csv_column(batch.select([name])) for name in rows.schema.names}))


def _csv_column(column: pa.RecordBatch) -> pa.Array:
    (field,) = column.schema
    if pa.types.is_nested(field.type):
        return pa.array([_json_text(row[field.name]) for row in plain_rows(column)], pa.string())
    return without_formulas(column[0]) if pa.types.is_string(field.type) else column[0]


def _json_text(value: Any) -> str | None:
    return None if value is None else json.dumps(value, ensure_ascii=False)


def json_table(rows: pa.RecordBatchReader) -> Iterator[bytes]:
    """Give the parts of a JSON list of rows; numbers that are not finite, of which JSON knows none, are null."""
    between = b"[\n"
    for lines in _json_lines(rows):
        yield between + b",\n".join(lines)
        between = b",\n"
    yield b"[]\n" if between == b"[\n" else b"\n]\n"


def jsonl_table(rows: pa.RecordBatchReader) -> Iterator[bytes]:
    """Give the parts of a file of lines that are a JSON object each."""
    for lines in _json_lines(rows):
        yield b"\n".join(lines) + b"\n"


def _json_lines(rows: pa.RecordBatchReader) -> Iterator[list[bytes]]:
    for batch in rows:
        if len(batch):
            yield [json.dumps(row, ensure_ascii=False).encode() for row in plain_rows(batch)]


def parquet_table(rows: pa.RecordBatchReader) -> Iterator[bytes]:
    """Give the parts of a Parquet file."""

    def write(file: IO[bytes]) -> None:
        import pyarrow.parquet as pq

        with pq.ParquetWriter(file, rows.schema, compression="zstd") as writer:
            for batch in rows:
                writer.write_batch(batch)

    return _by_file(write)


def xlsx_table(rows: pa.RecordBatchReader) -> Iterator[bytes]:
    """Give the parts of an Excel workbook with one sheet: texts are texts, whatever they begin with; times are UTC.

    There may be up to `MAX_XLSX_ROWS` rows: see `ensure_rows_fit`. UsageError if a text is longer than a cell can be.
    """
    return _by_file(functools.partial(_write_xlsx, rows))


def _write_xlsx(rows: pa.RecordBatchReader, file: IO[bytes]) -> None:
    import xlsxwriter

    number = 0
    with xlsxwriter.Workbook(file, {"constant_memory": True, "remove_timezone": True}) as book:
        sheet = book.add_worksheet("rows")
        day, time = (book.add_format({"num_format": text}) for text in ("yyyy-mm-dd", "yyyy-mm-dd hh:mm:ss"))
        for place, name in enumerate(rows.schema.names):
            sheet.write_string(0, place, name, book.add_format({"bold": True}))
        sheet.freeze_panes(1, 0)
        for batch in rows:
            for row, values in zip(plain_rows(batch), batch.to_pylist(), strict=True):
                number += 1
                for place, (name, value) in enumerate(row.items()):
                    if isinstance(values[name], datetime.date):
                        form = time if isinstance(values[name], datetime.datetime) else day
                        sheet.write_datetime(number, place, values[name], form)
                    elif isinstance(value, bool):
                        sheet.write_boolean(number, place, value)
                    elif isinstance(value, int | float):
                        sheet.write_number(number, place, value)
                    elif values[name] is not None:
                        sheet.write_string(number, place, _xlsx_text(name, values[name] if value is None else value))


def _xlsx_text(name: str, value: Any) -> str:
    """A text as a cell has it, lists as JSON, and numbers that are not finite, which a sheet does not know."""
    text = _json_text(value) or "" if isinstance(value, list) else str(value)
    length = len(text.encode("utf-16-le", "surrogatepass")) // 2
    if length > MAX_XLSX_TEXT:
        raise UsageError(
            f"a text in the column {name} has {length:,} characters, more than the {MAX_XLSX_TEXT:,} of a cell of "
            f"XLSX; {INSTEAD}."
        )
    return text


def ensure_rows_fit(count: int) -> None:
    """UsageError if so many rows are more than a sheet of XLSX has."""
    if count > MAX_XLSX_ROWS:
        raise UsageError(
            f"{count:,} rows are more than the {MAX_XLSX_ROWS:,} of a sheet of XLSX; choose fewer by --where, --since "
            "or --limit, or --format csv or parquet."
        )


def _by_file(write: Callable[[IO[bytes]], None]) -> Iterator[bytes]:
    """The parts of a file that can only be written as a file."""
    with tempfile.TemporaryFile() as file:
        write(file)
        file.seek(0)
        yield from iter(functools.partial(file.read, CHUNK_BYTES), b"")
