"""Fit to many random splits of good images, for measuring what thresholds achieve."""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from mvad.calibration import fold_splits
from mvad.console import Reporter
from mvad.detectors import find_method
from mvad.features.extractor import feature_shapes
from mvad.features.weights import Network
from mvad.fitting.by_category import CategoryFeatures, group_by_category
from mvad.fitting.tasks import score_held_out
from mvad.options import FalseAlarmOptions
from mvad.pipeline.bit_depths import measure_bit_depths
from mvad.pipeline.dataset import extract_features
from mvad.runtime.resources import ActorPool, actor_pool


class SplitScores(NamedTuple):
    """Scores of a category's good images: of those that calibrate, (splits, n), and of fresh ones, (splits, m)."""

    category: str
    calibration: NDArray[np.float32]
    fresh: NDArray[np.float32]


def score_splits(images: pa.Table, network: Network, options: FalseAlarmOptions, report: Reporter) -> list[SplitScores]:
    """Fit to a part of the good images, calibrate by folds, and score the others; once per split."""
    shapes = feature_shapes([find_method(options.method).feature], network.spec, options.size)
    bit_depths = measure_bit_depths(images, options)
    with report.stage("split", len(images)) as stage:
        pool = actor_pool(options.actors, len(images))
        batches = extract_features(images, shapes, network, options.size, options, pool, stage, bit_depths)
        scores = []
        for category in group_by_category(batches, images):
            stage.busy_with(f"{category.category}: {options.splits} splits of {len(category.image_ids)} images")
            scores.append(_of_category(category, options, pool))
    return scores


def _of_category(category: CategoryFeatures, options: FalseAlarmOptions, pool: ActorPool) -> SplitScores:
    features = ray.put(category.features[find_method(options.method).feature])
    n_images = len(category.image_ids)
    n_fresh = max(1, round(options.fresh * n_images))
    held_out = np.empty((options.splits, n_images - n_fresh), np.float32)
    fresh = np.empty((options.splits, n_fresh), np.float32)
    task = ray.remote(score_held_out).options(**pool.task_resources)
    tasks: list[tuple[ray.ObjectRef, NDArray[np.float32], int, NDArray[np.int64] | slice]] = []
    for split in range(options.splits):
        order = np.random.default_rng([options.seed, split]).permutation(n_images)
        others, fitted = order[:n_fresh], np.sort(order[n_fresh:])
        tasks.append((task.remote(options, features, fitted, others), fresh, split, slice(None)))
        for others_in_fold, fold in fold_splits(len(fitted), options.folds, options.seed):
            scores = task.remote(options, features, fitted[others_in_fold], fitted[fold])
            tasks.append((scores, held_out, split, fold))
    for scores, array, split, rows in tasks:
        array[split, rows], _ = ray.get(scores)
    return SplitScores(category.category, held_out, fresh)
