"""Waits for what happens soon, but not at once: on a busy machine, at any moment."""

import time
from collections.abc import Callable

import psutil
import pytest

SECONDS = 30.0


def wait_until(condition: Callable[[], bool], what: str = "it", seconds: float = SECONDS) -> None:
    """Return as soon as the condition holds; the test fails if it does not within so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"{what} did not happen within {seconds:.0f} s")
        time.sleep(0.05)


def has_ended(process: psutil.Process) -> bool:
    """Whether a process is gone; one that nobody has waited for yet is a zombie."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
