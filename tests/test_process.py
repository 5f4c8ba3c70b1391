"""Signals end a command in good order, and output that cannot be written ends none."""

import errno
import os
import re
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import psutil
import pytest

from helpers.tiles import ROOT
from helpers.waits import has_ended, wait_until
from mvad import process
from mvad.process import Stopped, UnfailingStream, end_on_signals, without_warnings
from mvad.version import VERSION

SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]


def python(*arguments, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, *map(str, arguments)], env=environment, text=True, **options)


def raise_signal(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_the_command_after_its_cleanup(number, capsys):
    handlers = [signal.getsignal(each) for each in SIGNALS]
    events = []

    def command():
        try:
            raise_signal(number)
            events.append("went on")
        finally:
            for again in SIGNALS:
                raise_signal(again)
            events.append("cleaned up")

    with pytest.raises(SystemExit) as ended, end_on_signals():
        command()
    assert ended.value.code == 128 + number
    assert events == ["cleaned up"]
    assert capsys.readouterr().err == f"mvad: stopped by {number.name}; {process.GO_ON}\n"
    assert [signal.getsignal(each) for each in SIGNALS] == handlers


@pytest.mark.parametrize("became", [SystemExit(0), RuntimeError("System error: KeyboardInterrupt"), None])
def test_a_signal_ends_the_command_whatever_its_exception_became(became, capsys):

    def command():
        try:
            raise_signal(signal.SIGTERM)
        except Stopped:
            if became is not None:
                raise became from None

    with pytest.raises(SystemExit) as ended, end_on_signals():
        command()
    assert ended.value.code == 143
    assert "stopped by SIGTERM" in capsys.readouterr().err


def test_without_a_signal_nothing_changes(capsys):
    with pytest.raises(SystemExit) as ended, end_on_signals():
        sys.exit(3)
    assert ended.value.code == 3
    with pytest.raises(ZeroDivisionError), end_on_signals():
        1 / 0  # noqa: B018
    assert capsys.readouterr().err == ""


def test_what_was_ignored_stays_ignored():
    """As with ``nohup``."""
    earlier = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with end_on_signals():
            raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, earlier)


def test_on_another_thread_handlers_stay():
    handlers = []

    def work():
        with end_on_signals():
            handlers.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [before]


