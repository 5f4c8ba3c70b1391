"""Files of score rows that one joined file takes the place of: which of them count while both are there.

Before a joined file appears, a file `MARKER` next to it names it, and those that it replaces. As soon as the joined one
is there, which happens all at once, the others do not count any more, whoever was killed before removing them. Arrow
and Spark take no notice of names that begin with ``_``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection
from typing import NamedTuple

from mvad import storage

MARKER = re.compile(r"_joined-.*\.json")
NAME = re.compile(r"part-[^/\\]*\.parquet")  # of the files that a marker may name, for they are removed


class Joining(NamedTuple):
    """The names of files of one folder: of one that holds the rows of the others."""

    joined: str
    replaced: list[str]

    @classmethod
    def from_bytes(cls, content: bytes) -> Joining:
        """Read a marker; ValueError if it is damaged."""
        try:
            facts = json.loads(content)
            joined, replaced = facts["joined"], list(facts["replaced"])
            if all(map(NAME.fullmatch, [joined, *replaced])) and joined not in replaced:
                return cls(joined, replaced)
        except (KeyError, TypeError):
            pass
        raise ValueError("no marker of joined files")

    @property
    def marker(self) -> str:
        """The name of the file that says so."""
        return f"_joined-{self.joined}.json"

    def to_bytes(self) -> bytes:
        return json.dumps(self._asdict()).encode()


def superseded(paths: Collection[str], read: Callable[[str], bytes]) -> set[str]:
    """Those of the files of score rows that do not count, because a joined one is there; ``read`` reads a file."""
    found: set[str] = set()
    for path in paths:
        folder, _, name = path.rpartition("/")
        if MARKER.fullmatch(name):
            try:
                joined, replaced = Joining.from_bytes(read(path))
            except (OSError, ValueError):  # it has just been removed, after those that it names
                continue
            if f"{folder}/{joined}" in paths:
                found.update(f"{folder}/{name}" for name in replaced)
    return found


def finish_joining(scores: str) -> None:
    """Remove what was left to remove below the folder of score rows (a URI) when joining was interrupted."""
    if not storage.exists(scores):
        return
    for entry in storage.list_files(scores):
        name = entry.path.rpartition("/")[2]
        if MARKER.fullmatch(name):
            try:
                joining = Joining.from_bytes(storage.read(entry.uri))
            except FileNotFoundError:
                continue
            except ValueError:  # not whole, so that nothing was joined
                storage.remove(entry.uri)
                continue
            complete(storage.sibling(entry.uri, ""), joining)


def complete(folder: str, joining: Joining) -> None:
    """Remove the files that a joined one replaces, if it is there, then the marker."""
    if storage.exists(storage.join(folder, joining.joined)):
        storage.parallel_map(storage.remove, [storage.join(folder, name) for name in joining.replaced])
    storage.remove(storage.join(folder, joining.marker))
