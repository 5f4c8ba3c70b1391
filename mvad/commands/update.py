"""Looking after models: listing them, and adding good images to them without the old ones."""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from mvad import storage
from mvad.calibration import fold_splits
from mvad.console import Reporter
from mvad.data.image_size import ImageSize
from mvad.data.manifest import read_manifest
from mvad.data.sampling import evenly_spaced
from mvad.detectors import METHODS, Extendable, LeaveOneOut, State
from mvad.errors import UsageError
from mvad.features.backbone_spec import BackboneSpec
from mvad.features.extractor import feature_shapes
from mvad.features.weights import Network
from mvad.fitting.by_category import CategoryFeatures, group_by_category
from mvad.model_store import (
    ModelInfo,
    find_models,
    keep_previous,
    list_models,
    read_arrays,
    read_calibration,
    save_model,
)
from mvad.options import UpdateOptions
from mvad.pipeline import flow as pipeline
from mvad.pipeline.actors import Extension, extend_detector
from mvad.results.metrics import image_metrics
from mvad.results.run_record import Result, exit_code, versions
from mvad.runtime.session import ActorPool, actor_pool, ray_session


def models(folder: str, *, quiet: bool = False) -> list[dict[str, Any]]:
    """List the models in a folder; a damaged one is listed with what is wrong with it.

    Raises
    ------
    UsageError
        There are none.
    """
    rows = list_models(storage.to_uri(folder))
    Reporter(quiet).models(rows)
    return rows


def update(data: str, models: str, **options: Any) -> Result:
    """Add the good images under DATA to models without the old images; options as in `options.UpdateOptions`.

    The images are those of train/good, or all of an unlabelled tree. Of a memory bank and the new patches together a
    coreset is chosen again, as many more as the new images would have had of their own (PatchCore), or the new vectors
    join it (kNN). New images are scored fold by fold, by models updated with the others, and their scores join the
    calibration; the old ones stay as they are, which is on the safe side: a larger bank could only lower them. The
    version before lies in ``previous`` beside the new one.

    Returns
    -------
    A result whose ``summary`` has a row a category: what the reference images, those of test, score before and after.

    Raises
    ------
    UsageError
        No model of any category of DATA, a method that cannot be updated, other weights, or unusable input.
    """
    started = time.monotonic()
    chosen = UpdateOptions(**options)
    report = Reporter(chosen.quiet)
    folder = storage.to_uri(models)
    found = find_models(folder, chosen.method)
    manifest = read_manifest(data, chosen)
    split = "train" if len(manifest.split("train")) else "test"
    wanted = {name: found[name] for name in manifest.categories if name in found}
    if not wanted:
        raise UsageError(f"{models} has no model for {', '.join(manifest.categories[:5])}; fit some with mvad fit.")
    for model in wanted.values():
        if not issubclass(METHODS[model.method], Extendable):
            raise UsageError(f"a {model.method} model cannot learn more without its old images; fit it again to all.")
        if model.settings.get("copies", 1) > 1:
            raise UsageError(
                f"the model of {model.category!r} was fitted with variants (--shots); fit it again to all."
            )
    networks = pipeline.load_networks(wanted, chosen.weights)
    groups: dict[tuple[BackboneSpec, ImageSize], list[str]] = defaultdict(list)
    for name, model in wanted.items():
        groups[model.backbone, model.size].append(name)
    rows, errors = [], []
    with ray_session(chosen.address, chosen.actors, report.line), report.stage("update", len(manifest.table)) as stage:
        for (spec, size), names in groups.items():
            images = _images(manifest.table, names, split, chosen.reference)
            kinds = sorted({METHODS[wanted[name].method].feature for name in names})
            shapes = feature_shapes(kinds, spec, size)
            pool = actor_pool(chosen.actors, len(images))
            batches = pipeline.extracted(images, shapes, networks[spec], size, chosen, pool, stage)
            for category in group_by_category(batches, images):
                own = images.filter(pc.equal(images["category"], category.name))
                model = wanted[category.name]
                errors += [
                    {"image_id": name, "category": category.name, "split": split, "error": error}
                    for name, error in category.errors.items()
                ]
                stage.busy_with(f"{category.name}: updating {model.method}")
                rows.append(_update(model, own, split, category, chosen, networks[spec], folder, pool))
    report.update(rows)
    report.errors(errors)
    code = exit_code(chosen, len(errors), len(manifest.table))
    return Result(code, rows, errors, {"update": time.monotonic() - started})


