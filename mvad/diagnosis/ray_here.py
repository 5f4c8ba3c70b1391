"""Whether jobs find the cluster that they are told to use, or can start Ray on this machine."""

import os
import tempfile
import time
from collections.abc import Iterator

from mvad.console import plural
from mvad.diagnosis.finding import Finding, gib
from mvad.errors import UsageError
from mvad.options import DoctorOptions

MAX_SOCKET_PATH = 107  # bytes, of Linux; macOS has 103
SOCKET = "/ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"  # below Ray's folder
LISTEN_TIMEOUT_S = 3.0


def ray_here(options: DoctorOptions) -> Iterator[Finding]:
    """The Ray that jobs would use; with ``options.ray`` it is joined or started."""
    from mvad.runtime.ray_start.process import LOCAL, require_address_space, require_listener

    address = options.address or os.environ.get("RAY_ADDRESS") or LOCAL
    try:
        if options.ray:
            yield _joined(options.address, address)
        elif address != LOCAL:
            require_listener(address, LISTEN_TIMEOUT_S)
            yield Finding("Ray", f"jobs join {address}, where a server answers")
        else:
            require_address_space()
            yield _folder()
    except UsageError as error:
        yield Finding("Ray", "does not start" if address == LOCAL else f"none at {address}", "broken", str(error))


def _joined(asked: str | None, address: str) -> Finding:
    import ray

    from mvad.runtime.session import ray_session

    started = time.monotonic()
    with ray_session(asked):
        seconds, resources = time.monotonic() - started, ray.cluster_resources()
        nodes = sum(node["Alive"] for node in ray.nodes())
    have = f"{plural(nodes, 'node')}, {resources.get('CPU', 0):g} CPUs, {resources.get('GPU', 0):g} GPUs"
    store = gib(resources.get("object_store_memory", 0))
    return Finding("Ray", f"{address} answered after {seconds:.1f} s: {have}, {store} for images")


def _folder() -> Finding:
    """The folder that a Ray on this machine keeps its files in."""
    folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    advice = f"Ray cannot keep its files in {folder}; set RAY_TMPDIR to a folder of yours with a short path"
    if not os.access(folder, os.W_OK | os.X_OK):
        return Finding("Ray", f"{folder} cannot be written", "broken", advice)
    if len(os.fsencode(folder + SOCKET)) > MAX_SOCKET_PATH:
        return Finding("Ray", f"the path {folder} is too long", "broken", advice)
    return Finding("Ray", "jobs start one of their own on this machine (to try that: mvad doctor --ray)")
