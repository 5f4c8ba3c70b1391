"""What a stage of a run has cost so far, added up over all actors and tasks.

The numbers travel to one small actor, next to the data and not in it. They are for people: if they are lost, say
because the driver's node is overloaded, the run goes on without them.
"""

import functools
import uuid
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mvad.process import end_in_time
from mvad.runtime import telemetry

ANSWER_S = 60.0  # time within which the totals must answer the driver


@dataclass
class Totals:
    """Totals of one stage."""

    # Of actors' time, by category or by number of the scoring job.
    seconds: dict[Any, float] = field(default_factory=lambda: defaultdict(float))
    bytes_read: int = 0  # size of the image files that could be decoded
    actor_memory: int = 0  # the largest resident memory of any one actor, in bytes
    # How often tasks were started again after a worker or node was lost, by the id of the task.
    retries: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    actors: set[str] = field(default_factory=set)  # names of those that computed something

    @property
    def tasks_retried(self) -> int:
        return sum(self.retries.values())


class _Ledger:
    """The actor that holds the totals, by stage."""

    def __init__(self) -> None:
        end_in_time()
        self._totals: dict[str, Totals] = defaultdict(Totals)

    def add_batch(self, stage: str, seconds: Mapping[Any, float], bytes_read: int, memory: int, actor: str) -> None:
        totals = self._totals[stage]
        for key, value in seconds.items():
            totals.seconds[key] += value
        totals.bytes_read += bytes_read
        totals.actor_memory = max(totals.actor_memory, memory)
        totals.actors.add(actor)

    def add_retries(self, stage: str, task: str, retries: int) -> None:
        """Note how often a task was started again; each attempt of it may say so."""
        totals = self._totals[stage]
        totals.retries[task] = max(totals.retries[task], retries)

    def totals(self, stage: str) -> Totals:
        return self._totals[stage]

    def seconds(self, stage: str, category: str) -> float:
        return self._totals[stage].seconds[category]


@functools.lru_cache(maxsize=1)
def _ledger(job: str, node: str) -> Any:
    """The ledger of this session of Ray: another one that this process starts has the same job id on another node."""
    here = NodeAffinitySchedulingStrategy(node, soft=True)
    ledger: Any = ray.remote(_Ledger)
    return ledger.options(num_cpus=0, max_restarts=-1, scheduling_strategy=here).remote()


class StageTotals:
    """The totals of one stage, for the driver and for its actors and tasks: travels between processes."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._stage = uuid.uuid4().hex
        context = ray.get_runtime_context()
        self._ledger = _ledger(context.get_job_id(), context.get_node_id())

    def add_batch(
        self, seconds: Mapping[Any, float], n_images: int, n_errors: int, bytes_read: int, actor: str
    ) -> None:
        """Add a batch that an actor has computed, here and to Ray's metrics; ``n_errors`` images have no result.

        The other values are those of `Totals`.
        """
        telemetry.count(self.name, n_images - n_errors, n_errors, bytes_read, sum(seconds.values()))
        with suppress(RayError):  # the images matter, the numbers do not
            memory = telemetry.peak_memory()
            ray.get(self._ledger.add_batch.remote(self._stage, dict(seconds), bytes_read, memory, actor))

    def add_retries(self) -> None:
        """Add how often Ray has started the current task before."""
        if retries := telemetry.retries():
            task = ray.get_runtime_context().get_task_id()
            with suppress(RayError):
                ray.get(self._ledger.add_retries.remote(self._stage, task, retries))

    def get(self) -> Totals:
        """The totals so far."""
        try:
            return ray.get(self._ledger.totals.remote(self._stage), timeout=ANSWER_S)
        except RayError:
            return Totals()

    def seconds(self, category: str) -> float:
        """Seconds of actors' time for one category so far."""
        try:
            return ray.get(self._ledger.seconds.remote(self._stage, category), timeout=ANSWER_S)
        except RayError:
            return 0.0
