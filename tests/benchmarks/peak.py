"""Peak memory of a program's own processes while something runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import psutil

INTERVAL_S = 0.2
ACTOR_NAME = "ray::MapWorker"
MAX_NAME_LENGTH = 15  # Linux cuts the names of processes


@dataclass
class Peak:
    """Largest private memory seen, in bytes: of this process, and of any single actor that runs a backbone.

    Memory mapped from Ray's object store is not counted: the store bounds it, and whether it is shared varies from
    moment to moment.
    """

    driver: int = 0
    actor: int = 0
    _done: threading.Event = field(default_factory=threading.Event)

    def watch(self) -> None:
        """Sample until the measurement ends."""
        driver = psutil.Process()
        while not self._done.wait(INTERVAL_S):
            self.driver = max(self.driver, _private_bytes(driver))
            for process in psutil.process_iter():
                try:
                    if _is_actor(process):
                        self.actor = max(self.actor, _private_bytes(process))
                except psutil.Error:
                    continue


def _is_actor(process: psutil.Process) -> bool:
    if process.name().startswith(ACTOR_NAME[:MAX_NAME_LENGTH]):
        return True
    return any(word.startswith(ACTOR_NAME) for word in process.cmdline()[:1])


def _private_bytes(process: psutil.Process) -> int:
    memory = process.memory_info()
    return memory.rss - getattr(memory, "shared", 0)


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Watch memory while the block runs."""
    peak = Peak()
    thread = threading.Thread(target=peak.watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        peak._done.set()
        thread.join()
