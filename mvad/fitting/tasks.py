"""What runs in Ray tasks: fitting a detector, scoring held-out images, extending, pretraining, shards.

PyTorch is imported where it is used: the driver, which starts the tasks, need not import it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import ray
from numpy.typing import NDArray

from mvad.data.image_size import ImageSize
from mvad.detectors import Detector, Extendable, LeaveOneOut, Pretrained, Shardable, State, find_method
from mvad.features.known import layer_channels
from mvad.fitting.jobs import resolve_backbone
from mvad.options import MethodOptions
from mvad.runtime.tensors import as_tensor
from mvad.runtime.threads import Threads, compute_device, worker_device
from mvad.scoring.held_out import HELD_OUT_COLUMNS, HeldOut, held_out_scores

Features = NDArray[np.float32]
Rows = NDArray[np.int64]


class Extension(NamedTuple):
    """A detector that has learnt from more images, and scores of some images by it and by what it was before."""

    state: State
    held_out: HeldOut
    scores_before: Features


def fit_detector(
    options: MethodOptions,
    features: Features,
    rows: Rows,
    prior: State | None = None,
    *,
    groups: Rows | None = None,
    share: float = 0.0,
) -> State:
    """Fit a method to some rows of the features of good images; ``prior`` is what `pretrain_detector` learnt.

    ``groups`` are those of the images, for a `LeaveOneOut` method; None if each image is a group of its own.

    It uses this ``share`` of the machine's cores, or one of them; methods of `Detector.one_core` always use one.
    """
    detector = _unfitted(options, options.rows_per_image)
    if prior is not None:
        assert isinstance(detector, Pretrained)
        detector.restore(prior, worker_device())
    if isinstance(detector, LeaveOneOut):
        detector.groups = groups
    return _fit(detector, features, rows, share)


def _fit(detector: Detector, features: Features, rows: Rows, share: float = 0.0) -> State:
    started, device = time.perf_counter(), worker_device()
    if share and not detector.one_core:
        import faiss
        import torch

        torch.set_num_threads(_threads(share))
        faiss.omp_set_num_threads(_threads(share))
    everything = np.array_equal(rows, np.arange(len(features)))
    detector.fit(as_tensor(features if everything else features[rows], device))
    return detector.state._replace(seconds=time.perf_counter() - started)


def _threads(share: float) -> int:
    """How many threads use a share of the machine's cores: one at least."""
    return max(1, int((os.cpu_count() or 1) * share))


def fit_and_leave_out(
    options: MethodOptions,
    features: Features,
    rows: Rows,
    groups: Rows,
    size: ImageSize | None = None,
    *,
    share: float = 0.0,
) -> tuple[State, HeldOut]:
    """Fit a method of which `leaves_out_rows` is true, and score each image as if none of its group were there.

    ``rows`` are those of each image of ``groups`` and its variants; without the ``size`` of the input no maps. Where
    the others have no vector in the bank, another one is chosen from them.
    """
    detector = _unfitted(options, options.rows_per_image)
    state = _fit(detector, features, rows, share)

    def fit_without(others: Rows) -> Detector:
        other = _unfitted(options, options.rows_per_image)
        _fit(other, features, others)
        return other

    return state, _left_out_scores(detector, fit_without, features, rows, groups, size, share)


def _left_out_scores(
    detector: Detector,
    fit_without: Callable[[Rows], Detector],
    features: Features,
    rows: Rows,
    groups: Rows,
    size: ImageSize | None,
    share: float = 0.0,
) -> HeldOut:
    """Score each image as if none of its group were among those that a detector has just learnt from.

    Rows are those of each image of ``groups`` and its variants. ``fit_without`` learns from other rows, where the
    detector cannot do without some.
    """
    assert isinstance(detector, Shardable)
    started = time.perf_counter()
    of_image = rows.reshape(len(groups), -1)
    device = compute_device()
    row_groups = np.repeat(groups, of_image.shape[1])
    columns = np.empty((len(groups), HELD_OUT_COLUMNS), np.float32)

    def score(group: int) -> None:
        try:
            others: Detector = detector.without(detector.origins, np.flatnonzero(row_groups == group).tolist())
        except ValueError:
            others = fit_without(rows[row_groups != group])
        members = np.flatnonzero(groups == group)
        columns[members] = held_out_scores(others, as_tensor(features[of_image[members, 0]], device), size).columns

    held_out_scores(detector, as_tensor(features[:1], device), None)  # prepares what the threads share
    Threads(_threads(share)).map(score, range(int(groups.max()) + 1))
    return HeldOut.of(columns, time.perf_counter() - started)


def score_left_out(
    options: MethodOptions, features: Features, rows: Rows, groups: Rows, left_out: Rows, others: Rows
) -> HeldOut:
    """Scores of some of the images of a fit, each left out of it as by `fit_and_leave_out`, and of other images.

    ``left_out`` are numbers of ``rows``, and ``others`` are rows.
    """
    state, held_out = fit_and_leave_out(options, features, rows, groups)
    scores = held_out.scores[left_out], score_images(options.method, state, features, others)
    return HeldOut(np.concatenate(scores), None)


