"""A node of Ray on this machine without what only people, growing clusters and jobs of others need.

These are five processes of Python: the dashboard's server, the autoscaler, the reader of log files, and the agents of
the dashboard and of runtime environments. They take seconds of processor time to start, and Ray waits for its agents
before it runs anything. ``ray.init`` has no arguments for them.
"""

import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from inspect import getattr_static
from typing import Any

import ray

UNNEEDED = ("start_api_server", "start_monitor", "start_log_monitor")  # methods of Ray's `Node` that start processes
# Versions of Ray whose raylet is known to need no more of its agents than a process each, and the files of their ports,
# and whose Ray Data is known to need none of its own actors (`lean_data`).
TRIED_VERSIONS = ("2.60.",)
AGENTS = ("--dashboard_agent_command", "--runtime_env_agent_command")  # arguments of the raylet
PORTS = (
    "METRICS_AGENT_PORT_NAME",
    "METRICS_EXPORT_PORT_NAME",
    "DASHBOARD_AGENT_LISTEN_PORT_NAME",
    "RUNTIME_ENV_AGENT_PORT_NAME",
)  # constants of ``ray._raylet``: names of the files in which agents write their ports
NO_PORT = 0
# The raylet ends with its agents, so something has to run in their place, and to end with the raylet.
PLACEHOLDER = shlex.join(["/bin/sh", "-c", "while kill -0 $PPID; do sleep 1; done"])

Replacement = tuple[Any, str, Any]


@contextmanager
def lean_node() -> Iterator[None]:
    """While the context lasts, Ray starts on this machine with the processes alone that run tasks and actors.

    Where Ray's own names have changed, it starts the others as usual, and so it does with the agents of versions for
    which this was not tried.
    """
    from ray._private import services
    from ray._private.node import Node

    values: list[Replacement] = [(Node, name, nothing) for name in UNNEEDED if hasattr(Node, name)]
    if os.name == "posix" and is_tried():
        values.append((services, "start_ray_process", _without_agents(services.start_ray_process)))
    with replaced(*values):
        yield


@contextmanager
def quick_end() -> Iterator[None]:
    """While the context lasts, Ray that ends kills its processes on this machine at once.

    It would give each a second to end by itself, which the raylet, having workers and agents to wait for, exceeds.
    """
    from ray._private.node import Node

    original = Node.kill_all_processes

    def kill(node: Node, *arguments: Any, **named: Any) -> None:
        original(node, *arguments, **{**named, "allow_graceful": False})

    with replaced((Node, "kill_all_processes", kill)):
        yield


def is_tried() -> bool:
    """Whether this version of Ray is known to do without what only Ray's own names can leave out."""
    return ray.__version__.startswith(TRIED_VERSIONS)


@contextmanager
def replaced(*values: Replacement) -> Iterator[None]:
    """While the context lasts, modules or classes have other values: owners, names and values."""
    originals = [getattr_static(owner, name) for owner, name, _ in values]  # not what a static method holds
    for owner, name, value in values:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for (owner, name, _), original in zip(values, originals, strict=True):
            setattr(owner, name, original)


def nothing(*_: Any, **__: Any) -> None:
    """What is done instead of starting a process."""


def _without_agents(start: Callable[..., Any]) -> Callable[..., Any]:
    """Ray's function that starts a process from its command, which starts a raylet without agents."""

    def start_without_agents(command: Sequence[str], *arguments: Any, **named: Any) -> Any:
        values = dict(part.split("=", 1) for part in command if part.startswith("--") and "=" in part)
        if values.keys() >= {*AGENTS, "--session_dir", "--node_id"}:
            _write_ports(values["--session_dir"], values["--node_id"])
            command = [
                f"{name}={PLACEHOLDER}" if (name := part.split("=", 1)[0]) in AGENTS else part for part in command
            ]
        return start(command, *arguments, **named)

    return start_without_agents


def _write_ports(session: str, node_id: str) -> None:
    """Write the files of ports that the raylet waits for, of nobody."""
    from ray import _raylet

    for name in PORTS:
        _raylet.persist_port(session, node_id, getattr(_raylet, name), NO_PORT)  # type: ignore[attr-defined]
