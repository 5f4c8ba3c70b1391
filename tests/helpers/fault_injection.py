"""Kill a command at its n-th change of the storage, as far as one process can: what it had begun stays half done."""

import itertools
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mvad import storage

CHANGES = ("write", "write_stream", "remove", "move")
DEAD_PROCESS = 2**22 + 1  # above the largest process id of Linux


class Killed(BaseException):
    """Not an Exception: nothing but a ``finally`` sees it."""


@contextmanager
def killed_at(n: int, after: str = "") -> Iterator[None]:
    """Raise `Killed` in the ``n``-th change (from 0) of this process, or that after a file of some name was written."""
    begun: list[str] = []

    def counting(name: str, change: Callable[..., Any]) -> Callable[..., Any]:
        def changed(uri: str, *arguments: Any) -> Any:
            if begun or not after:
                begun.append(uri)
            elif name == "write" and uri.endswith(f"/{after}"):
                begun.append(uri)
                return change(uri, *arguments)
            if len(begun) - 1 == n:
                _begin(name, uri)
                raise Killed
            return change(uri, *arguments)

        return changed

    with pytest.MonkeyPatch.context() as patch:
        for name in CHANGES:
            patch.setattr(storage, name, counting(name, getattr(storage, name)))
        yield


def _begin(name: str, uri: str) -> None:
    """Leave what a process leaves that is killed within a change."""
    path = Path(os.fsdecode(storage.local_path(uri)))
    if name.startswith("write"):
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / f".0.{socket.gethostname()}.{DEAD_PROCESS}.unfinished").write_bytes(b"half")
    elif name == "remove" and path.is_dir():
        for file in list(path.rglob("*"))[::2]:
            if file.is_file():
                file.unlink()


def kill_everywhere(command: Callable[[], Any], folders: list[Path], check: Callable[[int], None], keep: Path) -> int:
    """Kill a command in each of its changes in turn, repeat it, and check what it left; returns how many there are.

    ``folders`` are put back before each kill to what they are now, which is kept in ``keep``.
    """
    for number, folder in enumerate(folders):
        if folder.exists():
            shutil.copytree(folder, keep / str(number))
    for n in itertools.count():
        for number, folder in enumerate(folders):
            shutil.rmtree(folder, ignore_errors=True)
            if (keep / str(number)).exists():
                shutil.copytree(keep / str(number), folder)
        try:
            with killed_at(n):
                command()
            break
        except Killed:
            command()
            check(n)
    return n
