"""List the models in a folder."""

from __future__ import annotations

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
    """List the models in a folder; a damaged one is listed with what is wrong with it.

    Raises
    ------
    UsageError
        There are none.

    Examples
    --------
    >>> [model["category"] for model in mvad.models("models", quiet=True)]
    ['weave']
    """
    rows, report = list_models(storage.to_uri(folder)), Reporter(options.quiet)
    cells = []
    for row in rows:
        if row["damage"]:
            cells.append([row["method"], row["category"], "damaged", *[""] * 6])
            continue
        counts = [str(row["crop"]), *(f"{row[name]:,}" for name in ("n_train", "n_calibration", "updates"))]
        size, model_id = f"{row['bytes'] / 1e6:.1f}", row["model_id"][:12]
        cells.append([row["method"], row["category"], row["backbone"], *counts, size, model_id])
    names = ("method", "category", "backbone")
    report.table(names, ("pixels", "train", "calibration", "updates", "MB", "id"), cells)
    for row in rows:
        if row["damage"]:
            report.warn(row["damage"])
    return rows
