"""Which files have been scored, or tried, and what they were like then."""

from __future__ import annotations

from collections.abc import Collection

import pyarrow as pa

State = tuple[int | None, int | None]  # size in bytes, and time of the last change in microseconds; None: not known


class SeenFiles:
    """The files that have a row, by image id."""

    def __init__(self) -> None:
        self._states: dict[str, State] = {}
        self._failed: set[str] = set()  # those whose row is an error

    def __contains__(self, image_id: str) -> bool:
        return image_id in self._states

    def add(self, images: pa.Table, failed: Collection[str] = ()) -> None:
        """Note images that have a row now, with ``file_size`` and ``file_mtime`` of when they were listed.

        ``failed`` has the image ids of those whose row is an error.
        """
        states = _states(images)
        self._states |= states
        self._failed = (self._failed - states.keys()) | {name for name in states if name in failed}

    def unseen(self, images: pa.Table, *, by_name: bool = False) -> pa.Table:
        """The images without a row, and those whose file has changed since they got it.

        With ``by_name`` a change matters only to those whose row is an error.
        """
        wanted = [
            name not in self._states
            or ((not by_name or name in self._failed) and _has_changed(self._states[name], state))
            for name, state in _states(images).items()
        ]
        return images.filter(pa.array(wanted, pa.bool_()))

    def keep_only(self, images: pa.Table) -> None:
        """Forget all files that are not among these."""
        names = set(images["image_id"].to_pylist())
        self._states = {name: state for name, state in self._states.items() if name in names}
        self._failed &= names


def _states(images: pa.Table) -> dict[str, State]:
    times = images["file_mtime"].cast(pa.timestamp("us", "UTC")).cast(pa.int64())
    states = zip(images["file_size"].to_pylist(), times.to_pylist(), strict=True)
    return dict(zip(images["image_id"].to_pylist(), states, strict=True))


def _has_changed(before: State, now: State) -> bool:
    return any(None not in pair and pair[0] != pair[1] for pair in zip(before, now, strict=True))
