"""Extend fitted models by new images."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from numpy.typing import NDArray

from mvad.calibration import (
    MIN_CALIBRATION_SCORES,
    fold_splits,
    one_per_group,
    suspect_rows,
    suspects_with_duplicates,
    threshold,
)
from mvad.console import Reporter
from mvad.data.image_size import ImageSize
from mvad.data.sampling import evenly_spaced
from mvad.detectors import Extendable, LeaveOneOut, State, find_method
from mvad.errors import ModelError, UsageError
from mvad.features.backbone_spec import BackboneSpec
from mvad.features.specs import feature_shapes
from mvad.features.weights import Network
from mvad.fitting.by_category import CategoryFeatures, group_by_category
from mvad.fitting.fitted import content_digest
from mvad.fitting.jobs import digest, groups_of_record
from mvad.fitting.tasks import Extension, extend_and_leave_out, extend_detector, score_images
from mvad.metrics.image import image_metrics
from mvad.model_store import (
    FittedModel,
    ModelInfo,
    read_arrays,
    read_calibration,
    read_map_peaks,
    read_origins,
    read_patch_sample,
    save_model,
)
from mvad.options import UpdateOptions
from mvad.origins.bank_origins import Origins, origins_of
from mvad.pipeline.dataset import extract_features
from mvad.runtime.resources import ActorPool, actor_pool
from mvad.runtime.versions import versions
from mvad.scoring.held_out import HELD_OUT_COLUMNS, HeldOut, split_columns

MAX_NAMED = 5  # images in a sentence
FEATURE_COPIES = 2  # of the images' features: as they arrive, and in the task that learns from them


def ensure_extendable(models: Iterable[ModelInfo]) -> None:
    """Make sure that all models can learn from more images without the old ones; else UsageError."""
    for model in models:
        if not issubclass(find_method(model.method), Extendable):
            raise UsageError(f"a {model.method} model cannot learn more without its old images; fit it again to all.")
        if model.settings.get("copies", 1) > 1:
            raise UsageError(
                f"the model of {model.category!r} was fitted with variants of its images; fit it again to all."
            )


def update_models(
    table: pa.Table,
    models: Mapping[str, ModelInfo],
    networks: Mapping[BackboneSpec, Network],
    folder: str,
    options: UpdateOptions,
    report: Reporter,
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Extend models, by category, by the training images of a manifest, or if it has none by its test images.

    Returns one row per category, and the images that could not be used: image_id, category, split and error. The
    models are saved in ``folder`` (a URI).
    """
    split = "train" if pc.any(pc.equal(table["split"], "train")).as_py() else "test"
    groups: dict[tuple[BackboneSpec, ImageSize], list[str]] = defaultdict(list)
    rows, errors = [], []
    for name, model in models.items():
        if model.record.get("update_id") == _update_id(table, name, split):  # by an update that was interrupted
            note = "not updated: it has learnt from these images already"
            rows.append({"category": name, "method": model.method, "n_before": model.record["n_train"], "note": note})
        else:
            groups[model.backbone, model.size].append(name)
    with report.stage("update", len(table)) as stage:
        for (spec, size), names in groups.items():
            images = _images(table, names, split, options.reference)
            shapes = feature_shapes(sorted({find_method(models[name].method).feature for name in names}), spec, size)
            if size.window is not None:
                _ensure_room(images, size, shapes, options, networks[spec])
            pool = actor_pool(options.actors, len(images))
            bit_depths = {name: models[name].bit_depth for name in names}
            batches = extract_features(images, shapes, networks[spec], size, options, pool, stage, bit_depths)
            for category in group_by_category(batches, images):
                model = models[category.category]
                errors += [
                    {"image_id": name, "category": category.category, "split": split, "error": error}
                    for name, error in category.errors.items()
                ]
                stage.busy_with(f"{category.category}: updating {model.method}")
                try:
                    rows.append(_update(model, images, split, category, options, networks[spec], folder, pool))
                except ModelError as error:
                    rows.append({"category": category.category, "note": f"not updated: {error}"})
    return rows, errors


def _ensure_room(
    images: pa.Table,
    size: ImageSize,
    shapes: Mapping[str, Sequence[int]],
    options: UpdateOptions,
    network: Network,
) -> None:
    """Make sure that memory holds the features of large images of each category together; else UsageError."""
    room = options.memory_budget.after_weights(network.nbytes).bytes
    most = room // (FEATURE_COPIES * 4 * sum(math.prod(shape) for shape in shapes.values()))
    category, count = Counter(images["category"].to_pylist()).most_common(1)[0]
    if count > most:
        raise UsageError(
            f"--memory-limit holds {most:,} images of {size} pixels, and there are {count:,} of {category!r}; raise "
            "it, or give fewer with --limit and --reference, or fit the model again."
        )


