"""Our exact algorithms against the plain ones that they must agree with, on the same features."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from mvad.detectors import PatchCore
from mvad.fitting.sharding import KEPT_BEYOND
from mvad.runtime.tensors import as_tensor
from mvad.search.coreset import greedy_coreset, random_projection
from mvad.search.exact_search import ExactSearch
from mvad.search.memory_bank import MemoryBank
from mvad.search.worst_patch import worst_patches

PROJECTION = 128  # dimensions that coresets are chosen in
SHARDS = (1, 4, 16)
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


def compare_coresets(features: Tensor, ratio: float, projection: int = PROJECTION) -> dict[str, Any]:
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
        "other_seconds": each * size,
        "same_choices": f"{same} of {len(plain)}",
    }


def compare_searches(features: Tensor, bank: MemoryBank, repeats: int) -> dict[str, Any]:
    """The pruned search for the farthest patch against comparing all: seconds an image, and the largest difference."""
    patches = features.flatten(1, 2)
    search = ExactSearch(bank)
    pruned = _median(lambda: worst_patches(search, patches), repeats) / len(patches)
    few = patches[:: max(1, len(patches) // 8)]
    full = _median(lambda: [bank.search(rows, 1) for rows in few], repeats) / len(few)
    exact = torch.tensor([bank.search(rows, 1)[0].max() for rows in few])
    return {
        "bank": len(bank),
        "patches": patches.shape[1],
        "seconds": pruned,
        "other_seconds": full,
        "largest_difference": float((worst_patches(search, few).distance.cpu() - exact).abs().max()),
    }


def compare_shards(features: Tensor, test: Tensor, labels: Sequence[int], ratio: float) -> list[dict[str, Any]]:
    """Banks merged from coresets of shards, as a memory limit makes them, against the exact coreset of all patches.

    Returns
    -------
    A row a number of shards: the ``vectors`` of the bank, its ``radius`` (largest distance of a patch to the nearest of
    them, in the projected space), the ``bound`` on it that the model records, and the image AUROC (``auroc``, None if
    the labels are all alike).
    """
    patches = random_projection(features.flatten(0, 2), PROJECTION, 0)
    rows = []
    for count in (count for count in SHARDS if count <= len(features)):
        detector = PatchCore(coreset_ratio=ratio)
        if count == 1:
            detector.fit(features)
        else:
            parts = features.split(math.ceil(len(features) / count))
            size = max(1, round(ratio * len(patches)))
            detector.fit_shards([detector.subsample(part, min(1.0, KEPT_BEYOND * ratio)) for part in parts], size)
        bank = random_projection(as_tensor(detector.bank.vectors), PROJECTION, 0)
        distances, _ = ExactSearch(MemoryBank(bank.numpy())).nearest(patches)
        row = {"shards": count, "vectors": len(bank), "radius": float(distances.max()), "bound": detector.coverage}
        scores = [float(detector.image_scores(image[None])[0]) for image in test]
        rows.append({**row, "auroc": float(roc_auc_score(labels, scores)) if len(set(labels)) > 1 else None})
    return rows
