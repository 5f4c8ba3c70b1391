"""Results as they finish, and an end to the wait for a cluster that has lost its last usable node."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, wait
from typing import Any, TypeVar

import ray

from mvad.errors import UsageError
from mvad.runtime.node_check import JOIN_TIMEOUT_S

POLL_INTERVAL_S = 10.0

Item = TypeVar("Item")
_END: Any = object()


def as_completed(tasks: Iterable[ray.ObjectRef]) -> Iterator[Any]:
    """Yield the results of tasks in the order in which they finish."""
    pending = list(tasks)
    while pending:
        (task,), pending = ray.wait(pending)
        yield ray.get(task)


def watch_nodes(
    items: Iterable[Item],
    claim: Mapping[str, float],
    notify: Callable[[str], None],
    *,
    poll_interval_s: float = POLL_INTERVAL_S,
    join_timeout_s: float = JOIN_TIMEOUT_S,
) -> Iterator[Item]:
    """Yield the items of a Ray data set, unless no node is left to compute them and none joins in time.

    Ray alone would wait forever. Nodes are checked when no item has come for ``poll_interval_s``.

    Parameters
    ----------
    claim
        What an actor claims of Ray's resources, ``num_cpus`` and ``num_gpus``.
    notify
        Called with one line each time the last node is lost.

    Raises
    ------
    UsageError
        No node joined within ``join_timeout_s``; the rows written so far stay.
    """
    iterator = iter(items)
    while True:
        # One item at a time, and only when it is asked for: no more items are in memory than without the thread.
        item = _in_thread(lambda: next(iterator, _END))
        lost_at: float | None = None
        while not wait([item], poll_interval_s).done:
            if any(_can_compute(node, claim) for node in ray.nodes()):
                lost_at = None
            elif lost_at is None:
                lost_at = time.monotonic()
                notify("no node is left that can compute; waiting for one to join the cluster")
            elif time.monotonic() - lost_at > join_timeout_s:
                raise UsageError(
                    f"the cluster lost its last node that can compute, and none joined within {join_timeout_s:,.0f} s; "
                    "check `ray status`, start nodes, and run this again."
                )
        if item.result() is _END:
            return
        yield item.result()


def _in_thread(function: Callable[[], Any]) -> Future[Any]:
    """Run a function in a daemon thread, which unlike an executor's does not keep the process alive."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # for the thread that waits for the result
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def _can_compute(node: Mapping[str, Any], claim: Mapping[str, float]) -> bool:
    needs = {"CPU": claim.get("num_cpus", 0.0), "GPU": claim.get("num_gpus", 0.0)}
    return node["Alive"] and all(node["Resources"].get(name, 0.0) >= amount for name, amount in needs.items())
