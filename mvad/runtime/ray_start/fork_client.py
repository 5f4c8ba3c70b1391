"""What Ray starts in place of a worker: it has one forked, or becomes one itself if that cannot be had.

It is run as a script, and imports little, so that it takes milliseconds: ``fork_client.py FOLDER COMMAND...``.
"""

import json
import os
import socket
import sys
from collections.abc import Mapping, Sequence

FIRST = "first"  # the socket of the process that forks a server for each kind of worker
KIND = ("RAY_RAYLET_PID", "RAY_JOB_ID")  # what Ray's core reads from the environment when it is loaded
# A script of Ray that prepares an environment, if a task or actor asks for one, and then runs what follows; its
# arguments.
SETUP_SCRIPT, ENVIRONMENT, LANGUAGE = "setup_worker.py", "--serialized-runtime-env-context", "--language"


def kind(environment: Mapping[str, str]) -> str:
    """Name of the socket of the server for workers with this environment."""
    return "-".join(environment.get(name, "") for name in KIND)


def has_forked(folder: str, command: Sequence[str]) -> bool:
    """Whether a server runs the command in a process with this process's environment, folder and files."""
    if any(word.startswith(ENVIRONMENT) for word in command):
        return False
    command = [word for word in command if not _is_of_setup(word)]
    try:
        request = {"command": command, "environment": dict(os.environ), "folder": os.getcwd()}
        if not os.path.exists(os.path.join(folder, kind(os.environ))) and not _asked(folder, FIRST, request):
            return False
        return _asked(folder, kind(os.environ), request)
    except OSError:  # there is no server, or no folder any more
        return False


def _is_of_setup(word: str) -> bool:
    return os.path.basename(word) == SETUP_SCRIPT or word.startswith(f"{LANGUAGE}=")


def _asked(folder: str, name: str, request: object) -> bool:
    """Whether the server at a socket has done what it was asked for."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(os.path.join(folder, name))
        socket.send_fds(connection, [b"\0"], [0, 1, 2])
        connection.sendall(json.dumps(request).encode())
        connection.shutdown(socket.SHUT_WR)
        return bool(connection.recv(1))


if __name__ == "__main__":
    if not has_forked(sys.argv[1], sys.argv[2:]):
        os.execv(sys.argv[2], sys.argv[2:])
