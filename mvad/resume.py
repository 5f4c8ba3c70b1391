"""Taking up a score run where it stopped: the images that have no row yet, and rows that may be better now.

What is missing is found by an anti-join of the listing with the ids in OUT. Ray Data's own checkpointing (beta in Ray
2.60) was weighed by test: it filters nothing where a data set is not read from files, so that a resumed run doubles its
rows; it keeps a record of its own beside the rows, which can disagree with them; and on two processors its filter actor
once left a resumed run without progress. The ids in OUT are the rows themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mvad import results, storage
from mvad.errors import ImageError, UsageError
from mvad.images import load_image
from mvad.model_store import ModelInfo
from mvad.options import ScoreOptions

NO_MODEL = "no model"  # how the error of an image begins that was not scored for want of one


def identity(models: Mapping[str, ModelInfo], options: ScoreOptions) -> dict[str, Any]:
    """What all rows of one OUT have in common: the models by category, and the options that rows depend on."""
    names = ("maps", "max_pixels", "threshold_rule", "false_alarm_rate", "fdr")
    return {
        "models": {name: model.model_id for name, model in sorted(models.items())},
        **{name: getattr(options, name) for name in names},
    }


def earlier_run(out: str, own: Mapping[str, Any]) -> dict[str, Any] | None:
    """``run.json`` of the score run in OUT (a URI) that may be taken up; None if OUT is empty.

    Parameters
    ----------
    own
        The `identity` of the run that is about to begin. It may have models of more categories.

    Raises
    ------
    UsageError
        OUT holds something else, or rows of other models or options.
    """
    if not storage.list_folder(out):
        return None
    results.check_free(out, replace=True)  # refuses files that are not results
    content, where = results.read_run(out), storage.display(out)
    theirs = content.get("identity")
    if content.get("command") != "score" or theirs is None:
        results.check_free(out, replace=False)
        return None
    for name, value in own.items():
        if name != "models" and theirs.get(name) != value:
            raise UsageError(
                f"{where} was begun with --{name.replace('_', '-')} {theirs.get(name)}, not {value}; choose another "
                "--out, or --new-run to replace its rows."
            )
    for category, model_id in own["models"].items():
        if theirs["models"].get(category, model_id) != model_id:
            raise UsageError(
                f"{where} was begun with another model of {category!r}; choose another --out, or --new-run to replace "
                "its rows."
            )
    return content


@dataclass(frozen=True)
class Remaining:
    """What is left to do, the images without a row; and how many rows stay."""

    images: pa.Table
    n_kept: int


def remaining(out: str, images: pa.Table, models: Mapping[str, ModelInfo], options: ScoreOptions) -> Remaining:
    """The images that have no row in OUT (a URI), after error rows that have lost their reason have been removed.

    A file that could not be read is tried again, here on the driver: it may have been half written, or on a disk that
    was away. Rows of images that are no longer in the listing stay.
    """
    results.repair(out)
    rows = results.read_states(out)
    failed = rows.filter(pc.equal(rows["status"], "error"))
    reasons = dict(zip(failed["image_id"].to_pylist(), failed["error"].to_pylist(), strict=True))
    again = images.filter(pc.is_in(images["image_id"], failed["image_id"]))
    stale = {row["image_id"] for row in again.to_pylist() if _usable(row, reasons[row["image_id"]], models, options)}
    results.drop_rows(out, stale)
    done = pa.array([name for name in rows["image_id"].to_pylist() if name not in stale], pa.string())
    left = images.filter(pc.invert(pc.is_in(images["image_id"], done)))
    return Remaining(left, len(done))


def _usable(image: Mapping[str, Any], error: str, models: Mapping[str, ModelInfo], options: ScoreOptions) -> bool:
    model = models.get(image["category"])
    if model is None or error.startswith(NO_MODEL):
        return model is not None
    try:
        load_image(image["uri"], model.size, options.max_pixels)
    except ImageError:
        return False
    return True
