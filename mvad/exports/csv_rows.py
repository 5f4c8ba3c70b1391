"""Regions as CSV: one row per region, and none for an image without."""

from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.compute as pc

OF_REGION = ("x", "y", "width", "height", "area", "peak", "mean")
OF_IMAGE = ("score", "p_value", "threshold", "verdict")
HEADER = ("image_id", "category", *OF_REGION, *OF_IMAGE)
# What spreadsheets take for a formula, and the apostrophe itself: https://owasp.org/www-community/attacks/CSV_Injection
FORMULA = r"^(['=+\-@\t\r\n\x{FF1D}\x{FF0B}\x{FF0D}\x{FF20}])"


def csv_document(tables: Iterable[tuple[str, pa.Table]]) -> Iterator[bytes]:
    """Give the parts of a CSV file, UTF-8, from the category and score rows of each of some files.

    A name that a spreadsheet would take for a formula, or that begins with an apostrophe, has an apostrophe in front.
    """
    yield (",".join(HEADER) + "\n").encode()
    for category, rows in tables:
        yield to_csv(region_table(category, rows))


def region_table(category: str, rows: pa.Table) -> pa.Table:
    """Return one row per region of the images of a category, with the columns `HEADER`."""
    rows = rows.combine_chunks()
    parents, regions = pc.list_parent_indices(rows["regions"]), pc.list_flatten(rows["regions"])
    images = rows.take(parents)
    columns = {"image_id": without_formulas(images["image_id"])}
    columns["category"] = without_formulas(pa.array([category] * len(images), pa.string()))
    columns |= {name: pc.struct_field(regions, name) for name in OF_REGION}
    columns |= {name: images[name] for name in OF_IMAGE}
    return pa.table(columns)


def defused(table: pa.Table) -> pa.Table:
    """The table, with an apostrophe in front of each text that a spreadsheet would take for a formula."""
    for number, field in enumerate(table.schema):
        if pa.types.is_string(field.type):
            table = table.set_column(number, field, without_formulas(table.column(number)))
    return table


def without_formulas(names: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Return texts with an apostrophe in front of those that a spreadsheet would take for a formula."""
    return pc.replace_substring_regex(names, FORMULA, r"'\1")


def to_csv(table: pa.Table) -> bytes:
    """Return the rows of a table as lines of CSV, UTF-8, without a header."""
    import pyarrow.csv as pacsv

    sink = pa.BufferOutputStream()
    pacsv.write_csv(table, sink, pacsv.WriteOptions(include_header=False))
    return sink.getvalue().to_pybytes()
