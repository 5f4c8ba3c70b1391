"""Threads that compute with one core each, as actors do, in a process that belongs to somebody else."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from mvad.runtime.threads import use_one_thread

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")

_lock = threading.Lock()
_n_working = 0
_threads_before = 1


class Workers:
    """A pool of threads for work whose sums must be rounded as those of a job.

    While one of them works, PyTorch computes with one thread in all of this process; afterwards with as many as before.
    """

    def __init__(self, count: int) -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="mvad")

    def map(self, function: Callable[[Item], Outcome], items: Iterable[Item]) -> list[Outcome]:
        """Call a function for each item; its results in the items' order."""
        return list(self._pool.map(lambda item: _with_one_thread(function, item), items))

    def close(self) -> None:
        """End the threads once their work is done."""
        self._pool.shutdown()


def _with_one_thread(function: Callable[[Item], Outcome], item: Item) -> Outcome:
    import torch

    global _n_working, _threads_before
    with _lock:
        if not _n_working:
            _threads_before = torch.get_num_threads()
        _n_working += 1
        use_one_thread()
    try:
        return function(item)
    finally:
        with _lock:
            _n_working -= 1
            if not _n_working:
                torch.set_num_threads(_threads_before)
