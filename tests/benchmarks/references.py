"""mvad's exact algorithms against the plain ones that they must agree with, on the same features."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from benchmarks.case import time_runs
from mvad.detectors import PatchCore
from mvad.fitting.sharding import OVERSAMPLING
from mvad.runtime.tensors import as_tensor
from mvad.search.coreset import greedy_coreset, random_projection
from mvad.search.exact_search import ExactSearch
from mvad.search.memory_bank import MemoryBank
from mvad.search.worst_patch import worst_patches

PROJECTION = 128  # dimensions of the space in which coresets are chosen
SHARD_COUNTS = (1, 4, 16)
MAX_PLAIN_CENTRES = 300  # plain greedy is timed over these: every centre takes the same time


def plain_greedy(points: Tensor, size: int) -> tuple[list[int], float]:
    """Choose a greedy k-centre coreset one centre per step; return the choice and the seconds per centre."""
    centres = [int(torch.linalg.vector_norm(points - points.mean(dim=0), dim=1).argmax())]
    distances = torch.linalg.vector_norm(points - points[centres[0]], dim=1)
    started = time.perf_counter()
    while len(centres) < size:
        centres.append(int(distances.argmax()))
        torch.minimum(distances, torch.linalg.vector_norm(points - points[centres[-1]], dim=1), out=distances)
    return centres, (time.perf_counter() - started) / max(1, size - 1)


def compare_coresets(features: Tensor, ratio: float, projection: int = PROJECTION) -> dict[str, Any]:
    """Compare the batched greedy coreset with plain greedy: seconds of both, and how many choices agree.

    Plain greedy is timed over its first choices; its total follows from that.
    """
    points = random_projection(features.flatten(0, 2), projection, 0)
    size = max(2, round(ratio * len(points)))
    plain, seconds_per_centre = plain_greedy(points, min(MAX_PLAIN_CENTRES, size))
    started = time.perf_counter()
    centres, _ = greedy_coreset(points, size)
    seconds = time.perf_counter() - started
    n_same = sum(int(one == other) for one, other in zip(plain, centres.tolist(), strict=False))
    return {
        "patches": len(points),
        "centres": size,
        "seconds": seconds,
        "other_seconds": seconds_per_centre * size,
        "same_choices": f"{n_same} of {len(plain)}",
    }


def compare_searches(features: Tensor, bank: MemoryBank, repeats: int) -> dict[str, Any]:
    """Compare the search for the worst patch with a search for every patch: seconds per image, largest difference."""
    patches = features.flatten(1, 2)
    search = ExactSearch(bank)
    exact_s = _median_seconds(lambda: worst_patches(search, patches), repeats) / len(patches)
    sample = patches[:: max(1, len(patches) // 8)]
    full_s = _median_seconds(lambda: [bank.search(rows, 1) for rows in sample], repeats) / len(sample)
    expected = torch.tensor([bank.search(rows, 1)[0].max() for rows in sample])
    return {
        "bank": len(bank),
        "patches": patches.shape[1],
        "seconds": exact_s,
        "other_seconds": full_s,
        "largest_difference": float((worst_patches(search, sample).distance.cpu() - expected).abs().max()),
    }


def compare_shards(features: Tensor, test: Tensor, labels: Sequence[int], ratio: float) -> list[dict[str, Any]]:
    """Compare banks merged from coresets of shards, as under a memory limit, with the exact coreset of all patches.

    Returns
    -------
    One row per number of shards: the ``vectors`` of the bank, its covering ``radius`` (largest distance of a patch to
    the nearest vector, in the projected space), the ``bound`` on it that the model records, and the image ``auroc``
    (None if all labels are alike).
    """
    patches = random_projection(features.flatten(0, 2), PROJECTION, 0)
    rows = []
    for count in (count for count in SHARD_COUNTS if count <= len(features)):
        detector = PatchCore(coreset_ratio=ratio)
        if count == 1:
            detector.fit(features)
        else:
            shards = features.split(math.ceil(len(features) / count))
            shard_ratio = min(1.0, OVERSAMPLING * ratio)
            detector.fit_shards([detector.summarise(shard, shard_ratio) for shard in shards], len(patches))
        bank = random_projection(as_tensor(detector.bank.vectors), PROJECTION, 0)
        distances, _ = ExactSearch(MemoryBank(bank.numpy())).nearest(patches)
        row = {"shards": count, "vectors": len(bank), "radius": float(distances.max()), "bound": detector.coverage}
        scores = [float(detector.image_scores(image[None])[0]) for image in test]
        rows.append({**row, "auroc": float(roc_auc_score(labels, scores)) if len(set(labels)) > 1 else None})
    return rows


def _median_seconds(work: Callable[[], Any], repeats: int) -> float:
    work()
    return statistics.median(time_runs(work, repeats))
