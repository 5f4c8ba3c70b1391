"""Greedy k-centre coresets: PatchCore (arXiv 2106.08265), section 3.2 and algorithm 1."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mvad.search.patch_space import Spread
from mvad.search.whitening import PatchSums

CANDIDATES = 128
ROWS_PER_CHUNK = 16_384


class PatchStatistics(NamedTuple):
    """What the space in which patches are compared is learnt from, of some of them; None is not needed."""

    sums: PatchSums | None = None  # to whiten by
    spread: Spread | None = None  # to weigh places by


class ShardCoreset(NamedTuple):
    """The coreset of one shard of the training patches."""

    vectors: NDArray[np.float32]  # (m, d): the patches chosen
    chosen: NDArray[np.int64]  # (m,): their numbers among those of the shard
    n_patches: int  # of the shard
    radius: float  # largest distance of a patch of the shard to the nearest of them, in the projected space
    statistics: PatchStatistics = PatchStatistics()  # of all patches of the shard


def random_projection(
    features: Tensor, dimensions: int, seed: int, transform: Callable[[Tensor], Tensor] = lambda rows: rows
) -> Tensor:
    """Project features at random to fewer dimensions; distances are kept on average (Johnson-Lindenstrauss).

    From (n, d) to (n, dimensions) float32; if ``dimensions`` is 0, or not less than d, features are returned unchanged.
    ``transform`` is applied to rows before they are projected; it does not change their shape.
    """
    width = features.shape[1]
    if not 0 < dimensions < width:
        return transform(features)
    matrix = np.random.default_rng(seed).standard_normal((width, dimensions)) / np.sqrt(dimensions)
    projection = torch.from_numpy(matrix.astype(np.float32)).to(features.device)
    projected = features.new_empty((len(features), dimensions))
    # In chunks: for a single product of all rows, the library would pack a copy of the features.
    for rows, out in zip(features.split(ROWS_PER_CHUNK), projected.split(ROWS_PER_CHUNK), strict=True):
        torch.matmul(transform(rows), projection, out=out)
    return projected


def greedy_coreset(
    points: Tensor, size: int, candidates: int = CANDIDATES, rows_per_chunk: int = ROWS_PER_CHUNK
) -> tuple[NDArray[np.int64], float]:
    """Choose the points that greedy k-centre chooses, many per step.

    Greedy k-centre starts with the point farthest from the mean, then repeatedly adds the point farthest from all
    points chosen so far. Distances to the chosen points never grow. So greedy can run among the ``candidates`` farthest
    points alone, as long as its next choice is at least as far as the farthest point outside of them: each such choice
    is the one that plain greedy makes. All other points are then updated in one matrix product per step, instead of one
    per choice. The result is that of plain greedy, up to ties between float distances.

    Parameters
    ----------
    points : (n, d) float32, on any device
    size
        Number of points to choose; fewer are returned once every remaining point is a copy of a chosen one.
    candidates, rows_per_chunk
        Points considered per step, and rows updated at a time, so that they stay in cache; they affect speed only.

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
    for rows, out in zip(points.split(rows_per_chunk), from_mean.split(rows_per_chunk), strict=True):
        torch.linalg.vector_norm(rows - mean, dim=1, out=out)
    first = torch.argmax(from_mean)[None]
    chosen = first.tolist()
    distances = torch.full((count,), torch.inf, device=points.device)  # squared, to the nearest chosen point
    _lower_distances(distances, points, norms, first, rows_per_chunk)
    candidates = min(candidates, count)
    while len(chosen) < size:
        values, indices = torch.topk(distances, min(candidates + 1, count))
        if values[0] <= 0:
            break
        farthest_outside = float(values[candidates]) if len(values) > candidates else 0.0
        picks = _greedy_among(
            points[indices[:candidates]], values[:candidates], farthest_outside, max_picks=size - len(chosen)
        )
        new = indices[torch.tensor(picks, device=points.device)]
        chosen.extend(new.tolist())
        _lower_distances(distances, points, norms, new, rows_per_chunk)
    return np.array(chosen, dtype=np.int64), float(distances.max().clamp_min(0).sqrt())


def _greedy_among(points: Tensor, distances: Tensor, lower_bound: float, max_picks: int) -> list[int]:
    """Run plain greedy among a few points until the farthest is nearer than ``lower_bound`` (squared)."""
    between = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").square_().cpu().numpy()
    remaining = distances.cpu().numpy().copy()
    picks: list[int] = []
    while len(picks) < max_picks:
        farthest = int(remaining.argmax())
        if remaining[farthest] <= 0 or (picks and remaining[farthest] < lower_bound):
            break
        picks.append(farthest)
        np.minimum(remaining, between[farthest], out=remaining)
        remaining[farthest] = 0
    return picks


def _lower_distances(distances: Tensor, points: Tensor, norms: Tensor, new: Tensor, rows_per_chunk: int) -> None:
    """Lower ``distances`` to those from the points ``new``."""
    centres = points[new].T.contiguous()
    centre_norms = norms[new]
    for start in range(0, len(points), rows_per_chunk):
        chunk = slice(start, start + rows_per_chunk)
        # |x - c|^2 = |x|^2 + (|c|^2 - 2 x.c); the bracket is minimised over the centres before |x|^2 is added.
        nearest = torch.addmm(centre_norms, points[chunk], centres, alpha=-2).amin(dim=1)
        torch.minimum(distances[chunk], nearest.add_(norms[chunk]), out=distances[chunk])
    distances[new] = 0
