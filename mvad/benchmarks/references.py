"""Our exact algorithms against the plain ones that they must agree with, on the same features."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mvad.coreset import greedy_coreset, random_projection
from mvad.farthest import farthest_patches
from mvad.neighbours import MemoryBank
from mvad.pruned import PrunedSearch

CENTRES = 300  # that plain greedy chooses: what it takes is the same for each


def plain_greedy(points: Tensor, size: int) -> tuple[list[int], float]:
    """Greedy k-centre, one centre a step: its choice, and the seconds a centre."""
    chosen = [int(torch.linalg.vector_norm(points - points.mean(dim=0), dim=1).argmax())]
    distances = torch.linalg.vector_norm(points - points[chosen[0]], dim=1)
    started = time.perf_counter()
    while len(chosen) < size:
        chosen.append(int(distances.argmax()))
        torch.minimum(distances, torch.linalg.vector_norm(points - points[chosen[-1]], dim=1), out=distances)
    return chosen, (time.perf_counter() - started) / max(1, size - 1)


def _median(work: Callable[[], Any], repeats: int) -> float:
    work()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def compare_coresets(features: Tensor, ratio: float, projection: int) -> dict[str, Any]:
    """The batched greedy coreset against plain greedy: seconds, the ratio, and whether they choose alike.

    Plain greedy is timed over its first choices, and what all would take follows from that.
    """
    points = random_projection(features.flatten(0, 2), projection, 0)
    size = max(2, round(ratio * len(points)))
    plain, each = plain_greedy(points, min(CENTRES, size))
    started = time.perf_counter()
    chosen, _ = greedy_coreset(points, size)
    seconds = time.perf_counter() - started
    same = sum(int(one == other) for one, other in zip(plain, chosen.tolist(), strict=False))
    return {
        "patches": len(points),
        "centres": size,
        "seconds": seconds,
        "plain_seconds": each * size,
        "ratio": each * size / seconds,
        "same_choices": f"{same} of {len(plain)}",
    }


def compare_searches(features: Tensor, bank: MemoryBank, repeats: int) -> dict[str, Any]:
    """The pruned search for the farthest patch against comparing all: seconds an image, and the largest difference."""
    patches = features.flatten(1, 2)
    search = PrunedSearch(bank)
    pruned = _median(lambda: farthest_patches(search, patches), repeats) / len(patches)
    few = patches[:: max(1, len(patches) // 8)]
    full = _median(lambda: [bank.search(rows, 1) for rows in few], repeats) / len(few)
    exact = torch.tensor([bank.search(rows, 1)[0].max() for rows in few])
    return {
        "bank": len(bank),
        "patches": patches.shape[1],
        "seconds": pruned,
        "full_seconds": full,
        "ratio": full / pruned,
        "largest_difference": float((farthest_patches(search, few).distance.cpu() - exact).abs().max()),
    }
