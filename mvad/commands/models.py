from typing import Annotated, Any

from typer import Argument

from mvad import storage
from mvad.console import Reporter
from mvad.model_store import list_models
from mvad.options import OutputOptions, takes


@takes(OutputOptions)
def models(
    folder: Annotated[str, Argument(metavar="DIR", help="Folder of fitted models; a path or a URI.")],
    options: OutputOptions,
) -> list[dict[str, Any]]:
    """List the models in a folder; one that cannot be used is listed with what is wrong with it.

    Every model is read and checked as scoring would, except that its backbone is not loaded. ``suspects`` are its
    training images that scored unlike the others while it was fitted: image_id, score, and whether it was dropped.

    Raises
    ------
    UsageError
        There are none.

    Examples
    --------
    >>> [model["category"] for model in mvad.models("models", quiet=True)]
    ['weave']
    """
    rows, report, cells = list_models(storage.to_uri(folder)), Reporter(options.quiet), []
    for row in rows:
        facts = ["damaged", *[""] * 9]
        if not row["damage"]:
            counts = [f"{row[name]:,}" for name in ("n_train", "n_calibration", "updates")]
            counts.insert(1, f"{len(row['suspects']):,}")
            seen = [row["input"], f"{row['windows']:,}", f"{100 * row['ignored']:.1f} %"]
            facts = [row["backbone"], *seen, *counts, f"{row['bytes'] / 1e6:.1f}", row["model_id"][:12]]
        cells.append([row["method"], row["category"], *facts])
    titles = ("pixels", "windows", "ignored", "train", "suspects", "calibration", "updates", "MB", "id")
    report.table(("method", "category", "backbone"), titles, cells)
    for warning in filter(None, (row["damage"] or row["note"] for row in rows)):
        report.warn(warning)
    return rows
