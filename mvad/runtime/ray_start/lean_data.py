"""Ray Data on one machine without what only clusters and Ray's dashboard need.

These are three actors, each a process that imports Ray Data for a second or two: one that asks for machines, and for
which the first task waits; one that keeps numbers for the dashboard; and one that knows on which node an actor is.
Ray Data has no options for them.
"""

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import ray

from mvad.runtime.ray_start.lean_node import is_tried, nothing, replaced


@contextmanager
def lean_data() -> Iterator[None]:
    """While the context lasts, Ray Data starts no actors of its own in a Ray of one machine, which runs already.

    Versions of Ray for which this was not tried go on as usual.
    """
    if not is_tried():
        yield
        return
    from ray.data._internal.execution import streaming_executor
    from ray.data._internal.execution.operators import actor_pool_map_operator
    from ray.data._internal.stats import _StatsManager

    with replaced(
        (streaming_executor, "create_cluster_autoscaler", _this_machine()),
        (actor_pool_map_operator, "get_or_create_actor_location_tracker", Locations),
        (actor_pool_map_operator, "get_actor_locations", lambda _: {}),
        (_StatsManager, "gen_dataset_id_from_stats_actor", staticmethod(lambda: uuid.uuid4().hex)),
        (_StatsManager, "register_dataset_to_stats_actor", staticmethod(nothing)),
        (_StatsManager, "update_execution_metrics", staticmethod(nothing)),
        (_StatsManager, "update_iteration_metrics", staticmethod(nothing)),
    ):
        yield


class Locations:
    """In place of a handle of the actor that knows where actors are, as actors have it: it is told nothing."""

    update_actor_location = SimpleNamespace(remote=nothing)


def _this_machine() -> Callable[..., Any]:
    """Ray Data's function that creates an autoscaler; the one it creates has this machine, and asks for no other."""
    from ray.data._internal.cluster_autoscaler import ClusterAutoscaler
    from ray.data._internal.execution.interfaces import ExecutionResources

    resources = ExecutionResources.from_resource_dict(ray.cluster_resources())

    class ThisMachine(ClusterAutoscaler):
        def try_trigger_scaling(self) -> None:
            pass

        def on_executor_shutdown(self) -> None:
            pass

        def get_total_resources(self) -> ExecutionResources:
            return resources

    return lambda *_, **__: ThisMachine()
