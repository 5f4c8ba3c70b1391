"""Start Ray on this machine, or join a cluster."""

import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import ray
from ray.data import DataContext

from mvad.runtime.node_check import check_cluster
from mvad.runtime.ray_start.lean_data import lean_data
from mvad.runtime.ray_start.process import LOCAL, RayProcess
from mvad.runtime.ray_start.token import private_token

# Of a Ray started here. The processes of one stage are those of the next, with all that they have imported: Ray ends
# those that are more than the cores after a second.
SYSTEM_CONFIG = {"idle_worker_killing_time_threshold_ms": 10_000}


@contextmanager
def ray_session(
    address: str | None,
    actors: int | None = None,
    say: Callable[[str], None] | None = None,
    meanwhile: Callable[[], object] | None = None,
) -> Iterator[None]:
    """Join the cluster at ``address``, or the one this job runs in, or else start Ray on this machine alone.

    If Ray runs in this process already, it is used as it is and left running. Nodes are waited for and compared
    (`node_check.check_cluster`, with ``actors`` and ``say``). Starting Ray is mostly waiting for other processes;
    ``meanwhile`` is called in a thread, and its outcome is ignored. UsageError if Ray does not start, there is no
    cluster at ``address``, no worker in it, or one with other software.
    """
    _quieten()
    if ray.is_initialized():
        check_cluster(actors, say)
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS") or None
    address = None if address == LOCAL else address
    thread = threading.Thread(target=_call_quietly, args=(meanwhile,), daemon=True)
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    options |= {} if address else {"include_dashboard": False, "_system_config": SYSTEM_CONFIG}
    # Ray's core listens on every interface; the Ray started here asks for a token.
    with nullcontext() if address else private_token():
        process = RayProcess(address, **options)
        try:
            thread.start()
            process.start()
            check_cluster(actors, say)
            thread.join()
            with nullcontext() if address else lean_data():
                yield
        finally:
            # Ray Data's threads report at length that Ray is gone.
            logging.getLogger("ray.data").setLevel(logging.CRITICAL)
            process.end()


def _call_quietly(function: Callable[[], object] | None) -> None:
    if function is not None:
        with suppress(Exception):  # it will go wrong again where the outcome is needed, and be reported there
            function()


def _quieten() -> None:
    """Leave the terminal to our own lines; Ray still writes its log files."""
    # A small data set has fewer blocks than tasks may run at once; a user can do nothing about it.
    warnings.filterwarnings("ignore", message="The maximum number of concurrent tasks", category=UserWarning)
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
