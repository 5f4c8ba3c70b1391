"""Where an actor or task computes: its device, and its threads.

PyTorch is imported where it is used: a driver need not import it.
"""

import math
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from mvad.process import end_in_time

IMAGES_PER_THREAD = 8  # that a thread of a CPU actor takes at a time

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


def usable_cores() -> int:
    """Cores that this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def use_one_thread() -> None:
    """Compute in the current thread only: with more threads, sums are rounded differently."""
    import faiss
    import torch

    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)


def compute_device() -> str:
    """The device to compute on: a GPU that this process sees, or else the CPU.

    On a GPU, convolutions are computed in float32. By default PyTorch rounds their inputs to the 10 bits of TF32, and
    then features differ from a CPU's by thousandths.
    """
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = True, False
    return "cuda"


def worker_device() -> str:
    """The device of this actor or task, depending on whether Ray gave it a GPU; on a CPU it uses one thread.

    The process is a worker of Ray, and ends in time.
    """
    end_in_time()
    device = compute_device()
    if device == "cpu":
        use_one_thread()
    return device


class Threads:
    """Threads of an actor, each with images of its own."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool = ThreadPoolExecutor(count, initializer=use_one_thread) if count > 1 else None

    def portions(self, rows: NDArray[np.int64], chunk: int) -> list[NDArray[np.int64]]:
        """Divide rows among the threads; on a GPU, which has one thread and takes ``chunk`` images, into chunks."""
        step = max(chunk, min(IMAGES_PER_THREAD, math.ceil(len(rows) / self.count)))
        return [rows[start : start + step] for start in range(0, len(rows), step)]

    def shares(self, items: Sequence[Item], chunk: int) -> list[Sequence[Item]]:
        """Divide items into one share per thread, or fewer of ``chunk`` items."""
        step = max(chunk, math.ceil(len(items) / self.count))
        return [items[start : start + step] for start in range(0, len(items), step)]

    def map(self, function: Callable[[Item], Outcome], items: Iterable[Item]) -> list[Outcome]:
        """Call a function for each item; its results in the items' order."""
        return list(map(function, items) if self._pool is None else self._pool.map(function, items))
