"""Starting or joining Ray, and how its processors are shared out."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

# Of what Ray's core prints to the terminal of a driver, nothing is for a user of this program.
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from ray.data import ActorPoolStrategy, DataContext

from mvad.errors import UsageError

_ALONE: dict[str, Any] = {"address": "local", "include_dashboard": False}
LEAST_IMAGES = 8  # an actor: it takes seconds to start


class Pool(NamedTuple):
    """The actors that run a backbone: how many, and the share of Ray's resources that each has."""

    actors: int
    share: dict[str, float]

    @property
    def arguments(self) -> dict[str, Any]:
        """For ``map_batches``."""
        return {"compute": ActorPoolStrategy(size=self.actors), **self.share}


@contextmanager
def ray_session(address: str | None) -> Iterator[None]:
    """Join the cluster at ``address``, or the one this job runs in, or else start Ray on this machine alone.

    Ray that runs in this process already is used as it is, and left running.

    Raises
    ------
    UsageError
        There is no cluster at ``address``.
    """
    _quieten()
    if ray.is_initialized():
        yield
        return
    existing = address or os.environ.get("RAY_ADDRESS")
    # Ray's core listens on every interface; Ray that we start asks whoever connects for the token in this user's home.
    start = {"address": existing} if existing else _ALONE
    try:
        with _core_muted():
            ray.init(**start, logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, ValueError) as error:
        raise UsageError(f"no Ray cluster at {existing!r} ({error}); see --address.") from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _core_muted() -> Iterator[None]:
    """Drop what Ray's core, which is no Python, writes to standard error while it starts; exceptions come as ever."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _quieten() -> None:
    """Leave the terminal to our own lines; Ray still writes all of it to its log files."""
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


def actor_pool(actors: int | None, images: int) -> Pool:
    """One actor a GPU, or as many one-thread actors as there are CPU cores; fewer for a handful of images.

    CPU actors together claim half of Ray's CPUs, however many they are: the other half is left for decoding, without
    which they would wait for images for ever (the operating system shares the real cores out by need).

    Raises
    ------
    UsageError
        More actors were asked for than there are GPUs.
    """
    resources = ray.cluster_resources()
    gpus, cpus = int(resources.get("GPU", 0)), resources.get("CPU", 1.0)
    if gpus:
        if actors is not None and actors > gpus:
            raise UsageError(f"--actors {actors} is more than the {gpus} GPUs of the cluster; each actor needs one.")
        count, share = actors or gpus, {"num_gpus": 1.0}
    else:
        count = actors or max(1, int(cpus))
        share = {"num_cpus": round(min(0.5, cpus / 2 / count), 3)}
    count = min(count, max(1, images // LEAST_IMAGES))
    return Pool(count, share)
