"""ONNX graphs that were exported before, in the user's cache folder: an export takes seconds of every run."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mvad import storage
from mvad.preflight import versions_here

MOST_BYTES = 1 << 29  # of all graphs together; those that have not been used for longest go first
EXPORTER = "onnxscript"


def cached_graph(facts: dict[str, Any], export: Callable[[], bytes]) -> bytes:
    """The graph that ``export`` gives, or gave before for the same facts, software and source of mvad.

    A folder that cannot be read or written, or a damaged file in it, costs the export and nothing else.

    Parameters
    ----------
    facts
        All that the graph depends on besides, as plain values.
    """
    text = json.dumps([versions_here(EXPORTER), facts], sort_keys=True)
    name = f"{hashlib.sha256(text.encode()).hexdigest()}.onnx"
    with contextlib.suppress(OSError, RuntimeError):  # there may be no home
        place = cache_folder() / name
        digest, graph = _split(place.read_bytes())
        if hashlib.sha256(graph).digest() == digest:
            os.utime(place)
            return graph
    graph = export()
    with contextlib.suppress(OSError, RuntimeError):
        place = cache_folder() / name
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        storage.write(place.as_uri(), hashlib.sha256(graph).digest(), graph)
        _trim(place.parent)
    return graph


def cache_folder() -> Path:
    """In the folder that the user has for caches."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mvad" / "graphs"


def _split(content: bytes) -> tuple[bytes, bytes]:
    size = hashlib.sha256().digest_size
    return content[:size], content[size:]


def _trim(folder: Path) -> None:
    """Remove graphs until the others are few enough."""
    newest = sorted(((file.stat(), file) for file in folder.glob("*.onnx")), key=lambda pair: -pair[0].st_mtime_ns)
    total = 0
    for status, file in newest:
        total += status.st_size
        if total > MOST_BYTES:
            file.unlink(missing_ok=True)
