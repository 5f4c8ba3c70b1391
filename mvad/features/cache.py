"""What takes seconds to find out and is needed every night, kept in ``~/.cache/mvad``: networks as graphs, and more.

A file holds the SHA-256 of its content, and the content. If it is damaged or another user's, or the folder cannot be
used, the content is made again.
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

GRAPH, WEIGHTS, BACKBONE = ".graph", ".weights", ".backbone"  # suffixes of files
MAX_FILES = 16  # with each suffix; those not used for longest go first
PACKAGES = ("torch", "torchvision", "timm", "onnxscript")  # that the content is made with


def cached(name: Any, suffix: str, make: Callable[[], bytes]) -> bytes:
    """Content from the cache, or else what ``make`` returns.

    ``name``, of JSON values, says all that the content depends on, except the software, which is added to it.
    """
    folder = cache_folder()
    file = folder / f"{_digest(json.dumps([name, _software()], sort_keys=True).encode()).hex()}{suffix}"
    content = _read(file)
    if content is None:
        content = make()
        with suppress(OSError):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            storage.remove_unfinished(storage.to_uri(folder), below=False)
            storage.write(storage.to_uri(file), _digest(content), content)
            _remove_oldest(folder, suffix)
    return content


def cache_folder() -> Path:
    """The folder of the cache, which may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")).absolute() / "mvad"


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


def _remove_oldest(folder: Path, suffix: str) -> None:
    files = sorted(folder.glob(f"*{suffix}"), key=lambda file: file.stat().st_mtime)
    for file in files[:-MAX_FILES]:
        file.unlink()


def _software() -> list[str]:
    """Versions of what the content is made with; of this package the source itself."""
    source = b"\n".join(file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py")))
    return [*map(importlib.metadata.version, PACKAGES), _digest(source).hex()]


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()