def _update_id(table: pa.Table, category: str, split: str) -> str:
    """What the new images of a category are known by."""
    return content_digest(table.filter(pc.and_(pc.equal(table["category"], category), pc.equal(table["split"], split))))


def _images(table: pa.Table, categories: list[str], split: str, max_reference: int) -> pa.Table:
    """The new images of some categories, and up to ``max_reference`` other images of each, evenly spaced."""
    keep = np.array(table["split"].to_pylist()) == split
    names = np.array(table["category"].to_pylist(), object)
    for name in categories:
        (others,) = np.nonzero((names == name) & ~keep)
        keep[others[evenly_spaced(len(others), max_reference)]] = True
    return table.filter(pa.array(keep & np.isin(names, categories)))


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
    """Extend one model, calibrate it on the new images, and save it."""
    method = find_method(model.method)
    usable = images.filter(pc.is_in(images["image_id"], pa.array(category.image_ids.tolist(), pa.string())))
    usable = usable.filter(pc.equal(usable["category"], category.category))
    is_new = np.array(usable["split"].to_pylist()) == split
    new, reference = np.flatnonzero(is_new), np.flatnonzero(~is_new)
    row: dict[str, Any] = {"category": category.category, "method": model.method, "n_before": model.record["n_train"]}
    row |= {"n_new": len(new), "n_reference": len(reference)}
    if not len(new):
        return {**row, "note": "not updated: none of its new images is usable"}
    arrays, old = read_arrays(model, category.features[method.feature].shape[1:]), read_calibration(model)
    old_peaks, old_patches = read_map_peaks(model), read_patch_sample(model)
    extend = ray.remote(extend_detector).options(**pool.task_resources)
    features, state = ray.put(category.features[method.feature]), ray.put(State(model.settings, arrays))
    score = ray.remote(score_images).options(**pool.task_resources)
    scores = ray.get(score.remote(model.method, state, features, new))
    suspects, kept = _suspects(category, new, scores, old, options)
    row |= {"suspects": suspects, "n_examined": len(new)}
    if not len(kept):
        return {**row, "note": "not updated: all of its new images are suspects"}
    new = kept
    row["n_new"] = len(new)
    groups = category.groups_of(new)  # near duplicates of old images are not known
    old_groups = np.array(model.record.get("groups", range(model.record["n_train"])), np.int64)
    all_groups = np.concatenate([old_groups, groups + old_groups.max() + 1])
    scores = np.empty((0, HELD_OUT_COLUMNS), np.float32)  # of new images that are left out or held out
    if options.leaves_out(method):
        leave_out = ray.remote(extend_and_leave_out).options(**pool.task_resources)
        task = leave_out.remote(model.method, state, features, new, reference, groups, model.size)
        found: tuple[Extension, HeldOut] = ray.get(task)
        outcome, scores = found[0], found[1].columns
    else:
        extended = extend.remote(model.method, state, features, new, reference, all_groups)
        folds = {}
        if not issubclass(method, LeaveOneOut) and options.calibrates and groups.any():
            for others, held_out in fold_splits(groups, max(2, options.folds), options.seed):
                fold = extend.remote(model.method, state, features, new[others], new[held_out], size=model.size)
                folds[fold] = held_out
            scores = np.empty((len(new), HELD_OUT_COLUMNS), np.float32)
        outcome = ray.get(extended)
        for fold, held_out in folds.items():
            scores[held_out] = ray.get(fold).held_out.columns
    calibration, peaks, patches = outcome.state.loo_scores, None, None
    if calibration is None:
        calibration, peaks, patches = split_columns(one_per_group(scores, groups[: len(scores)], options.seed))
        if old is not None:
            calibration = np.concatenate([old, calibration])
            # Peaks of a part of the images would not promise what those of all do.
            peaks = _joined(old_peaks, peaks, scores)
            patches = _joined(old_patches, patches, scores)
    record = {
        **model.record,
        "n_train": model.record["n_train"] + len(new),
        "n_groups": model.record.get("n_groups", model.record["n_train"]) + int(groups.max()) + 1,
        **groups_of_record(method, all_groups),
        "suspects": [*model.record.get("suspects", []), *suspects],
        "suspects_examined": model.record.get("suspects_examined", 0) + row["n_examined"],
        "fit_id": "",  # it is not what a fit would make any more
        "update_id": _update_id(images, model.category, split),
        "training_sha256": digest([model.record.get("training_sha256", ""), *category.image_ids[new]]),
        "versions": versions(),
        "made_by": "update" if options.reviewed is None else "reviewed",
        "updated_from": [*model.record.get("updated_from", []), model.model_id],
    }
    updated = FittedModel(
        model.category,
        method,
        outcome.state,
        model.backbone,
        network.sha256,
        model.size,
        record,
        calibration,
        peaks,
        patches,
        _origins(model, outcome.state, category, new),
    )
    if options.reviewed is not None:
        row["missed"] = _missed(model, category.image_ids[reference], outcome, old, calibration, options)
        if len(row["missed"]) > options.allow_missed:
            return {**row, "refused": True, "note": _refusal(row["missed"])}
        record["reviewed"] = [*model.record.get("reviewed", []), *_reviewed(usable.take(pa.array(new)))]
    saved = save_model(folder, updated, keep_earlier=True)
    row |= {"n_after": record["n_train"], "model_id": saved.model_id, "n_calibration": len(calibration)}
    return row | _change(outcome, usable["label"].to_numpy(zero_copy_only=False)[reference])


