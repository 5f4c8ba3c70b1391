"""What a command needs of its process: signals end it in good order, and output that cannot be written does not."""

import atexit
import functools
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, TextIO

SIGNALS = tuple(signal.Signals[name] for name in ("SIGTERM", "SIGINT", "SIGHUP") if name in signal.Signals.__members__)
GO_ON = "what has been written is kept: repeat the command to go on."
CLEANUP_TIMEOUT_S = 20.0  # Kubernetes kills 30 s after its SIGTERM
END_TIMEOUT_S = 10  # of a worker of Ray

_silencing, _n_silenced = threading.Lock(), 0
_warnings_before: warnings.catch_warnings


class Stopped(KeyboardInterrupt):
    """A signal asks the process to end. Ray's core passes on `KeyboardInterrupt` alone, and loses other exceptions."""


@contextmanager
def end_on_signals() -> Iterator[None]:
    """Run a command that signals can end, with exit code 128 + the signal's number.

    The first signal raises `Stopped` in the main thread; later ones are ignored while the command cleans up. If that
    takes more than `CLEANUP_TIMEOUT_S`, this process and its children are killed. What was ignored when the process
    started, as by ``nohup``, stays ignored. On another thread than the main one, nothing changes.

    Raises
    ------
    SystemExit
        A signal came.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    stopping, ended = threading.Event(), threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        if not received:
            received.append(number)
            stopping.set()
            raise Stopped

    def enforce() -> None:
        stopping.wait()
        if not ended.wait(CLEANUP_TIMEOUT_S):
            kill_children()
            _say_stopped(received[0])
            os._exit(128 + received[0])

    threading.Thread(target=enforce, name="signals", daemon=True).start()
    earlier: dict[signal.Signals, Any] = {
        number: signal.signal(number, stop) for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    except BaseException:  # which one the signal became depends on what it interrupted
        if not received:
            raise
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
        ended.set()
        stopping.set()
    if received:
        _say_stopped(received[0])
        sys.exit(128 + received[0])


def ignore_signals() -> None:
    """Let a process whose work is done end with the exit code of its work, although it may take seconds to end."""
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)


@contextmanager
def unfailing_output() -> Iterator[None]:
    """Go on working when nobody reads standard output any more, or the disk of a log is full."""
    streams = {"stdout": sys.stdout, "stderr": sys.stderr}
    for name, stream in streams.items():
        setattr(sys, name, UnfailingStream(stream or open(os.devnull, "w")))  # noqa: SIM115
    try:
        yield
    finally:
        for name, stream in streams.items():
            getattr(sys, name).close_failed()
            setattr(sys, name, stream)


class UnfailingStream:
    """A stream whose text is lost when it cannot be written.

    Attributes
    ----------
    error
        Why text was lost; None if none was.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.error: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self.error = error
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self.error = error

    def close_failed(self) -> None:
        """Drop what could not be written: Python would try once more when it ends, and exit with code 120."""
        self.flush()
        if self.error is not None:
            with suppress(OSError), open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())


@contextmanager
def without_warnings() -> Iterator[None]:
    """Let no warning be shown; afterwards they are as before the first of several threads came here.

    What Python offers for that restores what it found, and of two threads the later one would find no warnings.
    """
    global _n_silenced, _warnings_before
    with _silencing:
        if not _n_silenced:
            _warnings_before = warnings.catch_warnings()
            _warnings_before.__enter__()
            warnings.simplefilter("ignore")
        _n_silenced += 1
    try:
        yield
    finally:
        with _silencing:
            _n_silenced -= 1
            if not _n_silenced:
                _warnings_before.__exit__(None, None, None)


@functools.cache
def end_in_time() -> None:
    """See to it that this process, if it is a worker of Ray, is killed `END_TIMEOUT_S` after it began to end.

    When the node of a worker has died, Ray's core may wait for ever for a lock of its own while the worker ends; the
    worker would keep its memory. Other processes, which use the same functions, end as they like.
    """
    if hasattr(signal, "SIGALRM") and _is_worker():
        atexit.register(_kill_later)


def _is_worker() -> bool:
    import ray

    return ray.is_initialized() and ray.get_runtime_context().get_task_id() is not None


def _kill_later() -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(END_TIMEOUT_S)


def kill_children(pid: int | None = None) -> None:
    """Kill all descendants of a process, by default this one."""
    import psutil

    for process in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _say_stopped(number: int) -> None:
    sys.stderr.write(f"mvad: stopped by {signal.Signals(number).name}; {GO_ON}\n")
    sys.stderr.flush()
