"""Before the first image: the cluster's workers are there, and run the same software as the driver.

Weights need no check: the driver reads them once and sends them to every actor.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mvad.errors import UsageError

# Of these and of Python, major.minor must agree; of mvad, all.
PACKAGES = ("torch", "torchvision", "timm", "numpy", "onnxruntime")
ANSWER_SECONDS = 180.0  # a first worker process on a cold disk takes its time
JOIN_SECONDS = 900.0  # a GPU machine that has to be bought, started and set up

Versions = dict[str, str]
ABSENT = "none"


def check_cluster(
    actors: int | None = None,
    say: Callable[[str], None] | None = None,
    *,
    answer_seconds: float = ANSWER_SECONDS,
    join_seconds: float = JOIN_SECONDS,
) -> None:
    """Wait for workers that start on demand, then compare every node's software with this process's.

    Costs next to nothing on a single machine: one node with CPUs, on which the driver runs, is not asked.

    Parameters
    ----------
    actors
        As given to ``--actors``: on a cluster whose head does no work, so many GPUs are asked for.
    say
        Told in a line what is waited for.
    answer_seconds
        How long a node may take to answer.
    join_seconds
        How long the first worker may take to join, and then the other ones.

    Raises
    ------
    UsageError
        No worker joins, a node does not answer, or has another mvad, Python, PyTorch, ...; the message names it.
    """
    nodes = _alive()
    if any(not _work(node) for node in nodes.values()):
        _await_workers(nodes, actors, say or (lambda line: None), join_seconds)
        nodes = _alive()
    if len(nodes) > 1 or not any(map(_is_here, nodes.values())):
        _compare(nodes, answer_seconds)


def versions_here() -> Versions:
    """The versions in this process: of mvad with a digest of its source, of Python, and of `PACKAGES`."""
    return _version_reader()(PACKAGES)


def differences(expected: Versions, found: Versions) -> list[str]:
    """The names in ``expected`` whose version in ``found`` is another one; of all but mvad, another major or minor."""
    return [name for name in expected if _relevant(name, expected[name]) != _relevant(name, found.get(name, ABSENT))]


def _relevant(name: str, version: str) -> str:
    if name == "mvad":
        return version
    match = re.match(r"\d+\.\d+", version)
    return match[0] if match else version


def _version_reader() -> Callable[[tuple[str, ...]], Versions]:
    # A function inside a function travels to the workers as code: it runs where there is no mvad, or an older one.
    def read(packages: tuple[str, ...]) -> dict[str, str]:
        import hashlib
        import importlib.metadata
        import pathlib
        import platform

        found = {}
        try:
            import mvad

            folder = pathlib.Path(str(mvad.__file__)).parent
            digest = hashlib.sha256()
            for place in sorted(folder.rglob("*.py")):
                digest.update(place.relative_to(folder).as_posix().encode() + b"\n" + place.read_bytes())
            found["mvad"] = f"{getattr(mvad, '__version__', 'without a version')} (code {digest.hexdigest()[:8]})"
        except ImportError:
            found["mvad"] = "none"
        found["Python"] = platform.python_version()
        for name in packages:
            try:
                found[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                found[name] = "none"
        return found

    return read


def _alive() -> dict[str, Mapping[str, Any]]:
    """The nodes that are alive, by id."""
    return {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}


def _work(node: Mapping[str, Any]) -> float:
    return node["Resources"].get("CPU", 0.0)


def _gpus(nodes: Mapping[str, Mapping[str, Any]]) -> int:
    return int(sum(node["Resources"].get("GPU", 0.0) for node in nodes.values()))


def _is_here(node: Mapping[str, Any]) -> bool:
    return node["NodeID"] == ray.get_runtime_context().get_node_id()


def _name(node: Mapping[str, Any]) -> str:
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"


def _await_workers(
    nodes: Mapping[str, Mapping[str, Any]], actors: int | None, say: Callable[[str], None], seconds: float
) -> None:
    """Let the autoscaler start workers: one, and if it has GPUs, as many as ``actors``."""
    if not any(map(_work, nodes.values())):
        say("waiting for a first worker to join the cluster")
        first = ray.remote(num_cpus=1, max_retries=0)(_version_reader()).remote(())
        if ray.wait([first], timeout=seconds)[1]:
            ray.cancel(first)
            raise UsageError(
                f"no worker of the cluster was ready within {seconds:,.0f} s, and its head runs no work; see what the "
                "autoscaler says with `ray status` (quota, spot capacity, a typing error), then start again."
            )
    present = _gpus(_alive())
    if not present or actors is None or actors <= present:
        return
    say(f"waiting for {actors} GPUs; {present} are there")
    # A placement group, unlike the autoscaler's own requests, ends with this job, whatever ends it.
    group = placement_group([{"GPU": 1.0}] * actors)
    try:
        group.wait(seconds)
    finally:
        remove_placement_group(group)


def _compare(nodes: Mapping[str, Mapping[str, Any]], seconds: float) -> None:
    expected, reader = versions_here(), ray.remote(num_cpus=0, max_retries=0)(_version_reader())
    asked = {}
    for node_id in nodes:
        there = NodeAffinitySchedulingStrategy(node_id, soft=False)
        asked[reader.options(scheduling_strategy=there).remote(PACKAGES)] = node_id
    answered, silent = ray.wait(list(asked), num_returns=len(asked), timeout=seconds)
    problems = [(asked[reference], f"did not answer within {seconds:,.0f} s") for reference in silent]
    for reference in silent:
        ray.cancel(reference, force=True)
    for reference in answered:
        try:
            found = ray.get(reference)
        except RayError as error:
            reason = " ".join(str(error).split())[:200]
            problems.append((asked[reference], f"cannot run a task ({reason})"))
            continue
        other = differences(expected, found)
        if other:
            first = f"has {other[0]} {found[other[0]]}, but this job runs with {other[0]} {expected[other[0]]}"
            more = f" (also another {', '.join(other[1:])})" if len(other) > 1 else ""
            problems.append((asked[reference], first + more))
    still = _alive() if problems else {}
    problems = [(node_id, problem) for node_id, problem in problems if node_id in still]  # one that left does no harm
    if problems:
        node_id, problem = problems[0]
        others = f"; {len(problems) - 1} more nodes are at fault" if len(problems) > 1 else ""
        raise UsageError(
            f"node {_name(nodes[node_id])} {problem}{others}; give all nodes and the driver on {socket.gethostname()} "
            "the same image or the same installation, and start Ray there anew."
        )