def test_a_command_that_does_not_end_is_killed_with_its_children():
    code = """
import subprocess, sys, time
from mvad import process
process.CLEANUP_TIMEOUT_S = 0.1
with process.end_on_signals():
    child = subprocess.Popen(["sleep", "60"])
    lines = [str(child.pid)]
    while True:
        try:
            while lines:
                print(lines.pop(), flush=True)
            time.sleep(60)
        except KeyboardInterrupt:
            pass
"""
    running = python("-c", code, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    child = psutil.Process(int(running.stdout.readline()))
    running.send_signal(signal.SIGTERM)
    _, err = running.communicate(timeout=30)
    assert running.returncode == 143
    assert err == f"mvad: stopped by SIGTERM; {process.GO_ON}\n"
    wait_until(lambda: has_ended(child), "the end of the child")


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_after_the_work_changes_no_exit_code(number):
    code = f"""
import atexit, os, signal, sys
def late():
    assert signal.getsignal({int(number)}) is signal.SIG_IGN  # also when Python has ended, and Ray's core has not yet
    os.kill(os.getpid(), {int(number)})
atexit.register(late)
from mvad.__main__ import main
main(["--version"])
"""
    running = python("-c", code, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = running.communicate(timeout=30)
    assert (running.returncode, out, err) == (0, f"{VERSION}\n", "")


def test_a_worker_that_hangs_while_it_ends_is_killed():
    code = """
import atexit, threading
from mvad import process
process.END_TIMEOUT_S = 1
lock = threading.Lock()
lock.acquire()
atexit.register(lock.acquire)
process._is_worker = lambda: True
process.end_in_time()
process.end_in_time()
print("ended", flush=True)
"""
    running = python("-c", code, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert running.communicate(timeout=30) == ("ended\n", "")
    assert running.returncode == -signal.SIGALRM


def test_a_process_that_is_no_worker_of_ray_ends_as_it_likes():
    code = """
from mvad import process
process._kill_later = lambda: print("it would be killed", flush=True)
process.end_in_time()
"""
    assert python("-c", code, stdout=subprocess.PIPE).communicate(timeout=60)[0] == ""


def test_warnings_of_several_threads_are_as_before():
    first, second = threading.Event(), threading.Event()

    def later():
        with without_warnings():
            first.set()
            second.wait()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        thread = threading.Thread(target=later)
        with without_warnings():
            thread.start()
            first.wait()
            warnings.warn("not shown", stacklevel=1)
        second.set()
        thread.join()
        warnings.warn("shown", stacklevel=1)
    assert [str(one.message) for one in caught] == ["shown"]


def test_only_one_place_silences_warnings():
    """Python's own way is for one thread alone."""
    users = [file.name for file in (ROOT / "mvad").rglob("*.py") if "catch_warnings" in file.read_text()]
    assert users == ["process.py"]


def test_a_signal_during_the_imports_leaves_no_traceback():
    code = """
import os, signal, sys
sys.meta_path.insert(0, type("Finder", (), {"find_spec": staticmethod(
    lambda name, *_: os.kill(os.getpid(), signal.SIGINT) if name == "mvad.cli" else None)}))
from mvad.__main__ import main
main(["--version"])
"""
    running = python("-c", code, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = running.communicate(timeout=30)
    assert (running.returncode, out) == (130, "")
    assert err == f"mvad: stopped by SIGINT; {process.GO_ON}\n"


# ------------------------------------------------------------------------------------------------ output


@pytest.fixture(params=["closed pipe", "full disk"])
def broken(request):
    """A stream that cannot be written, and the number of its error."""
    if request.param == "full disk":
        if not Path("/dev/full").exists():
            pytest.skip("no device that is always full")
        stream, number = open("/dev/full", "w"), errno.ENOSPC  # noqa: SIM115
    else:
        reader, writer = os.pipe()
        os.close(reader)
        stream, number = os.fdopen(writer, "w"), errno.EPIPE
    yield stream, number
    stream.close()


def test_text_that_cannot_be_written_is_lost_and_nothing_else(broken):
    stream, number = broken
    output = UnfailingStream(stream)
    for _ in range(3):
        assert output.write("text\n" * 5_000) == 25_000
        output.flush()
    assert output.error.errno == number
    output.close_failed()
    stream.flush()  # what Python does when it ends


def test_commands_go_on_without_output(broken):
    stream, _ = broken
    for arguments, code in ((["--help"], 0), (["models", "nowhere"], 2)):
        running = python("-m", "mvad", *arguments, stdout=stream, stderr=stream)
        assert running.wait(30) == code, arguments


def test_a_document_that_cannot_be_written_is_no_success(broken, base_run):
    stream, number = broken
    running = python(
        "-m", "mvad", "models", base_run[0] / "models", "--json", "--quiet", stdout=stream, stderr=subprocess.PIPE
    )
    _, err = running.communicate(timeout=30)
    assert running.returncode == 1
    assert err == f"mvad: standard output: {os.strerror(number)}; {process.GO_ON}\n"


def test_commands_run_without_any_output():
    closed = "import os, sys; os.close(1); os.execl(sys.executable, sys.executable, '-m', 'mvad', '--help')"
    assert python("-c", closed).wait(30) == 0


@pytest.mark.parametrize("package", ["pyarrow", "pydantic"])
def test_a_package_that_is_missing_is_one_sentence(package):
    code = f"import sys; sys.modules[{package!r}] = None; from mvad.__main__ import main; main(['doctor'])"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert re.fullmatch(rf"mvad: a package that it needs .*{package}.*\n", ended.stderr), ended.stderr