def _images(table: pa.Table, categories: list[str], split: str, most: int) -> pa.Table:
    """The new images of some categories, and up to ``most`` reference images of each, evenly spaced."""
    keep = np.array(table["split"].to_pylist()) == split
    names = np.array(table["category"].to_pylist(), object)
    for name in categories:
        (others,) = np.nonzero((names == name) & ~keep)
        keep[others[evenly_spaced(len(others), most)]] = True
    keep &= np.isin(names, categories)
    return table.filter(pa.array(keep))


def _update(
    model: ModelInfo,
    images: pa.Table,
    split: str,
    category: CategoryFeatures,
    options: UpdateOptions,
    network: Network,
    folder: str,
    pool: ActorPool,
) -> dict[str, Any]:
    """Extend one model, calibrate it, save it; a row of what has changed."""
    method = METHODS[model.method]
    arrays = read_arrays(model)
    features = ray.put(category.features[method.feature])
    splits = np.array(images["split"].to_pylist())[category.kept]
    (new,) = np.nonzero(splits == split)
    (reference,) = np.nonzero(splits != split)
    row: dict[str, Any] = {"category": model.category, "method": model.method, "n_before": model.record["n_train"]}
    row |= {"n_new": len(new), "n_reference": len(reference)}
    if not len(new):
        return {**row, "note": "not updated: none of its new images is usable"}
    extend = ray.remote(extend_detector).options(**pool.task_resources)
    state = State(model.settings, arrays)
    whole = extend.remote(model.method, state, features, new, reference)
    parts = []
    if not issubclass(method, LeaveOneOut) and options.folds and len(new) > 1:
        for rest, held_out in fold_splits(len(new), max(2, options.folds), options.seed):
            parts.append(extend.remote(model.method, state, features, new[rest], new[held_out]))
    outcome: Extension = ray.get(whole)
    calibration = outcome.state.loo_scores
    if calibration is None:
        old = read_calibration(model)
        scores = [part.scores for part in ray.get(parts)]
        calibration = np.concatenate([*([] if old is None else [old]), *scores]).astype(np.float32)
    keep_previous(model)
    ids = np.array(category.image_ids, object)[category.kept][new].tolist()
    record = {
        **model.record,
        "n_train": model.record["n_train"] + len(new),
        "training_sha256": hashlib.sha256("\n".join([model.record["training_sha256"], *ids]).encode()).hexdigest(),
        "versions": versions(),
        "updated_from": [*model.record.get("updated_from", []), model.model_id],
    }
    saved = save_model(
        folder, model.category, method, outcome.state, model.backbone, network.sha256, model.size, record, calibration
    )
    row |= {"n_after": record["n_train"], "model_id": saved.model_id, "n_calibration": len(calibration)}
    if len(reference):
        changes = np.abs(outcome.scores - outcome.scores_before)
        row |= {
            "median_before": float(np.median(outcome.scores_before)),
            "median_after": float(np.median(outcome.scores)),
        }
        row |= {"largest_change": float(changes.max())}
        labels = images["label"].to_numpy(zero_copy_only=False)[category.kept][reference]
        if set(labels.tolist()) == {0, 1}:
            row["image_auroc_before"] = image_metrics(labels.astype(np.int8), outcome.scores_before)["image_auroc"]
            row["image_auroc_after"] = image_metrics(labels.astype(np.int8), outcome.scores)["image_auroc"]
    return row
