"""Greedy k-centre coresets: PatchCore (arXiv 2106.08265), section 3.2 and algorithm 1."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CANDIDATES = 128
ROWS = 16_384


def random_projection(features: Tensor, dimensions: int, seed: int) -> Tensor:
    """Project features at random to fewer dimensions, distances kept on average (Johnson-Lindenstrauss).

    Parameters
    ----------
    features : (n, d) float32
    dimensions
        0, or not fewer than d: the features are returned as they are.

    Returns
    -------
    (n, dimensions) float32
    """
    width = features.shape[1]
    if not 0 < dimensions < width:
        return features
    matrix = np.random.default_rng(seed).standard_normal((width, dimensions)) / np.sqrt(dimensions)
    projection = torch.from_numpy(matrix.astype(np.float32)).to(features.device)
    found = features.new_empty((len(features), dimensions))
    # A stretch of rows at a time: for one product of all, the library packs a copy of the features.
    for rows, into in zip(features.split(ROWS), found.split(ROWS), strict=True):
        torch.matmul(rows, projection, out=into)
    return found


def greedy_coreset(points: Tensor, size: int, candidates: int = CANDIDATES) -> tuple[NDArray[np.int64], float]:
    """Choose the points that greedy k-centre chooses, many a step.

    Greedy takes, again and again, the point farthest from all chosen ones; it starts with the one farthest from the
    mean. Distances to the chosen set only ever fall, so among the ``candidates`` farthest points greedy can be run on
    its own for as long as the next choice is not nearer than the farthest point outside: each of those choices is the
    one that plain greedy makes, and all other points are then updated in one matrix product instead of one a choice.
    The result is that of plain greedy up to ties between float distances.

    Parameters
    ----------
    points : (n, d) float32, on any device
    size
        Number of points to choose; fewer are returned if every point is a copy of a chosen one before that.

    Returns
    -------
    indices : (size,) int64
        In the order chosen; the first m of them are a greedy coreset of size m.
    radius
        Largest distance of a point to its nearest chosen one.
    """
    count = len(points)
    size = min(size, count)
    norms = torch.linalg.vector_norm(points, dim=1).square_()
    mean, from_mean = points.mean(dim=0), torch.empty_like(norms)
    for rows, into in zip(points.split(ROWS), from_mean.split(ROWS), strict=True):
        torch.linalg.vector_norm(rows - mean, dim=1, out=into)
    start = int(torch.argmax(from_mean))
    chosen = [start]
    distances = torch.full((count,), torch.inf, device=points.device)  # squared, to the nearest chosen point
    _update(distances, points, norms, torch.tensor([start], device=points.device))
    width = min(candidates, count)
    while len(chosen) < size:
        values, places = torch.topk(distances, min(width + 1, count))
        if values[0] <= 0:
            break
        bound = float(values[width]) if len(values) > width else 0.0
        picks = _greedy_among(points[places[:width]], values[:width], bound, size - len(chosen))
        new = places[torch.tensor(picks, device=points.device)]
        chosen.extend(new.tolist())
        _update(distances, points, norms, new)
    return np.array(chosen, dtype=np.int64), float(distances.max().clamp_min(0).sqrt())


def _greedy_among(points: Tensor, distances: Tensor, bound: float, most: int) -> list[int]:
    """Plain greedy among a few points, until the farthest is nearer than ``bound`` (squared) or none is left."""
    between = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").square_().cpu().numpy()
    left = distances.cpu().numpy().copy()
    picks: list[int] = []
    while len(picks) < most:
        farthest = int(left.argmax())
        if left[farthest] <= 0 or (picks and left[farthest] < bound):
            break
        picks.append(farthest)
        np.minimum(left, between[farthest], out=left)
        left[farthest] = 0
    return picks


def _update(distances: Tensor, points: Tensor, norms: Tensor, new: Tensor) -> None:
    """Lower ``distances`` to those from the points ``new``, a stretch of rows at a time to stay in cache."""
    centres = points[new].T.contiguous()
    centre_norms = norms[new]
    for start in range(0, len(points), ROWS):
        stretch = slice(start, start + ROWS)
        # |x - c|^2 = |x|^2 + (|c|^2 - 2 x.c), the part without |x|^2 minimised over the centres.
        nearest = torch.addmm(centre_norms, points[stretch], centres, alpha=-2).amin(dim=1)
        torch.minimum(distances[stretch], nearest.add_(norms[stretch]), out=distances[stretch])
    distances[new] = 0


@dataclass
class ShardCoreset:
    """What a shard of the training patches is condensed to.

    Attributes
    ----------
    vectors : (m, d) float32
        A coreset of its patches.
    radius
        Largest distance of one of its patches to the nearest of them, in the projected space.
    """

    vectors: NDArray[np.float32]
    radius: float