def score_held_out(
    options: MethodOptions,
    features: Features,
    rows: Rows,
    held_out: Rows,
    prior: State | None = None,
    size: ImageSize | None = None,
) -> HeldOut:
    """Fit a method to some rows of the features, and score others; without the ``size`` of the input no maps."""
    started = time.perf_counter()
    state = fit_detector(options, features, rows, prior)
    images = as_tensor(features[held_out], worker_device())
    found = held_out_scores(_detector(options.method, state), images, size)
    return found._replace(seconds=time.perf_counter() - started)


def extend_detector(
    method: str,
    state: State,
    features: Features,
    rows: Rows,
    others: Rows,
    groups: Rows | None = None,
    size: ImageSize | None = None,
) -> Extension:
    """Extend a fitted detector by some rows of the features, and score others before and after; no maps without size.

    ``groups`` are those of all its images, old and new, for a `LeaveOneOut` method.
    """
    return _extend(method, state, features, rows, others, groups, size)[0]


def extend_and_leave_out(
    method: str, state: State, features: Features, rows: Rows, others: Rows, groups: Rows, size: ImageSize
) -> tuple[Extension, HeldOut]:
    """Extend a fitted detector, as `extend_detector` does, and score each new image as if its group were not there.

    ``groups`` are those of the new images; others are scored without maps. For a method of which `leaves_out_rows` is
    true.
    """
    extension, detector = _extend(method, state, features, rows, others)

    def extend_without(kept: Rows) -> Detector:
        return _extend(method, state, features, kept, others[:0])[1]

    return extension, _left_out_scores(detector, extend_without, features, rows, groups, size)


def _extend(
    method: str,
    state: State,
    features: Features,
    rows: Rows,
    others: Rows,
    groups: Rows | None = None,
    size: ImageSize | None = None,
) -> tuple[Extension, Detector]:
    started = time.perf_counter()
    detector, device = _detector(method, state), worker_device()
    assert isinstance(detector, Extendable)
    images = as_tensor(features[others], device)
    before = detector.image_scores(images) if len(others) else np.empty(0, np.float32)
    if isinstance(detector, LeaveOneOut):
        detector.groups = groups
    detector.extend(as_tensor(features[rows], device))
    after = held_out_scores(detector, images, size) if len(others) else HeldOut(np.empty(0, np.float32), None)
    state = detector.state._replace(seconds=time.perf_counter() - started)
    return Extension(state, after, before), detector


def score_images(method: str, state: State, features: Features, rows: Rows) -> Features:
    """Score some rows of the features by a fitted detector: (n,)."""
    return _detector(method, state).image_scores(as_tensor(features[rows], worker_device()))


def pretrain_detector(options: MethodOptions, samples: Sequence[Features]) -> State:
    """Learn what a `Pretrained` method can learn from other categories: features of some good images of each."""
    started = time.perf_counter()
    detector = _unfitted(options, options.rows_per_image)
    assert isinstance(detector, Pretrained)
    detector.pretrain([as_tensor(sample, worker_device()) for sample in samples])
    return detector.state._replace(seconds=time.perf_counter() - started)


def summarise_shard(options: MethodOptions, features: Features, rows: Rows, share: float) -> tuple[Any, float]:
    """What a method keeps of some rows of a shard's features: `Shardable.summarise`, and seconds."""
    started = time.perf_counter()
    detector = _unfitted(options)
    assert isinstance(detector, Shardable)
    everything = len(rows) == len(features)
    summary = detector.summarise(as_tensor(features if everything else features[rows], worker_device()), share)
    return summary, time.perf_counter() - started


class FittedShards(NamedTuple):
    """A detector fitted to shards; what it gives held-out images; and the rest of what it knows, see `Shardable`."""

    state: State
    held_out: HeldOut | None
    origins: Any
    shortfall: str | None


def fit_to_shards(
    options: MethodOptions,
    n_patches: int,
    held_out: Sequence[ray.ObjectRef],
    summaries: Sequence[ray.ObjectRef],
    input_size: ImageSize | None,
    folds: Rows | None = None,
) -> FittedShards:
    """Fit a method to the summaries of all shards, of so many patches, and score the held-out features.

    ``held_out`` and ``summaries`` refer to what is in the shards' order; ``folds`` are for `Shardable.fit_shards`.
    """
    started = time.perf_counter()
    detector, device = _unfitted(options), worker_device()
    assert isinstance(detector, Shardable)
    detector.fit_shards(map(ray.get, summaries), n_patches, device, folds)
    state = detector.state._replace(seconds=time.perf_counter() - started)
    if not held_out:
        return FittedShards(state, None, detector.origins, detector.shortfall)
    found = [held_out_scores(detector, as_tensor(ray.get(one), device), input_size) for one in held_out]
    held_out_of_all = HeldOut.of(np.concatenate([one.columns for one in found]))
    return FittedShards(state, held_out_of_all, detector.origins, detector.shortfall)


def _unfitted(options: MethodOptions, copies: int = 1) -> Detector:
    detector = find_method(options.method).from_options(options, copies)
    if detector.tells_layers_apart:
        detector.channels = layer_channels(resolve_backbone(options))
    return detector


def _detector(method: str, state: State) -> Detector:
    return find_method(method).from_state(state, worker_device())
