"""Peak memory of a program's own processes while something runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from mvad.errors import UsageError

try:
    import psutil
except ImportError as error:
    raise UsageError("measuring memory needs psutil; install it with: pip install 'mvad[benchmark]'.") from error

EVERY = 0.2  # seconds
ACTORS = "ray::MapWorker"


@dataclass
class Peak:
    """Largest private memory seen, in bytes: of this process, and of any one actor that runs a backbone.

    What is mapped from Ray's object store is not counted: it is bounded by the store, and shared with others or not
    from one moment to the next.
    """

    driver: int = 0
    actor: int = 0
    _done: threading.Event = field(default_factory=threading.Event)

    def watch(self) -> None:
        me = psutil.Process()
        while not self._done.wait(EVERY):
            self.driver = max(self.driver, _private(me))
            for process in psutil.process_iter():
                try:
                    if process.name().startswith(ACTORS[:15]) or process.cmdline()[:1][0].startswith(ACTORS):
                        self.actor = max(self.actor, _private(process))
                except (psutil.Error, IndexError):
                    continue


def _private(process: psutil.Process) -> int:
    info = process.memory_info()
    return info.rss - getattr(info, "shared", 0)


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
