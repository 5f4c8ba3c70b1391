"""Workers of a Ray on this machine that are forked from one process, which has imported what all of them need.

A worker of Ray is a process that imports PyTorch, Ray Data and the rest anew, for seconds of processor time. Ray has
no option for another way to start them. This module imports little, so that the process can start before a command.
"""

from __future__ import annotations

import atexit
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mvad.runtime.ray_start import fork_client

SERVER = "mvad.runtime.ray_start.fork_server"
WORKER_COMMAND, FIRST_WORKERS = "--python_worker_command=", "--num_prestart_python_workers="  # arguments of the raylet
GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd")  # forking was not tried where there are any

_begun: list[ForkServer] = []


class ForkServer:
    """The process that workers are forked from; it starts at once, and requests wait until it has imported all.

    OSError if there can be no folder for its socket, or the path of that is too long.

    Attributes
    ----------
    process
        The process; it ends when `end` is called, or this process ends.
    """

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="mvad-"))  # of this user alone
        try:
            self.process = self._start()
        except OSError:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        atexit.register(self.end)

    def _start(self) -> subprocess.Popen[bytes]:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self._folder / fork_client.FIRST))
            listener.listen(socket.SOMAXCONN)
            number = listener.fileno()
            path = os.pathsep.join(filter(None, sys.path))
            return subprocess.Popen(
                [sys.executable, "-m", SERVER, str(number), str(self._folder)],
                # One thread of OpenMP each, as Ray tells its workers before they import anything.
                env={"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": path},
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[number],
                start_new_session=True,  # signals from the terminal are for this process
            )

    @contextmanager
    def used(self) -> Iterator[None]:
        """While the context lasts, a raylet that starts here will have its workers forked."""
        from ray._private import services

        from mvad.runtime.ray_start.lean_node import replaced

        with replaced((services, "start_ray_process", self._with_forks(services.start_ray_process))):
            yield

    def _with_forks(self, start: Callable[..., Any]) -> Callable[..., Any]:
        """Ray's function that starts a process from its command, which starts a raylet whose workers are forked."""
        client = subprocess.list2cmdline([sys.executable, "-I", "-S", fork_client.__file__, str(self._folder)])

        def changed(part: str) -> str:
            if part.startswith(FIRST_WORKERS):
                return f"{FIRST_WORKERS}0"  # they are of no job, and so of a kind that no job needs
            if part.startswith(WORKER_COMMAND):
                return f"{WORKER_COMMAND}{client} {part.removeprefix(WORKER_COMMAND)}"
            return part

        def start_with_forks(command: Sequence[str], *arguments: Any, **named: Any) -> Any:
            return start([changed(part) for part in command], *arguments, **named)

        return start_with_forks

    def end(self) -> None:
        """End the process, and the servers it has forked; workers go on."""
        atexit.unregister(self.end)
        self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def begin() -> None:
    """Start a fork server for the Ray that this process will start, where forking is known to work: on Linux."""
    if sys.platform == "linux" and not any(map(os.path.exists, GPU_DEVICES)):
        with suppress(OSError):  # Ray starts workers as usual
            _begun.append(ForkServer())


def begun() -> ForkServer | None:
    """The fork server that was begun, or else a new one; None where it is not known to work with this Ray."""
    from mvad.runtime.ray_start.lean_node import is_tried

    if not _begun:
        begin()
    server = _begun.pop() if _begun else None
    if server and not is_tried():
        server.end()
        return None
    return server
