"""What thresholds keep of their promise: the false-alarm rates they achieve, over random splits of good images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow.compute as pc
import ray
from numpy.typing import NDArray
from scipy import stats

from mvad import calibration, storage
from mvad.console import Reporter
from mvad.data.manifest import read_manifest
from mvad.detectors import Pretrained, find_method
from mvad.errors import UsageError
from mvad.features.extractor import feature_shapes
from mvad.features.weights import Network
from mvad.fitting.by_category import CategoryFeatures, group_by_category
from mvad.options import FalseAlarmOptions
from mvad.pipeline import flow as pipeline
from mvad.pipeline.actors import score_held_out
from mvad.runtime.session import ActorPool, actor_pool, ray_session


def false_alarms(data: str, **options: Any) -> list[dict[str, Any]]:
    """Fit and calibrate on a random part of the good images, count false alarms in the rest; again and again.

    Options as in `options.FalseAlarmOptions`. Good images are those of train/good and test/good; defective ones have
    no part in it.

    Returns
    -------
    A row a category and rate: ``rate`` asked for, ``n`` calibration and ``n_fresh`` other images of a split. Of the
    achieved rates their ``mean`` and its 95 % interval, ``low`` to ``high`` (Student's t over the splits, which share
    images and so are not quite independent), the ``smallest`` and the ``largest``. For the conformal rule, the rate it
    promises (``expected``), and ``expected_low`` to ``expected_high``, within which 90 % of the splits should lie:
    beta-binomial, of calibration sets and fresh images of these sizes.

    Raises
    ------
    UsageError
        Unusable input or an unknown name.
    """
    chosen = FalseAlarmOptions(**options)
    report = Reporter(chosen.quiet)
    method, spec = find_method(chosen.method), pipeline.resolve_backbone(chosen)
    if issubclass(method, Pretrained) or chosen.folds < 2:
        raise UsageError("false-alarms is for methods that fit a category by itself, with --folds of 2 or more.")
    manifest = read_manifest(data, chosen)
    images = manifest.table.filter(pc.equal(manifest.table["label"], 0))
    if not len(images):
        raise UsageError(f"no good images under {storage.readable(manifest.root)}.")
    network = Network.load(spec, chosen.weights)
    shapes = feature_shapes([method.feature], spec, chosen.size)
    rows = []
    with ray_session(chosen.address, chosen.actors, report.line), report.stage("split", len(images)) as stage:
        pool = actor_pool(chosen.actors, len(images))
        batches = pipeline.extracted(images, shapes, network, chosen.size, chosen, pool, stage)
        for category in group_by_category(batches, images):
            stage.busy_with(f"{category.name}: {chosen.splits} splits of {len(category.kept)} images")
            rows += _achieved(category, chosen, pool)
    report.false_alarms(rows)
    return rows


def _achieved(category: CategoryFeatures, options: FalseAlarmOptions, pool: ActorPool) -> list[dict[str, Any]]:
    features = ray.put(category.features[find_method(options.method).feature])
    count = len(category.kept)
    n_fresh = max(1, round(options.fresh * count))
    task = ray.remote(score_held_out).options(**pool.task_resources)
    waiting: dict[ray.ObjectRef, tuple[int, NDArray[np.int64] | None]] = {}
    own = np.empty((options.splits, count - n_fresh), np.float32)  # calibration scores
    fresh = np.empty((options.splits, n_fresh), np.float32)
    for split in range(options.splits):
        order = np.random.default_rng([options.seed, split]).permutation(count)
        others, known = order[:n_fresh], np.sort(order[n_fresh:])
        waiting[task.remote(options, features, known, others)] = split, None
        for rest, held_out in calibration.fold_splits(len(known), options.folds, options.seed):
            waiting[task.remote(options, features, known[rest], known[held_out])] = split, held_out
    while waiting:
        (done,), _ = ray.wait(list(waiting), num_returns=1)
        split, places = waiting.pop(done)
        scores, _ = ray.get(done)
        if places is None:
            fresh[split] = scores
        else:
            own[split, places] = scores
    return [{"category": category.name, **achieved(own, fresh, rate, options)} for rate in options.rates_asked]


def achieved(
    own: NDArray[np.float32], fresh: NDArray[np.float32], rate: float, options: FalseAlarmOptions
) -> dict[str, Any]:
    """Achieved rates of one threshold rule.

    Parameters
    ----------
    own : (splits, n) calibration scores
    fresh : (splits, m) scores of good images that no model has seen
    """
    rule = options.threshold_rule or find_method(options.method).default_rule
    thresholds = [calibration.threshold(scores, rule, rate) for scores in own]
    rates = np.array([(scores > limit).mean() for scores, limit in zip(fresh, thresholds, strict=True)])
    row: dict[str, Any] = {"rule": rule, "rate": rate, "n": own.shape[1], "n_fresh": fresh.shape[1]}
    row |= {"splits": len(rates), "mean": float(rates.mean())}
    half = (
        float(stats.t.ppf(0.975, len(rates) - 1) * rates.std(ddof=1) / np.sqrt(len(rates))) if len(rates) > 1 else 0.0
    )
    row |= {"low": max(0.0, row["mean"] - half), "high": row["mean"] + half}
    row |= {"smallest": float(rates.min()), "largest": float(rates.max())}
    return row | (_expected(row) if rule == "conformal" else {})


def _expected(row: Mapping[str, Any]) -> dict[str, float]:
    """Between which rates 90 % of the splits should lie, and their mean, if all good images are exchangeable."""
    n, m = row["n"], row["n_fresh"]
    flagged = n + 1 - calibration.rank(n, row["rate"])  # calibration scores at or above the threshold
    law = stats.betabinom(m, flagged, n + 1 - flagged)
    low, high = (float(law.ppf(share) / m) for share in (0.05, 0.95))
    return {"expected": flagged / (n + 1), "expected_low": low, "expected_high": high}
