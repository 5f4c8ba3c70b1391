"""Starting or joining Ray, and how its processors are shared out."""

from __future__ import annotations

import logging
import math
import os
import sys
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

# Of what Ray's core prints to the terminal of a driver, nothing is for a user of this program.
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy

from mvad.errors import UsageError
from mvad.runtime.node_check import check_cluster

_ALONE: dict[str, Any] = {"address": "local", "include_dashboard": False}
TASK_CPUS = 0.1  # that a task claims which decodes or writes; how many run at once is limited by their number
ACTOR_GPU, TASK_GPU = 0.6, 0.4  # one actor a GPU, never two, and room for a fit beside it
LEAST_IMAGES = 8  # an actor: it takes seconds to start
MOST_THREADS = 4  # of an actor: with more, they would wait for each other in Python


class ActorPool(NamedTuple):
    """The actors that run a backbone: how many, what each claims of Ray's resources, and tasks beside them.

    A CPU actor works with several ``threads``, each on images of its own: what an actor takes to start and to hold, a
    second of a core and half a gigabyte, is there once for all of them.

    A task that fits a detector claims ``task_resources``. It can share a GPU with an actor: if actors held all GPUs
    until their last image, they would wait forever for a driver that takes no more images before a fit is done.
    """

    actors: int
    actor_resources: dict[str, float]
    task_resources: dict[str, float]
    tasks: int = 1
    threads: int = 1

    @property
    def gpus(self) -> bool:
        """Whether the actors have GPUs."""
        return "num_gpus" in self.actor_resources

    @property
    def arguments(self) -> dict[str, Any]:
        """For ``map_batches``."""
        return {"compute": ActorPoolStrategy(size=self.actors), **self.actor_resources}

    @property
    def task_arguments(self) -> dict[str, Any]:
        """For ``map_batches`` of tasks."""
        return {"compute": TaskPoolStrategy(size=self.tasks), "num_cpus": TASK_CPUS}


@contextmanager
def ray_session(
    address: str | None, actors: int | None = None, say: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Join the cluster at ``address``, or the one this job runs in, or else start Ray on this machine alone.

    Ray that runs in this process already is used as it is, and left running. The nodes are waited for and compared
    (`preflight.check_cluster`, with ``actors`` and ``say``).

    Raises
    ------
    UsageError
        There is no cluster at ``address``, no worker in it, or one with other software.
    """
    _quieten()
    if ray.is_initialized():
        check_cluster(actors, say)
        yield
        return
    existing = address or os.environ.get("RAY_ADDRESS")
    # Ray's core listens on every interface; Ray that we start asks whoever connects for the token in this user's home.
    start = {"address": existing} if existing else _ALONE
    try:
        with core_muted():
            ray.init(**start, logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, ValueError) as error:
        raise UsageError(f"no Ray cluster at {existing!r} ({error}); see --address.") from error
    try:
        check_cluster(actors, say)
        yield
    finally:
        ray.shutdown()


def _share(cpus: float, nodes: Collection[float]) -> float:
    """CPUs that an actor claims: half of what falls to it or a little less, so that nodes keep `TASK_CPUS` free."""
    most = max(1, min(500, int(cpus * 500)))  # in thousandths

    def left(share: int) -> float:
        return min([TASK_CPUS * 1000, *(round(node * 1000) % share for node in nodes)])

    return max(range(most // 2 + 1, most + 1), key=lambda share: (left(share), share)) / 1000


@contextmanager
def core_muted() -> Iterator[None]:
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
    # More tasks at once are allowed than a small data set has blocks: nothing a user can mend.
    warnings.filterwarnings("ignore", message="The maximum number of concurrent tasks", category=UserWarning)
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


def actor_pool(actors: int | None, images: int) -> ActorPool:
    """One actor a GPU, or as many threads in actors as there are CPU cores; fewer for a handful of images.

    CPU actors together claim at most half of Ray's CPUs, however many they are, and the share of each is such that no
    number of them fills a node: what is left is for decoding, without which they would wait for images for ever, even
    where all actors have moved to the one node that others have left (the operating system shares the real cores out
    by need).

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
        # Without a word on CPUs, Ray Data claims one for each actor: with no more CPUs than GPUs, nothing would decode.
        count, claim, share = actors or gpus, {"num_gpus": ACTOR_GPU, "num_cpus": 0.0}, {"num_gpus": TASK_GPU}
        threads = 1
    else:
        nodes = [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]
        count = actors or max(1, sum(math.ceil(int(node) / MOST_THREADS) for node in nodes))
        threads = min(MOST_THREADS, max(1, int(cpus) // count))
        part = _share(cpus / (count * threads), {*nodes} - {0.0})
        claim, share = {"num_cpus": round(threads * part, 3)}, {"num_cpus": part}
    count = min(count, max(1, images // LEAST_IMAGES))
    return ActorPool(count, claim, share, max(1, int(cpus)), threads)
