"""Results without a run: handmade rows, written by the writers that runs use."""

import numpy as np
from PIL import Image

from helpers.tiles import paint
from mvad import results
from mvad.options import RunOptions, as_json
from mvad.results import DecisionRule, Destination, write_rows
from mvad.results.run_record import versions
from mvad.results.summary import summarise
from mvad.storage import to_uri

SIZE = {"resize": 64, "crop": 64}


def draw(path, seed=0, defect=False, side=96):
    """Write an image of a tile and return its URI."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(paint(np.random.default_rng(seed), defect, side)[0]).save(path)
    return path.as_uri()


def write_category(out, name, rows, *, calibration=None, threshold=None, size=None, **facts):
    """Write the score rows of a category and return what ``run.json`` says of it.

    Rows are dictionaries with ``image_id`` and ``uri`` and, optionally, score, label, defect, mask_uri, error, width,
    height (default 96) and grid (an array of patch scores).
    """
    count = len(rows)

    def column(key, missing, dtype=object):
        values = np.empty(count, dtype)
        values[:] = [missing if row.get(key) is None else row[key] for row in rows]
        return values

    grids = [row.get("grid") for row in rows]
    batch = {
        **{key: column(key, "") for key in ("image_id", "uri", "defect", "mask_uri", "error")},
        "category": np.array([name] * count, object),
        "split": column("split", "test"),
        "label": column("label", -1, np.int8),
        "score": column("score", np.nan, np.float32),
        "width": column("width", 96, np.int32),
        "height": column("height", 96, np.int32),
        **{key: np.zeros(count) for key in ("seconds", "bytes", "retries", "memory")},
        "actor": np.full(count, "", object),
        "patch_grid": np.array([(0, 0) if grid is None else grid.shape for grid in grids], np.int32),
        "patch_scores": np.array(
            [b"" if grid is None else grid.astype(np.float32).tobytes() for grid in grids], object
        ),
    }
    scores = None if calibration is None else np.asarray(calibration, np.float32)
    rule = DecisionRule("0" * 64, scores, "conformal", threshold, "nothing much", False)
    write_rows(batch, Destination(to_uri(out), "run-1", {name: rule}))
    return {
        "method": "patchcore",
        "backbone": "efficientnet_lite0",
        "model_id": "0" * 64,
        "size": size or SIZE,
        "n_train": 8,
        "fit_seconds": 1.0,
        "score_seconds": 0.5,
        "threshold": threshold,
        "threshold_rule": "conformal" if threshold is not None else None,
        "n_calibration": 0 if scores is None else len(scores),
        "promise": None if scores is None else "nothing much",
        **facts,
    }


def finish(out, categories, **changed):
    """Write ``run.json`` and the summary."""
    uri = to_uri(out)
    run = {
        "run_id": "run-1",
        "command": "run",
        "status": "done",
        "started": "2026-11-23T02:30:00+00:00",
        "data": "data",
        "options": as_json(RunOptions()),
        "versions": versions(),
        "ignored_files": 0,
        "categories": categories,
        "exit_code": 0,
        "seconds": {"fit": 65.2, "score": 3.0, "total": 70.0},
        "images_per_second": 3.5,
        **changed,
    }
    results.write_json(f"{uri}/run.json", run)
    return results.write_summary(uri, summarise(uri, run))
