"""Start Ray on this machine, or join a cluster."""

import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

# Nothing that Ray's core prints to a driver's terminal is for users of this program.
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from ray.data import DataContext

from mvad.errors import UsageError
from mvad.runtime.node_check import check_cluster


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
    ``meanwhile`` is called in a thread, and its outcome is ignored. UsageError if there is no cluster at ``address``,
    no worker in it, or one with other software.
    """
    _quieten()
    if ray.is_initialized():
        check_cluster(actors, say)
        yield
        return
    existing = address or os.environ.get("RAY_ADDRESS")
    # Ray's core listens on every interface; the Ray started here asks for the token in this user's home.
    start: dict[str, Any] = {"address": existing} if existing else {"address": "local", "include_dashboard": False}
    thread = threading.Thread(target=_call_quietly, args=(meanwhile,), daemon=True)
    try:
        thread.start()
        with core_muted():
            ray.init(**start, logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, ValueError) as error:
        raise UsageError(f"no Ray cluster at {existing!r} ({error}); see --address.") from error
    try:
        check_cluster(actors, say)
        thread.join()
        yield
    finally:
        ray.shutdown()


def _call_quietly(function: Callable[[], object] | None) -> None:
    if function is not None:
        with suppress(Exception):  # it will go wrong again where the outcome is needed, and be reported there
            function()


@contextmanager
def core_muted() -> Iterator[None]:
    """Drop what Ray's core, which is not Python, writes to standard error while it starts; exceptions still come."""
    sys.stderr.flush()
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


def _quieten() -> None:
    """Leave the terminal to our own lines; Ray still writes its log files."""
    # A small data set has fewer blocks than tasks may run at once; a user can do nothing about it.
    warnings.filterwarnings("ignore", message="The maximum number of concurrent tasks", category=UserWarning)
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
