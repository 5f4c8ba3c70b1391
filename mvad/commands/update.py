import time
from collections.abc import Sequence
from typing import Any

from mvad import fitting, pipeline, storage
from mvad.calibration import suspects_warning
from mvad.console import Reporter, number
from mvad.model_store import find_models, load_networks, models_for
from mvad.nights.reviewed import read_lesson
from mvad.options import Models, NewData, UpdateOptions, takes
from mvad.results.result import Result, exit_code
from mvad.storage.text import shown_name


@takes(UpdateOptions)
def update(data: NewData, models: Models, options: UpdateOptions) -> Result:
    """Add the good images in DATA, or those that reviewers said to be good, to fitted models, without the old images.

    The images are those of train/good, or all of an unlabelled tree. PatchCore chooses a coreset again, from the memory
    bank and the new patches together, larger by what the new images would have had of their own; kNN adds the new
    vectors to its bank. New images are scored fold by fold, by models updated with the others, and their scores join
    the calibration. Old calibration scores stay as they are: a larger bank could only lower them, which errs towards
    fewer false alarms. New images that the model before scores unlike those that calibrate it are named; with
    ``drop_suspects`` they do not join. The version before is kept next to the new one, in ``versions``.

    With ``reviewed``, DATA is None. Images that have joined so before, and those whose files have gone or changed since
    they were scored, are left out. A model is not updated, and the exit code is 3, if more than ``allow_missed`` images
    that were said to be defects, and are flagged by the model before, would no longer be flagged.

    Returns
    -------
    A result whose ``summary`` has one row per category: what the reference images, those of test, score before and
    after, and the new images that are ``suspects``: image_id, score, and whether it was dropped.

    Raises
    ------
    UsageError
        Neither or both of DATA and ``reviewed``, no model of any category of DATA, a method that cannot be updated,
        other weights, or unusable input.

    Examples
    --------
    >>> mvad.update("sample", "models", categories="weave", limit=2, quiet=True).summary[0]["n_new"]
    2
    """
    started, report, folder = time.monotonic(), Reporter(options.quiet), storage.to_uri(models)
    fitted = find_models(folder, options.method)
    storage.ensure_writable_folder(folder)
    lesson = read_lesson(data, fitted, options, report)
    manifest, options = lesson.manifest, lesson.options
    if not manifest.n_images:
        _show(lesson.rows, report)
        return Result(0, lesson.rows, [], {"update": time.monotonic() - started})
    category_models, networks = load_networks(
        models_for(manifest.categories, fitted), options.weights, options.memory_budget
    )
    fitting.ensure_extendable(category_models.values())
    report.image_count(manifest)

    with pipeline.job_session(options, report):
        rows, errors = fitting.update_models(manifest.table, category_models, networks, folder, options, report)
    rows += [{"category": name, "note": f"not updated: {error}"} for name, error in category_models.errors.items()]
    rows, errors = lesson.joined(rows), manifest.errors + errors
    _show(rows, report)
    report.errors(errors)
    refused = [row["category"] for row in rows if row.get("refused")]
    code = exit_code(options, len(errors), manifest.n_files, failed_categories=refused)
    return Result(code, rows, errors, {"update": time.monotonic() - started})


def _show(rows: Sequence[dict[str, Any]], report: Reporter) -> None:
    counts = ("n_before", "n_new", "n_reference")
    medians = ("median_before", "median_after", "image_auroc_before", "image_auroc_after")
    cells = []
    for row in rows:
        values = [f"{row.get(name) or 0:,}" for name in counts] + [number(row.get(name), 3) for name in medians]
        cells.append([row["category"], *values])
    titles = ("images", "new", "reference", "median before", "after", "AUROC before", "after")
    report.table(["category"], titles, cells)
    for row in rows:
        suspects = suspects_warning(row["category"], row.get("suspects", ()))
        if suspects is not None:
            report.warn(suspects)
        if row.get("note"):
            report.warn(f"{shown_name(row['category'])}: {row['note']}")
