"""Fit one candidate and score held-out images: runs in a task."""

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import ray
from numpy.typing import NDArray
from PIL import Image

from mvad.anomaly_maps.geometry import anomaly_map
from mvad.data.image_size import ImageSize
from mvad.data.images import ignored_pixels
from mvad.detectors import find_method
from mvad.fitting.tasks import fit_detector
from mvad.options import FitOptions
from mvad.runtime.tensors import as_tensor
from mvad.runtime.threads import worker_device
from mvad.tuning.features import Scored, Sides
from mvad.tuning.figures import Evidence

N_BINS = 512  # of map values: each holds about as many pixels of defects


class Evaluation(NamedTuple):
    """What a task finds out about a candidate."""

    evidence: Evidence
    seconds: float


def evaluate(
    options: FitOptions,
    size: ImageSize,
    grid: Sides,
    fit: Sequence[ray.ObjectRef],
    scored: Sequence[ray.ObjectRef],
) -> Evaluation:
    """Fit a detector to features of good images, and score others with their masks: pieces of an `Extraction`."""
    started = time.perf_counter()
    features = np.concatenate(ray.get(list(fit)))
    state = fit_detector(options, features, np.arange(len(features)))
    del features
    detector, device = find_method(options.method).from_state(state, worker_device()), worker_device()
    scores, maps, masks = [], [], []
    for reference in scored:
        part: Scored = ray.get(reference)
        found = detector.score(as_tensor(part.features, device))
        scores.append(found.image)
        masks.append(np.unpackbits(part.masks, axis=1, count=grid[0] * grid[1]).astype(bool))
        if found.grid is not None:
            maps += [map_on_grid(one, size, grid) for one in found.grid]
    good, defective = pixel_counts(np.stack(maps), np.concatenate(masks), _seen(size, grid))
    return Evaluation(Evidence(np.concatenate(scores), good, defective), time.perf_counter() - started)


def map_on_grid(patch_scores: NDArray[np.float32], size: ImageSize, grid: Sides) -> NDArray[np.float32]:
    """The anomaly map of an image, brought from the size of the model's input to the grid: (pixels,)."""
    whole = Image.fromarray(anomaly_map(patch_scores, size))
    return np.asarray(whole.resize((grid[1], grid[0]), Image.Resampling.BILINEAR)).ravel()


def _seen(size: ImageSize, grid: Sides) -> NDArray[np.bool_]:
    """The cells of the grid that are not ignored."""
    ignored = ignored_pixels(size)
    if ignored is None:
        return np.ones(grid[0] * grid[1], bool)
    resized = Image.fromarray(ignored).resize((grid[1], grid[0]), Image.Resampling.NEAREST)
    return ~np.asarray(resized, bool).ravel()


def pixel_counts(
    maps: NDArray[np.float32], masks: NDArray[np.bool_], seen: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pixels of each image outside and inside of defects, by falling value of the map: (n, bins) each.

    Bins are bounded by quantiles of the values in defects, at which recall changes. ``maps`` and ``masks`` are
    (n, pixels); of ``seen``, (pixels,), only what is True counts.
    """
    values = maps[:, seen][masks[:, seen]]
    quantiles = np.linspace(0, 1, N_BINS + 1)
    edges = np.unique(np.quantile(values, quantiles, method="lower")) if len(values) else np.empty(0)
    good, defective = np.zeros((2, len(maps), len(edges) + 1), np.int64)
    for row, (image, mask) in enumerate(zip(maps[:, seen], masks[:, seen], strict=True)):
        bins = len(edges) - np.searchsorted(edges, image, side="right")
        good[row] = np.bincount(bins[~mask], minlength=len(edges) + 1)
        defective[row] = np.bincount(bins[mask], minlength=len(edges) + 1)
    return good, defective
