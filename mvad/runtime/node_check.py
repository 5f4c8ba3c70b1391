"""Wait for the cluster's workers, and make sure that they run the same software as the driver.

Weights need no check: the driver reads them once and sends them to every actor.
"""

import re
import socket
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mvad.errors import UsageError
from mvad.plugins import method_packages

PACKAGES = ("torch", "torchvision", "timm", "numpy", "onnxruntime")
ANSWER_TIMEOUT_S = 180.0  # the first worker process on a cold disk starts slowly
JOIN_TIMEOUT_S = 900.0  # a GPU machine has to be allocated, started and set up
MISSING = "none"  # the version of a package that is not installed

Versions = dict[str, str]
Node = Mapping[str, Any]


def check_cluster(
    actors: int | None = None,
    notify: Callable[[str], None] | None = None,
    *,
    answer_timeout_s: float = ANSWER_TIMEOUT_S,
    join_timeout_s: float = JOIN_TIMEOUT_S,
) -> None:
    """Wait for workers that start on demand, then compare every node's software with this process's.

    Costs next to nothing on a single machine: if the only node is the driver's own and has CPUs, nothing is compared.

    Parameters
    ----------
    actors
        As given to ``--actors``: on a cluster whose head runs no work, how many GPUs to request.
    notify
        Called with one line that says what the job is waiting for.
    join_timeout_s
        How long the first worker may take to join, and then the others.

    Raises
    ------
    UsageError
        No worker joins, or a node does not answer or has another mvad, Python, PyTorch, ...; the message names it.
    """
    nodes = _alive_nodes()
    if not all(_cpus(node) for node in nodes.values()):
        _await_workers(nodes, actors, notify or (lambda line: None), join_timeout_s)
        nodes = _alive_nodes()
    if set(nodes) != {ray.get_runtime_context().get_node_id()}:
        _compare_versions(nodes, answer_timeout_s)


def installed_versions() -> Versions:
    """Return this process's versions of mvad (with a digest of its source), of Python, and of `_packages`."""
    return _version_reader()(_packages())


def _packages() -> tuple[str, ...]:
    """`PACKAGES`, and those with methods of their own, which workers need as well."""
    return (*PACKAGES, *method_packages())


def mismatches(expected: Versions, actual: Versions) -> list[str]:
    """Return the names in ``expected`` whose version differs in ``actual``: for mvad in full, else major.minor."""

    def relevant(name: str, version: str) -> str:
        match = None if name == "mvad" else re.match(r"\d+\.\d+", version)
        return match[0] if match else version

    return [name for name in expected if relevant(name, expected[name]) != relevant(name, actual.get(name, MISSING))]


def _version_reader() -> Callable[[tuple[str, ...]], Versions]:
    # A function inside a function is sent to the workers as code, so it also runs where mvad is missing or older.
    def read(packages: tuple[str, ...]) -> dict[str, str]:
        import contextlib
        import hashlib
        import importlib
        import importlib.metadata
        import pathlib
        import platform

        versions = {"mvad": "none", "Python": platform.python_version(), **dict.fromkeys(packages, "none")}
        with contextlib.suppress(ImportError):
            mvad = importlib.import_module("mvad")
            folder = pathlib.Path(str(mvad.__file__)).parent
            digest = hashlib.sha256()
            for path in sorted(folder.rglob("*.py")):
                digest.update(path.relative_to(folder).as_posix().encode() + b"\n" + path.read_bytes())
            versions["mvad"] = f"{getattr(mvad, '__version__', 'without a version')} (code {digest.hexdigest()[:8]})"
        for name in packages:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                versions[name] = importlib.metadata.version(name)
        return versions

    return read


def _alive_nodes() -> dict[str, Node]:
    return {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}


def _cpus(node: Node) -> float:
    return node["Resources"].get("CPU", 0.0)


def _await_workers(
    nodes: Mapping[str, Node], actors: int | None, notify: Callable[[str], None], timeout_s: float
) -> None:
    """Let the autoscaler start workers: one, and if it has GPUs, as many as ``actors``."""
    if not any(map(_cpus, nodes.values())):
        notify("waiting for the first worker to join the cluster")
        probe = ray.remote(num_cpus=1, max_retries=0)(_version_reader()).remote(())
        if ray.wait([probe], timeout=timeout_s)[1]:
            ray.cancel(probe)
            raise UsageError(
                f"no worker joined the cluster within {timeout_s:,.0f} s, and its head node runs no work; check "
                "`ray status` for what stops the autoscaler (quota, spot capacity, a typo), then run this again."
            )
    gpus = int(sum(node["Resources"].get("GPU", 0.0) for node in _alive_nodes().values()))
    if not gpus or actors is None or actors <= gpus:
        return
    notify(f"waiting for {actors} GPUs; the cluster has {gpus}")
    # A placement group, unlike a request to the autoscaler, ends with this job, however the job ends.
    group = placement_group([{"GPU": 1.0}] * actors)
    try:
        group.wait(timeout_s)
    finally:
        remove_placement_group(group)


def _compare_versions(nodes: Mapping[str, Node], timeout_s: float) -> None:
    packages = _packages()
    expected, read = installed_versions(), ray.remote(num_cpus=0, max_retries=0)(_version_reader())
    tasks = {
        read.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False)).remote(packages): node_id
        for node_id in nodes
    }
    answered, unanswered = ray.wait(list(tasks), num_returns=len(tasks), timeout=timeout_s)
    problems = {tasks[task]: f"did not answer within {timeout_s:,.0f} s" for task in unanswered}
    problems |= {tasks[task]: problem for task in answered if (problem := _problem(task, expected))}
    for task in unanswered:
        ray.cancel(task, force=True)
    alive = _alive_nodes() if problems else {}
    faulty = [node_id for node_id in problems if node_id in alive]  # a node that has left does no harm
    if faulty:
        node = nodes[faulty[0]]
        others = f" ({len(faulty) - 1} more nodes have problems)" if len(faulty) > 1 else ""
        raise UsageError(
            f"node {node['NodeManagerHostname']} ({node['NodeManagerAddress']}) {problems[faulty[0]]}{others}; "
            f"give all nodes and the driver on {socket.gethostname()} the same image or installation, "
            "and restart Ray on that node."
        )


def _problem(task: ray.ObjectRef, expected: Versions) -> str | None:
    """What is wrong with the node that ran a task of `_version_reader`, if anything."""
    try:
        actual = ray.get(task)
    except RayError as error:
        return f"cannot run a task ({' '.join(str(error).split())[:200]})"
    different = mismatches(expected, actual)
    if not different:
        return None
    name, *others = different
    more = f" (also different: {', '.join(others)})" if others else ""
    return f"has {name} {actual[name]}, but this job runs with {name} {expected[name]}{more}"
