"""Taking up a score run where it stopped: the images that have no row yet, and rows that may be better now.

What is missing is found by an anti-join of the listing with the ids in OUT. Ray Data's own checkpointing (beta in Ray
2.60) was weighed by test: it filters nothing where a data set is not read from files, so that a resumed run doubles its
rows; it keeps a record of its own beside the rows, which can disagree with them; and on two processors its filter actor
once left a resumed run without progress. The ids in OUT are the rows themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mvad import results, storage
from mvad.data.images import load_image
from mvad.errors import ImageError, UsageError
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
    content, where = results.read_run(out), storage.readable(out)
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


class KeptRows:
    """The rows in OUT (a URI) that stay.

    Not those that name an error whose reason is gone: a file that could not be read is tried again, here on the driver,
    when it is listed again; it may have been half written, or on a disk that was away. Rows of images that are not
    listed any more stay.
    """

    def __init__(self, out: str, models: Mapping[str, ModelInfo], options: ScoreOptions) -> None:
        results.repair(out)
        self._out, self._models, self._options = out, models, options
        rows = results.read_states(out)
        failed = rows.filter(pc.equal(rows["status"], "error"))
        self._reasons = dict(zip(failed["image_id"].to_pylist(), failed["error"].to_pylist(), strict=True))
        self._ids = rows["image_id"]

    @property
    def count(self) -> int:
        return len(self._ids)

    def without(self, images: pa.Table) -> pa.Table:
        """The images that have no row; rows that have lost their reason are removed first."""
        again = images.filter(pc.is_in(images["image_id"], pa.array(list(self._reasons), pa.string())))
        stale = [row["image_id"] for row in again.to_pylist() if self._usable(row)]
        results.drop_rows(self._out, stale)
        self._ids = self._ids.filter(pc.invert(pc.is_in(self._ids, pa.array(stale, pa.string()))))
        return images.filter(pc.invert(pc.is_in(images["image_id"], self._ids)))

    def _usable(self, image: Mapping[str, Any]) -> bool:
        model = self._models.get(image["category"])
        if model is None or self._reasons[image["image_id"]].startswith(NO_MODEL):
            return model is not None
        try:
            load_image(image["uri"], model.size, self._options.max_pixels)
        except ImageError:
            return False
        return True