def _origins(model: ModelInfo, state: State, category: CategoryFeatures, new: NDArray[np.int64]) -> Origins | None:
    """Where the vectors of an extended model come from; those it had before are unknown if it did not say it."""
    if state.chosen is None:
        return None
    try:
        before = read_origins(model)
    except ModelError:  # which nothing else needs
        before = None
    grid = category.features[find_method(model.method).feature].shape[1:-1]
    images = category.named(category.image_ids[new])
    return origins_of(state.chosen, images, grid, before=before)


def _missed(
    model: ModelInfo,
    image_ids: NDArray[Any],
    outcome: Extension,
    old: NDArray[np.float32] | None,
    new: NDArray[np.float32],
    options: UpdateOptions,
) -> list[str]:
    """The reference images, known defects, that the model before flags and the updated one does not.

    ``old`` and ``new`` are the calibration scores of both; a model without any flags nothing.
    """
    if old is None or len(old) < MIN_CALIBRATION_SCORES or not len(image_ids):
        return []
    rule = options.threshold_rule or find_method(model.method).default_rule
    thresholds = [threshold(scores, rule, options.false_alarm_rate) for scores in (old, new)]
    lost = (outcome.scores_before > thresholds[0]) & ~(outcome.held_out.scores > thresholds[1])
    return [str(name) for name in image_ids[lost]]


def _refusal(missed: Sequence[str]) -> str:
    named = ", ".join(missed[:MAX_NAMED]) + (
        f" and {len(missed) - MAX_NAMED:,} more" if len(missed) > MAX_NAMED else ""
    )
    count = "a known defect" if len(missed) == 1 else f"{len(missed):,} known defects"
    return (
        f"not updated: the new model would no longer flag {count} ({named}), and the model before stays in use; look "
        f"again at what was said to be good, or allow it with --allow-missed {len(missed)}"
    )


def _reviewed(images: pa.Table) -> list[dict[str, Any]]:
    """What a model's record says of images that joined from reviews; times are microseconds since 1970."""
    columns = images.select(["image_id", "uri", "file_size"])
    return columns.append_column("file_mtime", images["file_mtime"].cast(pa.int64())).to_pylist()


def _suspects(
    category: CategoryFeatures,
    new: NDArray[np.int64],
    scores: NDArray[np.float32],
    calibration: NDArray[np.float32] | None,
    options: UpdateOptions,
) -> tuple[list[dict[str, Any]], NDArray[np.int64]]:
    """The new images that score unlike those that calibrate the model, for its record; and the rows that may join.

    ``scores`` are those of the new images by the model before, (n,). Without calibration, the new images are compared
    with each other.
    """
    groups = category.groups_of(new)
    reference = one_per_group(scores, groups, options.seed) if calibration is None else calibration
    found, of_found = suspects_with_duplicates(scores, groups, reference)
    suspects = suspect_rows(category.image_ids[new[found]], of_found, dropped=options.drop_suspects)
    return suspects, np.delete(new, found) if options.drop_suspects else new


def _joined(
    old: NDArray[np.float32] | None, new: NDArray[np.float32] | None, scored: NDArray[np.float32]
) -> NDArray[np.float32] | None:
    """Values of old images and of new ones, if any were scored; None if some have none."""
    if old is None or not len(scored):
        return old
    return None if new is None else np.concatenate([old, new])


def _change(outcome: Extension, labels: np.ndarray) -> dict[str, float]:
    """What the reference images, with these labels, scored before and after."""
    before, after = outcome.scores_before, outcome.held_out.scores
    if not len(after):
        return {}
    change = {"median_before": float(np.median(before)), "median_after": float(np.median(after))}
    change["largest_change"] = float(np.abs(after - before).max())
    if set(labels.tolist()) == {0, 1}:
        change["image_auroc_before"] = image_metrics(labels.astype(np.int8), before)["image_auroc"]
        change["image_auroc_after"] = image_metrics(labels.astype(np.int8), after)["image_auroc"]
    return change
