"""Exported networks, kept in ``~/.cache/mvad``: an export takes seconds, and every night needs the same one.

A file holds the SHA-256 of a graph, and the graph. If it is damaged or another user's, or the folder cannot be used,
the network is exported again.
"""

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from mvad import storage

SUFFIX = ".graph"
MAX_GRAPHS = 16  # files; those not used for longest go first
PACKAGES = ("torch", "torchvision", "timm", "onnxscript")  # that graphs are made with


def cached_graph(name: Any, export: Callable[[], bytes]) -> bytes:
    """The graph of a network from the cache, or else from ``export``.

    ``name``, of JSON values, says all that the graph depends on, except the software, which is added to it.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")).absolute() / "mvad"
    file = folder / f"{_digest(json.dumps([name, _software()], sort_keys=True).encode()).hex()}{SUFFIX}"
    graph = _read(file)
    if graph is None:
        graph = export()
        with suppress(OSError):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            storage.remove_unfinished(storage.to_uri(folder), below=False)
            storage.write(storage.to_uri(file), _digest(graph), graph)
            _remove_oldest(folder)
    return graph


def _read(file: Path) -> bytes | None:
    with suppress(OSError):
        if file.stat().st_uid != os.getuid():
            return None
        content = file.read_bytes()
        length = hashlib.sha256().digest_size
        if content[:length] == _digest(content[length:]):
            os.utime(file)
            return content[length:]
    return None


def _remove_oldest(folder: Path) -> None:
    files = sorted(folder.glob(f"*{SUFFIX}"), key=lambda file: file.stat().st_mtime)
    for file in files[:-MAX_GRAPHS]:
        file.unlink()


def _software() -> list[str]:
    """Versions of what graphs are made with; of this package the source itself."""
    source = b"\n".join(file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py")))
    return [*map(importlib.metadata.version, PACKAGES), _digest(source).hex()]


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()
