"""Results of Ray tasks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import ray


def as_completed(tasks: Iterable[ray.ObjectRef]) -> Iterator[Any]:
    """Yield the results of tasks in the order in which they finish."""
    pending = list(tasks)
    while pending:
        (task,), pending = ray.wait(pending)
        yield ray.get(task)
