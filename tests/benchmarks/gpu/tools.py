"""What the stages share: networks, pixels, timing and memory of a GPU."""

from __future__ import annotations

import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.case import MAX_PIXELS, write_weights
from mvad.data.image_size import ImageSize
from mvad.data.images import load_image
from mvad.features.backbones import describe
from mvad.features.weights import Network

CASES = [("efficientnet_lite0", 224), ("resnet50", 224), ("resnet50", 448), ("efficientnet_lite0", 448)]
MIN_TIMED_S = 0.05  # per series of calls
SAMPLE_INTERVAL_MS = 100  # between samples of the card


def load_network(backbone: str, folder: Path) -> tuple[Network, Path]:
    """Return the network and the file of its weights: packaged, or seeded at random."""
    spec = describe(backbone)
    path = folder / f"{backbone}.pth"
    if not path.exists():
        write_weights(spec, path)
    return Network.load(spec, str(path)), path


def load_pixels(uris: Sequence[str], side: int, count: int) -> NDArray[np.uint8]:
    """Decode ``count`` images, repeated if there are fewer: (count, side, side, 3) uint8."""
    size = ImageSize.square(side)
    images = [load_image(uri, size, MAX_PIXELS)[0] for uri in uris[:count]]
    return np.stack([images[number % len(images)] for number in range(count)])


def median_seconds(work: Callable[[], Any], repeats: int = 3) -> float:
    """Median seconds per call, of several series of calls after a warm-up; the GPU's work is waited for."""
    work()
    torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    torch.cuda.synchronize()
    calls = max(1, round(MIN_TIMED_S / max(time.perf_counter() - started, 1e-6)))
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        for _ in range(calls):
            work()
        torch.cuda.synchronize()
        seconds.append((time.perf_counter() - started) / calls)
    return statistics.median(seconds)


def largest_difference(ours: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, as a share of the largest expected value."""
    return float((ours.cpu().float() - expected).abs().max() / expected.abs().max())


class Card:
    """Largest memory in use on the card, in bytes, and the mean share of time that it computed."""

    def __init__(self) -> None:
        self.memory, self.busy = 0, 0.0


@contextmanager
def watched_card() -> Iterator[Card]:
    """Watch the card, whichever processes use it, by ``nvidia-smi``; its numbers are there when the block ends."""
    query = [
        "--query-gpu=utilization.gpu,memory.used",
        "--format=csv,noheader,nounits",
        "-lms",
        str(SAMPLE_INTERVAL_MS),
    ]
    card = Card()
    samples: list[str] = []
    process = subprocess.Popen(["nvidia-smi", "-i", "0", *query], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    thread = threading.Thread(target=lambda: samples.extend(process.stdout or ()), daemon=True)
    thread.start()
    try:
        yield card
    finally:
        process.terminate()
        thread.join()
        numbers = [tuple(map(float, line.split(","))) for line in samples if line.count(",") == 1]
        if numbers:
            card.busy = statistics.mean(busy for busy, _ in numbers) / 100
            card.memory = int(max(memory for _, memory in numbers) * 2**20)
