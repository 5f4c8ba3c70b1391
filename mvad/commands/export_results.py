from typing import Annotated

from typer import Argument

from mvad import storage
from mvad.console import Reporter, plural
from mvad.nights import selection, tables
from mvad.options import ResultsOptions, takes


@takes(ResultsOptions)
def export_results(
    nights: Annotated[
        str, Argument(metavar="NIGHTS", help="Folder of nights, or of the results of one run; a path or a URI.")
    ],
    options: ResultsOptions,
) -> int:
    """Write the rows of one run or of many nights as a table, or as a file that other programs import.

    This is ``mvad results``; ``mvad.results`` is a package. Without ``out``, rows go to standard output. Rows are
    sorted by night, category and image, unless ``order`` says otherwise. The file appears whole or not at all, and
    replaces another of its name.

    Returns
    -------
    How many rows were written.

    Raises
    ------
    UsageError
        NIGHTS holds no results, a column is unknown, ``where`` or ``order`` is not SQL, or rows do not fit the format.

    Examples
    --------
    >>> mvad.export_results("nights", where="status = 'ok'", out="rows.csv", quiet=True)
    4
    """
    source = storage.to_uri(nights)
    format, target = selection.target_of(options, source)
    rows = selection.open_rows(source, options)
    columns = selection.columns_of(options, format)
    if format == "xlsx":
        count = rows.count(options.where)
        tables.ensure_rows_fit(min(count, options.limit or count))
    counted = selection.Counted(rows.select(columns, options.where, options.order, options.limit))
    parts = selection.FORMATS[format](counted.reader)
    if target is None:
        selection.print_parts(parts)
    else:
        storage.write_stream(target, parts)
        Reporter(options.quiet).result(f"{plural(counted.count, 'row')} in {storage.readable(target)}")
    return counted.count
