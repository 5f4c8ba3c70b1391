"""Ray in this process: started within a deadline, ended without a process left, and every failure of either said."""

import atexit
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import psutil
import ray

from mvad.errors import UsageError, one_line
from mvad.runtime.ray_start import forks
from mvad.runtime.ray_start.lean_node import lean_node, quick_end

CONNECT_TIMEOUT_S = 10.0
START_TIMEOUT_S = 50.0
END_TIMEOUT_S = 10.0
GIVE_UP_TIMEOUT_S = 2.0  # for the end of a start that is given up
DEATH_TIMEOUT_S, DEATH_INTERVAL_S = 2.0, 0.01  # of a killed process, and between two looks at it
MIN_ADDRESS_SPACE = 32 << 30  # bytes: Ray and PyTorch reserve many times what they use
SHARED_MEMORY = "/dev/shm"
LOCAL = "local"  # Ray's name for a start on this machine, whatever cluster runs here


class RayProcess:
    """Ray as this process's own, on a thread that starts it, waits, and ends it.

    Off the main thread, Ray leaves the process's handlers of signals alone, and a start that hangs can be given up. The
    thread waits because the kernel kills what a thread has started when the thread ends (so it does when this process
    is killed).

    Parameters
    ----------
    address
        Of a running cluster; None starts Ray on this machine.
    arguments
        Further ones for ``ray.init``.
    """

    def __init__(self, address: str | None, **arguments: Any) -> None:
        self._address = address
        self._arguments = {"address": address or LOCAL, **arguments}
        self._started: Future[None] = Future()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ray", daemon=True)
        self._earlier: set[psutil.Process] = set()
        self._forks: forks.ForkServer | None = None

    def start(self) -> None:
        """Wait until Ray runs; UsageError says why it does not, within a minute."""
        self._earlier = _ray_children()
        if self._address is None:
            require_address_space()
            if not os.access(SHARED_MEMORY, os.W_OK) and sys.platform == "linux":
                self._arguments["_plasma_directory"] = tempfile.gettempdir()
            self._forks = forks.begun()
        else:
            require_listener(self._address)
        with core_muted():
            self._thread.start()
            wait([self._started], START_TIMEOUT_S)
        try:
            if not self._started.done():
                raise TimeoutError(f"no answer within {START_TIMEOUT_S:.0f} s")
            self._started.result()
        except Exception as error:  # Ray raises errors of many kinds, Exception itself among them
            raise start_error(self._address, error) from error

    def end(self) -> None:
        """Disconnect; if Ray was started here, none of its processes is left."""
        processes = self._processes()
        self._end.set()
        if self._thread.is_alive():
            self._thread.join(END_TIMEOUT_S if self._started.done() else GIVE_UP_TIMEOUT_S)
        if self._thread.is_alive():
            atexit.unregister(ray.shutdown)  # it would wait for the lock that the thread holds
        _kill(processes | self._processes())
        if self._forks:
            self._forks.end()

    def _run(self) -> None:
        try:
            with lean_node(), self._forks.used() if self._forks else nullcontext():
                ray.init(**self._arguments)
            self._started.set_result(None)
        except BaseException as error:  # for the thread that waits for the result
            self._started.set_exception(error)
        self._end.wait()
        with quick_end():
            ray.shutdown()

    def _processes(self) -> set[psutil.Process]:
        """What was started here, with all descendants."""
        if self._address is not None:
            return set()
        found = _ray_children() - self._earlier
        if self._forks:
            with suppress(psutil.NoSuchProcess):
                found.add(psutil.Process(self._forks.process.pid))
        for process in list(found):
            with suppress(psutil.NoSuchProcess):
                found |= set(process.children(recursive=True))
        return found


def start_error(address: str | None, error: Exception) -> UsageError:
    """Say in one sentence why Ray did not start, or did not answer, and what to do."""
    reason = one_line(error)
    if address is not None:
        return UsageError(f"no Ray cluster at {address!r} ({reason}); see --address and RAY_ADDRESS.")
    if isinstance(error, OSError) and not isinstance(error, TimeoutError):
        folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
        return UsageError(
            f"Ray cannot keep its files in {folder} ({reason}); set RAY_TMPDIR to a folder of yours with a short path."
        )
    words = _last_words()
    said = f"; its log ends with: {words}" if words else ""
    return UsageError(
        f"Ray did not start on this machine ({reason}){said}; check memory, processes and open files (ulimit -a), and "
        f"{SHARED_MEMORY}."
    )


def _last_words() -> str:
    """The last line that a process of this process's newest Ray wrote to its log."""
    folder = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()) / "ray"
    written: list[tuple[float, str]] = []
    for log in folder.glob(f"session_*_{os.getpid()}/logs/*.[eo][ru][rt]"):
        with suppress(OSError):
            lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
            lines = [line for line in lines if "Set ray log level" not in line]
            written += [(log.stat().st_mtime, lines[-1].strip()[:300])] if lines else []
    return max(written, default=(0.0, ""))[1]


def require_listener(address: str, timeout_s: float = CONNECT_TIMEOUT_S) -> None:
    """UsageError if nobody listens at ``HOST:PORT`` or ``ray://HOST:PORT``: Ray would try for minutes, in silence."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdecimal():
        return  # "auto", or nonsense of which Ray says what is wrong
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout_s).close()
    except (OSError, OverflowError) as error:
        raise start_error(address, error) from error


def require_address_space() -> None:
    """UsageError if a process may have fewer addresses than Ray reserves."""
    try:
        import resource
    except ImportError:
        return
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < MIN_ADDRESS_SPACE:
        raise UsageError(
            f"a process may have {limit / (1 << 30):.1f} GiB of addresses here (ulimit -v), and Ray reserves more than "
            f"it uses; allow {MIN_ADDRESS_SPACE >> 30} GiB, or any number: ulimit -v unlimited."
        )


def _ray_children() -> set[psutil.Process]:
    """Processes of Ray that are children of this one."""
    found, folder = set(), os.path.dirname(ray.__file__)
    for process in psutil.Process().children():
        with suppress(psutil.Error):
            if any(argument.startswith(folder) for argument in process.cmdline()):
                found.add(process)
    return found


def _kill(processes: set[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    deadline = time.monotonic() + DEATH_TIMEOUT_S
    while not all(map(_has_ended, processes)) and time.monotonic() < deadline:
        time.sleep(DEATH_INTERVAL_S)
    psutil.wait_procs(list(processes), timeout=0)  # so that none of those that are children here stays a zombie


def _has_ended(process: psutil.Process) -> bool:
    """Whether a process has ended, although whoever is its parent now may not have taken note of that."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@contextmanager
def core_muted() -> Iterator[None]:
    """Drop what Ray's core, which is not Python, writes to standard error while it starts; exceptions still come."""
    sys.stderr.flush()
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)
