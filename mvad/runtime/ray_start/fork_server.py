"""A process that has imported what workers of Ray need, and becomes each of them by forking.

It does so in two steps, for Ray's core reads the environment of its process when it is loaded. The first process
imports everything but Ray, while Ray starts; it forks a server for each kind of worker (`fork_client.kind`), which
imports the rest and forks workers. Run as ``python -m``, with the number of the socket that the first one listens to
and the folder for the others, all end with the process that has started the first, whose end closes standard input.
"""

import functools
import gc
import importlib
import json
import os
import runpy
import selectors
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from mvad.runtime.ray_start.fork_client import kind

# What processes that decode, compute features and score import: first what does not import Ray. What only those that
# fit import comes when nobody waits for a worker.
WITHOUT_RAY = (
    *("jsonschema", "pandas", "pyarrow.dataset", "requests", "scipy.ndimage", "torch", "yaml"),
    *("mvad.detectors", "mvad.features.extractor", "mvad.model_store", "mvad.results.store"),
)
LATER_WITHOUT_RAY = ("mvad.options",)
WITH_RAY = (
    *("ray._private.workers.default_worker", "ray.data"),
    *("mvad.pipeline.decode", "mvad.scoring.scorer_actor"),
)
LATER_WITH_RAY = ("mvad.fitting.tasks",)


@dataclass
class Request:
    """A command of Python, as another process would run it, and that process's standard files."""

    command: list[str]
    environment: dict[str, str]
    folder: str
    files: list[int]
    is_served: bool = False

    def become(self) -> None:
        """Take over what this process does not share with the one that has asked."""
        os.setpgrp()  # Ray ends all processes of a worker's group with the worker
        for number, file in enumerate(self.files):
            os.dup2(file, number)
        os.chdir(self.folder)
        os.environ.clear()
        os.environ.update(self.environment)

    def run(self) -> None:
        """Run the script of the command in this process."""
        script = next(word for word in self.command[1:] if word.endswith(".py"))
        sys.argv = self.command[self.command.index(script) :]
        sys.path[0] = str(Path(script).parent)
        runpy.run_path(script, run_name="__main__")


def main(first: socket.socket, folder: Path) -> None:
    """Serve; this returns in workers alone, when they are done."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # so that the kernel waits for them
    _import(WITHOUT_RAY)
    listener = _forked_server(first, folder)
    _import_with_ray(WITH_RAY)
    request = _forked_worker(listener, folder)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    request.run()


def _forked_server(first: socket.socket, folder: Path) -> socket.socket:
    """Fork a process for each kind of worker; return its socket in that process."""
    for request in _requests(first, folder, functools.partial(_import, LATER_WITHOUT_RAY)):
        path = folder / kind(request.environment)
        request.is_served = path.exists()
        if request.is_served:
            continue
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen(socket.SOMAXCONN)
        if os.fork() == 0:
            os.environ.update(request.environment)
            break
        listener.close()
        request.is_served = True
    first.close()
    return listener


def _forked_worker(listener: socket.socket, folder: Path) -> Request:
    """Fork a process for each request; return the request in that process."""
    for request in _requests(listener, folder, functools.partial(_import_with_ray, LATER_WITH_RAY)):
        try:
            is_worker = os.fork() == 0
        except OSError:  # too many processes, or no memory
            continue
        if is_worker:
            request.become()
            break
        request.is_served = True
    listener.close()
    return request


def _requests(listener: socket.socket, folder: Path, meanwhile: Callable[[], None]) -> Iterator[Request]:
    """What other processes ask for, without an end; they are answered if it was served, and do it themselves if not.

    ``meanwhile`` is called once, as soon as nobody asks. The process, and the folder of sockets, end with its standard
    input.
    """
    is_prepared = False
    with selectors.PollSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        selector.register(sys.stdin, selectors.EVENT_READ)
        while True:
            ready = [key.fileobj for key, _ in selector.select(None if is_prepared else 0)]
            if not ready:
                meanwhile()
                is_prepared = True
                continue
            if sys.stdin in ready:
                shutil.rmtree(folder, ignore_errors=True)
                os._exit(0)
            with suppress(OSError, ValueError), listener.accept()[0] as connection:  # it may be gone
                _, files, _, _ = socket.recv_fds(connection, 1, 3)
                try:
                    with connection.makefile("rb") as stream:
                        request = Request(**json.loads(stream.read()), files=files)
                    yield request
                    if request.is_served:
                        connection.sendall(b"\0")
                finally:
                    for file in files:
                        os.close(file)


def _import(modules: Iterable[str]) -> None:
    for name in modules:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # so that collections of the forked processes leave the shared memory as it is


def _import_with_ray(modules: Iterable[str]) -> None:
    """Import modules that import Ray; SystemExit if all processes that are forked would draw the same random numbers.

    The generator of Ray's core keeps its state in the process. Classes of actors are numbered by it when they are
    defined: here by the system's.
    """
    import ray.actor

    from mvad.runtime.ray_start.lean_node import replaced

    core_id = ray.actor.ActorClassID
    system_id = SimpleNamespace(from_random=lambda: core_id(os.urandom(core_id.size())))
    with replaced((ray.actor, "ActorClassID", system_id)):
        _import(modules)
    if _random_id() == _random_id():
        sys.exit("Ray's core has random numbers already, which all workers would share")


def _random_id() -> bytes:
    """What a forked process draws from the generator of Ray's core first."""
    import ray

    reader, writer = os.pipe()
    if os.fork() == 0:
        os.write(writer, ray.ObjectRef.from_random().binary())
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as stream:
        return stream.read()


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])), Path(sys.argv[2]))
