"""Results without a run: handmade rows, written by the writers that runs use."""

import numpy as np
import pyarrow as pa
from PIL import Image

from helpers.tiles import paint
from mvad import results
from mvad.calibration import DecisionRule
from mvad.data.manifest import SCHEMA
from mvad.features.backbone_spec import BackboneSpec
from mvad.model_store import ModelInfo
from mvad.options import RunOptions, as_json
from mvad.pipeline.columns import SCORED
from mvad.results.schema import RowOrigin
from mvad.results.store import write_part
from mvad.results.summary import evaluate
from mvad.results.verdicts import rule_facts
from mvad.runtime.versions import versions
from mvad.scoring.jobs import ScoringJob
from mvad.scoring.write import score_rows
from mvad.storage import to_uri

BACKBONE = BackboneSpec("efficientnet_lite0", (), (), ())
SIZE = {"resize": 64, "crop": 64}


def draw(path, seed=0, defect=False, side=96):
    """Write an image of a tile and return its URI."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(paint(np.random.default_rng(seed), defect, side)[0]).save(path)
    return path.as_uri()


def write_category(out, name, rows, *, calibration=None, threshold=None, size=None, rule=None, **facts):
    """Write the score rows of a category and return what ``run.json`` says of it.

    Rows are dictionaries with ``image_id`` and ``uri`` and, optionally, score, label, defect, mask_uri, error, width,
    height (default 96) and grid (an array of patch scores). They are decided on by ``rule``, or by ``threshold``.
    """
    count, scores = len(rows), None if calibration is None else np.asarray(calibration, np.float32)
    images = {"category": [name] * count, "split": [row.get("split", "test") for row in rows]}
    for key in ("image_id", "uri", "label", "defect", "mask_uri", "file_size", "file_mtime"):
        images[key] = [row.get(key) or None if key != "label" else row.get(key) for row in rows]
    grids = [row.get("grid") for row in rows]
    scored = {
        "row": list(range(count)),
        "job": [0] * count,
        "error": [row.get("error") for row in rows],
        "width": [None if row.get("error") else row.get("width", 96) for row in rows],
        "height": [None if row.get("error") else row.get("height", 96) for row in rows],
        "score": [None if row.get("error") else row.get("score") for row in rows],
        "patch_scores": [None if grid is None else grid.astype(np.float32).ravel() for grid in grids],
        "patch_grid": [None if grid is None else grid.shape for grid in grids],
        "regions": [row.get("regions") for row in rows],
        "anomalous_area": [row.get("anomalous_area") for row in rows],
    }
    model = ModelInfo("0" * 64, "patchcore", name, {}, BACKBONE, "", None, {}, {}, "")
    if rule is None:
        rule = DecisionRule("0" * 64, scores, "conformal" if threshold is not None else None, threshold, "nothing much")
    job = ScoringJob(model, rule, to_uri(out), RowOrigin("run-1"), 0.0)
    write_part(job.out, score_rows(pa.table(images, SCHEMA), pa.table(scored, SCORED), job))
    return {
        "method": "patchcore",
        "backbone": "efficientnet_lite0",
        "model_id": "0" * 64,
        "size": size or SIZE,
        "n_train": 8,
        "fit_seconds": 1.0,
        "score_seconds": 0.5,
        "n_calibration": 0 if rule.calibration is None else len(rule.calibration),
        **rule_facts(rule),
        "promise": None if rule.calibration is None else rule.guarantee,
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
    summary, _ = evaluate(uri, categories)
    results.write_json(f"{uri}/run.json", run)
    return results.write_summary(uri, summary)
