"""How a cluster's processors are shared out among actors and tasks."""

import math
from collections.abc import Collection
from typing import Any, NamedTuple

import ray
from ray.data import ActorPoolStrategy, TaskPoolStrategy

from mvad.errors import UsageError

TASK_CPUS = 0.1  # reserved by a decode or write task; the number of tasks limits how many run at once
ACTOR_GPUS, TASK_GPUS = 0.6, 0.4  # never two actors on a GPU, but a fit next to an actor
MIN_IMAGES_PER_ACTOR = 8  # an actor takes seconds to start
MIN_IMAGES_PER_TASK = (
    8  # that decodes: a process of its own takes a second or two to start, as long as photos to decode
)
MAX_THREADS_PER_ACTOR = 4  # more threads would wait for each other in Python


class ActorPool(NamedTuple):
    """The actors that run a backbone, what each reserves of Ray's resources, and the tasks next to them.

    A CPU actor works with several ``threads``, each on images of its own: what an actor needs to start and to run, a
    second of a core and half a gigabyte, is spent once for all of them.

    A task that fits a detector reserves ``task_resources``. It can share a GPU with an actor: if actors held all GPUs
    until their last image, they would wait forever for a driver that takes no more images before a fit is done.
    """

    actors: int
    actor_resources: dict[str, float]
    task_resources: dict[str, float]
    cores: int = 1  # of all nodes
    tasks: int = 1  # that decode or write at once
    threads: int = 1
    nodes: int = 1  # that have cores

    @property
    def gpus(self) -> bool:
        return "num_gpus" in self.actor_resources

    @property
    def arguments(self) -> dict[str, Any]:
        """For ``map_batches`` with an actor."""
        return {"compute": ActorPoolStrategy(size=self.actors), **self.actor_resources}

    @property
    def task_arguments(self) -> dict[str, Any]:
        """For ``map_batches`` with a function."""
        return {"compute": TaskPoolStrategy(size=self.tasks), "num_cpus": TASK_CPUS}


def actor_pool(actors: int | None, n_images: int) -> ActorPool:
    """One actor per GPU, or as many threads in actors as there are CPU cores; fewer for a handful of images.

    All CPU actors together reserve at most half of Ray's CPUs, and each reserves a share of which no number fills a
    node. What is left is for decoding: without it actors would wait for images forever, even if all of them had moved
    to the one node that is left. The operating system shares the real cores out by need. UsageError if more actors
    were asked for than there are GPUs.
    """
    resources = ray.cluster_resources()
    gpus, cpus = int(resources.get("GPU", 0)), resources.get("CPU", 1.0)
    if gpus:
        if actors is not None and actors > gpus:
            raise UsageError(f"--actors {actors} is more than the {gpus} GPUs of the cluster; each actor needs one.")
        # Unless told otherwise, Ray Data reserves one CPU per actor: with no more CPUs than GPUs, nothing would decode.
        count, threads, n_nodes = actors or gpus, 1, 1
        actor_resources, task_resources = {"num_gpus": ACTOR_GPUS, "num_cpus": 0.0}, {"num_gpus": TASK_GPUS}
    else:
        nodes = [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]
        n_nodes = max(1, len(nodes))
        count = actors or max(1, sum(math.ceil(int(node) / MAX_THREADS_PER_ACTOR) for node in nodes))
        threads = min(MAX_THREADS_PER_ACTOR, max(1, int(cpus) // count))
        share = cpu_share(cpus / (count * threads), {*nodes} - {0.0})
        actor_resources, task_resources = {"num_cpus": round(threads * share, 3)}, {"num_cpus": share}
    count = min(count, max(1, n_images // MIN_IMAGES_PER_ACTOR))
    cores = max(1, int(cpus))
    tasks = max(1, min(cores, n_images // MIN_IMAGES_PER_TASK))
    return ActorPool(count, actor_resources, task_resources, cores, tasks, threads, n_nodes)


def cpu_share(cpus: float, nodes: Collection[float]) -> float:
    """CPUs that an actor's thread reserves: about half of the ``cpus`` it will use.

    Of all shares from a quarter to a half, in thousandths, the one that leaves the most of every node when as many as
    fit are placed there, up to `TASK_CPUS`. With 2 CPUs on one node and 2 threads it is 0.475: four fit, and 0.1 is
    left for decoding.
    """
    max_share = max(1, min(500, int(cpus * 500)))

    def left_over(share: int) -> float:
        return min([TASK_CPUS * 1000, *(round(node * 1000) % share for node in nodes)])

    return max(range(max_share // 2 + 1, max_share + 1), key=lambda share: (left_over(share), share)) / 1000
