"""What control groups, as of a container or a systemd unit, leave of a machine; None: they set no limit.

Both versions of cgroups are read, also of the groups around this process's own. Where no file tells a limit, as outside
of Linux, there is none.
"""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

ROOT = Path("/")
NO_LIMIT = 1 << 60  # bytes: what the first version of cgroups has for none is about 2^63


def core_limit(root: Path = ROOT) -> float | None:
    """Cores that may be used at a time."""
    limits = []
    for folder in _folders(root, "cpu"):
        with suppress(OSError, ValueError):
            quota, period = (folder / "cpu.max").read_text().split()
            limits.append(int(quota) / int(period))
        with suppress(OSError, ValueError):
            quota_us = int((folder / "cpu.cfs_quota_us").read_text())
            limits += [quota_us / int((folder / "cpu.cfs_period_us").read_text())] if quota_us > 0 else []
    return min(limits, default=None)


def memory_limit(root: Path = ROOT) -> int | None:
    """Bytes that may be used; above that the kernel ends a process."""
    limits = []
    for folder in _folders(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            with suppress(OSError, ValueError):
                limits.append(int((folder / name).read_text()))
    return min((limit for limit in limits if limit < NO_LIMIT), default=None)


def _folders(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's group and of those around it."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    mounted = root / "sys/fs/cgroup"
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = mounted / controller if controllers else mounted
        inner = base / path.lstrip("/")
        yield from (folder for folder in (inner, *inner.parents) if folder.is_relative_to(base))
