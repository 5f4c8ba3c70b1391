from typing import Annotated, Any

from typer import Argument

from mvad import fitting, storage
from mvad.console import Reporter
from mvad.data.image_size import WHOLE_AND_TILES
from mvad.errors import UsageError
from mvad.model_store import list_models
from mvad.options import HistoryCategory, ModelsOptions, takes


@takes(ModelsOptions)
def models(
    folder: Annotated[str, Argument(metavar="DIR", help="Folder of fitted models; a path or a URI.")],
    options: ModelsOptions,
    category: HistoryCategory = None,
) -> list[dict[str, Any]]:
    """List the models in a folder; one that cannot be used is listed with what is wrong with it.

    Every model is read and checked as scoring would, except that its backbone is not loaded. ``suspects`` are its
    training images that scored unlike the others while it was fitted: image_id, score, and whether it was dropped.
    With ``history``, there is a row per version of each model instead, the oldest first: ``made_by`` is fit, update or
    reviewed, ``n_train`` how many images it has learnt from, ``n_reviewed`` how many of these by reviews.

    Raises
    ------
    UsageError
        There are none, or with ``history`` none of the category, or those of several methods.

    Examples
    --------
    >>> [model["category"] for model in mvad.models("models", quiet=True)]
    ['weave']
    """
    report, cells = Reporter(options.quiet), []
    if options.history:
        versions = fitting.list_versions(storage.to_uri(folder), options.method, category)
        _show_versions(versions, report)
        return versions
    if category is not None or options.method is not None:
        raise UsageError("--category and --method are for --history; give that too.")
    rows = list_models(storage.to_uri(folder))
    for row in rows:
        facts = ["damaged", *[""] * 9]
        if not row["damage"]:
            counts = [f"{row[name]:,}" for name in ("n_train", "n_calibration", "updates")]
            counts.insert(1, f"{len(row['suspects']):,}")
            whole = " + whole" if row["tile_levels"] == WHOLE_AND_TILES else ""
            seen = [row["input"], f"{row['windows']:,}{whole}", f"{100 * row['ignored']:.1f} %"]
            facts = [row["backbone"], *seen, *counts, f"{row['bytes'] / 1e6:.1f}", row["model_id"][:12]]
        cells.append([row["method"], row["category"], *facts])
    titles = ("pixels", "windows", "ignored", "train", "suspects", "calibration", "updates", "MB", "id")
    report.table(("method", "category", "backbone"), titles, cells)
    for warning in filter(None, (row["damage"] or row["note"] for row in rows)):
        report.warn(warning)
    return rows


def _show_versions(rows: list[dict[str, Any]], report: Reporter) -> None:
    cells = []
    for row in rows:
        made_at = (row["saved_at"] or "unknown")[:16].replace("T", " ")
        counts = [f"{row[name]:,}" for name in ("n_train", "n_reviewed")]
        used = "in use" if row["in_use"] else ""
        cells.append([row["method"], row["category"], row["model_id"][:12], made_at, *counts, row["made_by"], used])
    report.table(("method", "category"), ("id", "made (UTC)", "images", "of reviews"), cells, ("by", ""))
