"""Waiting for results while nodes come and go: Ray waits in silence, and for ever, for nodes that nobody starts."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import ray

from mvad.errors import UsageError
from mvad.runtime.node_check import JOIN_SECONDS

LOOK_SECONDS = 10.0  # without a result, until the nodes are looked at

Item = TypeVar("Item")
_END = object()


def watch_nodes(
    items: Iterable[Item],
    claim: Mapping[str, float],
    say: Callable[[str], None],
    *,
    look_seconds: float = LOOK_SECONDS,
    join_seconds: float = JOIN_SECONDS,
) -> Iterator[Item]:
    """The items of a Ray data set as they come, unless no node is left to compute them, and none joins in time.

    Parameters
    ----------
    claim
        What an actor claims, ``num_cpus`` and ``num_gpus``.
    say
        Told, once each time, that a node is waited for.
    look_seconds, join_seconds
        How long nothing may come before the nodes are looked at, and how long a node may take to join.

    Raises
    ------
    UsageError
        No node joined; the rows written so far stay.
    """
    ready: queue.Queue[Any] = queue.Queue()
    wanted: queue.Queue[bool] = queue.Queue()

    def iterate() -> None:
        # An item is taken only when it is asked for: no more of them lie in memory than without this thread.
        try:
            iterator = iter(items)
            while wanted.get():
                ready.put((next(iterator, _END), None))
        except BaseException as error:  # belongs to whoever waits for the item
            ready.put((_END, error))

    threading.Thread(target=iterate, daemon=True).start()
    alone_since: float | None = None
    wanted.put(True)
    try:
        while True:
            try:
                item, error = ready.get(timeout=look_seconds)
            except queue.Empty:
                if any(_can_take(node, claim) for node in ray.nodes() if node["Alive"]):
                    alone_since = None
                elif alone_since is None:
                    alone_since = time.monotonic()
                    say("no node that can compute is left; waiting for one to join the cluster")
                elif time.monotonic() - alone_since > join_seconds:
                    raise UsageError(
                        "the cluster lost its last node that could compute, and none joined within "
                        f"{join_seconds:,.0f} s; see what `ray status` says, start nodes, and start this again."
                    ) from None
                continue
            if error is not None:
                raise error
            if item is _END:
                return
            alone_since = None
            yield item
            wanted.put(True)
    finally:
        wanted.put(False)


def _can_take(node: Mapping[str, Any], claim: Mapping[str, float]) -> bool:
    has = node["Resources"]
    return has.get("GPU", 0.0) >= claim.get("num_gpus", 0.0) and has.get("CPU", 0.0) >= claim.get("num_cpus", 0.0)
