"""The exact search of large memory banks, and the greedy coreset of a million patches, on a GPU."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.gpu.tools import load_network, load_pixels, median_seconds
from mvad.data.image_size import ImageSize
from mvad.features.kinds import PATCHES
from mvad.features.specs import prepare
from mvad.runtime.threads import compute_device
from mvad.search.coreset import ROWS_PER_CHUNK, greedy_coreset, random_projection
from mvad.search.exact_search import ExactSearch
from mvad.search.memory_bank import MemoryBank
from mvad.search.worst_patch import worst_patches

SIDE = 224
BANKS = (("efficientnet_lite0", (16_000, 160_000, 1_000_000)), ("resnet50", (16_000, 160_000)))
N_TRAIN, N_QUERIES, N_ON_CPU = 64, 32, 2  # images
NOISE = 0.1  # of patches that are drawn from the given ones, in deviations of a channel
N_POINTS, PROJECTION, CORESET_SIZES = 1_000_000, 128, (10_000, 100_000)
N_SMALL, SMALL_SIZE = 50_000, 2_000  # of the coreset that the CPU chooses too
LARGE_CHUNK = 1 << 20  # rows that the coreset updates at a time, against its own `ROWS_PER_CHUNK`


def search(task: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One row per bank: images per second of the worst patch and of all patches, and the CPU's results for a few."""
    for backbone, sizes in BANKS:
        rows, queries = _patches(task, backbone)
        for size in sizes:
            vectors = _more(rows, size)
            torch.cuda.empty_cache()
            row = {"backbone": backbone, "bank": size, "channels": vectors.shape[1]}
            yield row | _measure_search(vectors, queries.flatten(1, 2))


def _measure_search(vectors: NDArray[np.float32], patches: Tensor) -> dict[str, Any]:
    torch.cuda.reset_peak_memory_stats()
    prepare_s, on_gpu = _timed(lambda: ExactSearch(MemoryBank(vectors, "cuda")))
    few = patches[:N_ON_CPU]
    worst_s = median_seconds(lambda: worst_patches(on_gpu, patches), 1) / len(patches)
    all_s = median_seconds(lambda: [on_gpu.nearest(image) for image in few], 1) / len(few)
    row = {
        "prepare_seconds": prepare_s,
        "worst_images_per_second": 1 / worst_s,
        "all_images_per_second": 1 / all_s,
        "peak_bytes": torch.cuda.max_memory_allocated(),
    }
    on_cpu = ExactSearch(MemoryBank(vectors))
    found, expected = (
        [worst_patches(where, images)[1:3], *(where.nearest(image) for image in images)]
        for where, images in ((on_gpu, few), (on_cpu, few.cpu()))
    )
    pairs = [
        (ours.cpu(), other) for pair in zip(found, expected, strict=True) for ours, other in zip(*pair, strict=True)
    ]
    row["largest_difference"] = max(float(((ours - other).abs() / other).max()) for ours, other in pairs[::2])
    row["other_neighbours"] = sum(int((ours != other).sum()) for ours, other in pairs[1::2])
    return row


def coreset(task: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One row per size of the coreset and of the chunks; the first is also chosen on the CPU, from fewer patches."""
    rows, _ = _patches(task, "efficientnet_lite0")
    points = random_projection(torch.from_numpy(_more(rows, N_POINTS)).cuda(), PROJECTION, 0)
    few = points[:: N_POINTS // N_SMALL].contiguous()
    greedy_coreset(few, 2)  # a warm-up
    seconds, (centres, radius) = _timed(lambda: greedy_coreset(few, SMALL_SIZE))
    cpu_seconds, (cpu_centres, cpu_radius) = _timed(lambda: greedy_coreset(few.cpu(), SMALL_SIZE))
    yield {
        "patches": len(few),
        "centres": SMALL_SIZE,
        "rows_per_chunk": ROWS_PER_CHUNK,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "same_choices": int((centres == cpu_centres).sum()),
        "radius_difference": abs(radius - cpu_radius) / cpu_radius,
    }
    for size in CORESET_SIZES:
        for chunk in (ROWS_PER_CHUNK, LARGE_CHUNK):
            torch.cuda.reset_peak_memory_stats()
            seconds, (centres, radius) = _timed(functools.partial(greedy_coreset, points, size, rows_per_chunk=chunk))
            row = {"patches": len(points), "centres": len(centres), "rows_per_chunk": chunk, "radius": radius}
            yield row | {"seconds": seconds, "peak_bytes": torch.cuda.max_memory_allocated()}


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    torch.cuda.synchronize()
    started = time.perf_counter()
    result = work()
    torch.cuda.synchronize()
    return time.perf_counter() - started, result


def _patches(task: dict[str, Any], backbone: str) -> tuple[Tensor, Tensor]:
    """Patches of training images, (n, channels), and the features of test images."""
    network, _ = load_network(backbone, Path(task["folder"]))
    extract = prepare([PATCHES], network, ImageSize.square(SIDE), gpus=True).load(compute_device())
    count = min(N_TRAIN, len(task["train"]))
    train = extract(load_pixels(task["train"], SIDE, count))[PATCHES]
    return train.flatten(0, 2), extract(load_pixels(task["test"], SIDE, N_QUERIES))[PATCHES]


def _more(rows: Tensor, count: int) -> NDArray[np.float32]:
    """Draw ``count`` rows: given ones with some noise in each channel."""
    generator = torch.Generator(rows.device).manual_seed(0)
    deviation = rows.std(dim=0) * NOISE
    drawn = torch.randint(len(rows), (count,), generator=generator, device=rows.device)
    noise = torch.randn((count, rows.shape[1]), generator=generator, device=rows.device)
    return (rows[drawn] + noise * deviation).cpu().numpy()
