"""Fit to many random splits of good images, for measuring what thresholds achieve."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from numpy.typing import NDArray

from mvad.calibration import MIN_CALIBRATION_SCORES, fold_splits, one_per_group
from mvad.console import Reporter
from mvad.detectors import find_method
from mvad.errors import UsageError
from mvad.features.kinds import GRIDS
from mvad.features.specs import feature_shapes
from mvad.features.weights import Network
from mvad.fitting.by_category import CategoryFeatures, group_by_category
from mvad.fitting.tasks import score_held_out, score_left_out
from mvad.options import FalseAlarmOptions
from mvad.pipeline.bit_depths import measure_bit_depths
from mvad.pipeline.dataset import extract_features
from mvad.pipeline.image_sizes import measure_sizes
from mvad.runtime.resources import ActorPool, actor_pool


class SplitScores(NamedTuple):
    """Scores of a category's images, by the models of so many splits of the good ones.

    Of near duplicates, which are on one side of a split, one image is scored.
    """

    category: str
    calibration: NDArray[np.float32]  # (splits, n), of good images that calibrate
    fresh: NDArray[np.float32]  # (splits, m), of other good images
    defective: NDArray[np.float32]  # (splits, d)


def score_splits(
    images: pa.Table, network: Network, options: FalseAlarmOptions, ignores: Mapping[str, str], report: Reporter
) -> list[SplitScores]:
    """Fit to a part of the good images, calibrate by them, and score the other images; once per split.

    ``images`` are rows of a manifest, sorted by category, with ``label`` 0 or 1; ``ignores`` is of `read_ignores`.
    """
    labels = dict(zip(images["image_id"].to_pylist(), images["label"].to_pylist(), strict=True))
    bit_depths, sizes = (
        measure_bit_depths(images, options),
        measure_sizes(images, options, network.spec, windows=find_method(options.method).feature in GRIDS),
    )
    sizes = {name: replace(size, ignore=ignores.get(name)) for name, size in sizes.items()}
    scores = {}
    with report.stage("split", len(images)) as stage:
        for size in dict.fromkeys(sizes.values()):
            of_size = pa.array([name for name, other in sizes.items() if other == size], pa.string())
            rows = images.filter(pc.is_in(images["category"], of_size))
            shapes = feature_shapes([find_method(options.method).feature], network.spec, size)
            pool = actor_pool(options.actors, len(rows))
            batches = extract_features(rows, shapes, network, size, options, pool, stage, bit_depths)
            for category in group_by_category(batches, rows):
                stage.busy_with(f"{category.category}: {options.splits} splits of {len(category.image_ids)} images")
                is_good = np.array([labels[name] == 0 for name in category.image_ids], bool)
                scores[category.category] = _of_category(category, is_good, options, pool)
    return [scores[name] for name in sizes]


def _of_category(
    category: CategoryFeatures, is_good: NDArray[np.bool_], options: FalseAlarmOptions, pool: ActorPool
) -> SplitScores:
    features = ray.put(category.features[find_method(options.method).feature])
    good, defective = np.flatnonzero(is_good), np.flatnonzero(~is_good)
    groups = category.groups_of(good)
    n_groups = int(groups.max(initial=-1)) + 1
    n_fresh = max(1, round(options.fresh * n_groups))
    if n_groups - n_fresh < MIN_CALIBRATION_SCORES:
        raise UsageError(f"{category.category!r} has too few good images that differ from each other: {n_groups}.")
    n_fitted = n_groups - n_fresh
    found = np.empty((options.splits, n_fitted + n_fresh + len(defective)), np.float32)
    held_out_task: Any = ray.remote(score_held_out).options(**pool.task_resources)
    left_out_task: Any = ray.remote(score_left_out).options(**pool.task_resources)
    tasks: list[tuple[ray.ObjectRef, int, NDArray[np.int64] | slice]] = []
    for split in range(options.splits):
        order = np.random.default_rng([options.seed, split]).permutation(n_groups)
        fresh, fitted = order[:n_fresh], np.sort(order[n_fresh:])
        drawn = one_per_group(good, groups, [options.seed, split])
        is_fitted = np.isin(groups, fitted)
        rows, scored = good[is_fitted], np.append(drawn[fresh], defective)
        if options.leaves_out(find_method(options.method)):
            of_rows = np.unique(groups[is_fitted], return_inverse=True)[1].astype(np.int64)
            calibrating = np.searchsorted(rows, drawn[fitted])
            reference = left_out_task.remote(options, features, rows, of_rows, calibrating, scored)
            tasks.append((reference, split, slice(None)))
            continue
        tasks.append((held_out_task.remote(options, features, rows, scored), split, slice(n_fitted, None)))
        for rest, fold in fold_splits(np.arange(n_fitted), options.folds, options.seed):
            rows = good[np.isin(groups, fitted[rest])]
            tasks.append((held_out_task.remote(options, features, rows, drawn[fitted[fold]]), split, fold))
    for reference, split, columns in tasks:
        found[split, columns] = ray.get(reference).scores
    calibration, others = found[:, :n_fitted], found[:, n_fitted:]
    return SplitScores(category.category, calibration, others[:, :n_fresh], others[:, n_fresh:])
