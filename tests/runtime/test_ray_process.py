"""Whatever goes wrong when Ray starts is one sentence, in time."""

import errno
import os
import shlex
import socket
import stat
import subprocess
import sys
import threading
from contextlib import suppress

import psutil
import pytest
import ray
from ray._private import services
from ray.data._internal.execution import streaming_executor
from ray.data._internal.stats import _StatsManager

from helpers.waits import has_ended, wait_until
from mvad.errors import UsageError
from mvad.runtime.ray_start import process as ray_process
from mvad.runtime.ray_start.lean_data import lean_data
from mvad.runtime.ray_start.lean_node import AGENTS, PLACEHOLDER, lean_node, replaced
from mvad.runtime.ray_start.process import RayProcess, start_error
from mvad.runtime.ray_start.token import private_token
from mvad.runtime.session import ray_session

TOKEN_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


@pytest.fixture
def not_running(monkeypatch):
    """As if no Ray ran; a thread that a test began ends before the real `ray.shutdown` is back."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    earlier = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - earlier:
        thread.join(10)
        assert not thread.is_alive(), thread


@pytest.fixture
def listener():
    """Somebody who listens and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_only_what_jobs_need_is_started(ray_local):
    started = [words(process) for process in psutil.Process().children(recursive=True)]
    programs = {word for command in started for word in command}
    assert any(program.endswith("/raylet") for program in programs)
    unneeded = ("/dashboard/dashboard.py", "/monitor.py", "/log_monitor.py", "/agent.py", "/agent/main.py", "Agent")
    assert not [program for program in programs if program.endswith(unneeded)]
    placeholders = [command for command in started if command and shlex.join(command) == PLACEHOLDER]
    assert len(placeholders) == len(AGENTS)


def test_only_actors_of_jobs_are_started(ray_local):
    before = ray._private.state.actors()
    dataset = ray.data.from_items([{"value": 1}, {"value": 2}]).map_batches(doubling_actor(), concurrency=1)
    dataset.context.execution_options.preserve_order = True
    assert [row["value"] for row in dataset.iter_rows()] == [2, 4]
    started = {key: actor for key, actor in ray._private.state.actors().items() if key not in before}
    assert {actor["ActorClassName"] for actor in started.values()} == {"MapWorker(MapBatches(Doubled))"}


def doubling_actor():
    """A class that travels to actors as it is: they cannot import the modules of tests."""

    class Doubled:
        def __call__(self, batch):
            return {"value": batch["value"] * 2}

    return Doubled


def test_actors_of_ray_data_are_those_of_versions_that_were_tried(monkeypatch):
    original = streaming_executor.create_cluster_autoscaler
    monkeypatch.setattr(ray, "__version__", "3.0.0")
    with lean_data():
        assert streaming_executor.create_cluster_autoscaler is original


def test_what_is_replaced_comes_back():
    earlier = vars(_StatsManager)["update_execution_metrics"]
    with replaced((_StatsManager, "update_execution_metrics", None)):
        assert _StatsManager.update_execution_metrics is None
    assert vars(_StatsManager)["update_execution_metrics"] is earlier
    assert isinstance(earlier, staticmethod)


def test_placeholders_of_agents_end_with_their_raylet():
    raylet = subprocess.Popen(["bash", "-c", f"{PLACEHOLDER} & wait"])
    wait_until(lambda: any("kill -0" in " ".join(words(child)) for child in psutil.Process(raylet.pid).children()))
    below = psutil.Process(raylet.pid).children(recursive=True)
    raylet.kill()
    raylet.wait()
    wait_until(lambda: all(map(has_ended, below)), "the end of the placeholder")


def test_agents_of_versions_that_were_not_tried_are_started(monkeypatch):
    original = services.start_ray_process
    with lean_node():
        assert services.start_ray_process is not original
    monkeypatch.setattr(ray, "__version__", "3.0.0")
    with lean_node():
        assert services.start_ray_process is original
    assert services.start_ray_process is original


def test_commands_of_other_processes_stay_as_they_are(monkeypatch):
    started = []
    monkeypatch.setattr(services, "start_ray_process", lambda command, *rest: started.append(command))
    command = ["gcs_server", "--session_dir=/tmp", "--node_id=1"]
    with lean_node():
        services.start_ray_process(command, "gcs_server")
    assert started == [command]


def words(process):
    with suppress(psutil.Error):
        return process.cmdline()
    return []


def test_processes_that_nobody_has_taken_note_of_have_ended(monkeypatch):
    monkeypatch.setattr(ray_process, "DEATH_TIMEOUT_S", 1000.0)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    wait_until(lambda: psutil.Process(ended.pid).status() == psutil.STATUS_ZOMBIE)
    ray_process._kill({psutil.Process(ended.pid)})
    assert not psutil.pid_exists(ended.pid)


def reason(address):
    with pytest.raises(UsageError) as refused, ray_session(address):
        pass
    return str(refused.value)


@pytest.mark.parametrize("form", ["{}", "ray://{}"])
def test_a_dead_address_is_refused_before_ray_looks_for_it(not_running, monkeypatch, form):
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray was started"))
    address = form.format("127.0.0.1:1")
    assert reason(address).startswith(f"no Ray cluster at {address!r} ([Errno {errno.ECONNREFUSED}]")


def test_the_address_in_the_environment_is_named_too(not_running, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert "see --address and RAY_ADDRESS" in reason(None)


def test_an_address_that_never_answers_is_given_up(not_running, monkeypatch, listener):
    given_up, unregistered = threading.Event(), []
    monkeypatch.setattr(ray, "init", lambda **_: given_up.wait())
    monkeypatch.setattr(ray_process, "START_TIMEOUT_S", 0.1)
    monkeypatch.setattr(ray_process, "GIVE_UP_TIMEOUT_S", 0.1)
    monkeypatch.setattr(ray_process.atexit, "unregister", unregistered.append)
    assert reason(listener) == (
        f"no Ray cluster at {listener!r} (no answer within 0 s); see --address and RAY_ADDRESS."
    )
    assert unregistered == [ray.shutdown]  # Python would wait for the start when it ends
    given_up.set()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ConnectionError("nobody there"), "no Ray cluster at '10.0.0.9:6379' (nobody there)"),
        (ValueError("Invalid address"), "no Ray cluster at '10.0.0.9:6379' (Invalid address)"),
        (RuntimeError("wrong\ntoken"), "no Ray cluster at '10.0.0.9:6379' (wrong token)"),
    ],
)
def test_what_ray_says_of_a_cluster(error, message):
    assert str(start_error("10.0.0.9:6379", error)).startswith(message)


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(errno.EACCES, "Permission denied", "/tmp/ray/session_1"),
        OSError(errno.ENOSPC, "No space left on device", "/tmp/ray/session_1"),
        OSError("AF_UNIX path length cannot exceed 107 bytes: /a/long/path"),
    ],
)
def test_a_folder_that_ray_cannot_use(error, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", "/a/long/path")
    message = str(start_error(None, error))
    assert message.startswith("Ray cannot keep its files in /a/long/path (")
    assert message.endswith("set RAY_TMPDIR to a folder of yours with a short path.")


def test_a_start_that_fails_ends_with_what_ray_said(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    logs = tmp_path / f"ray/session_2026-11-23_00-00-00_000000_{os.getpid()}/logs"
    logs.mkdir(parents=True)
    (logs / "gcs_server.out").write_text("all is well\n")
    os.utime(logs / "gcs_server.out", (1, 1))
    (logs / "raylet.err").write_text("first\nmmap failed: no memory\n[1 I] Set ray log level from\n\n")
    message = str(start_error(None, Exception("The current node\ntimed out")))
    assert message.startswith(
        "Ray did not start on this machine (The current node timed out); its log ends with: mmap failed: no memory;"
    )


def test_too_few_addresses(monkeypatch):
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (8 << 30, 8 << 30))
    with pytest.raises(UsageError, match=r"8\.0 GiB of addresses here \(ulimit -v\)"):
        RayProcess(None).start()


@pytest.mark.parametrize("writable", [True, False])
def test_shared_memory_that_cannot_be_written_is_not_used(not_running, monkeypatch, tmp_path, writable):
    monkeypatch.setattr(ray_process, "SHARED_MEMORY", str(tmp_path if writable else tmp_path / "missing"))
    monkeypatch.setattr(ray_process.sys, "platform", "linux")
    arguments = {}
    monkeypatch.setattr(ray, "init", lambda **given: arguments.update(given))
    process = RayProcess(None)
    process.start()
    process.end()
    assert ("_plasma_directory" in arguments) is not writable


# ------------------------------------------------------------------------------------------------ the token


@pytest.fixture
def home(monkeypatch, tmp_path):
    for name in TOKEN_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_ray_alone_asks_for_a_token(ray_local):
    from ray._private.authentication.authentication_utils import is_token_auth_enabled

    assert is_token_auth_enabled()


def test_the_token_is_readable_by_the_user_alone(home):
    with private_token():
        assert not os.environ.keys() & set(TOKEN_VARIABLES)
    file = home / ".ray/auth_token"
    assert [path.name for path in file.parent.iterdir()] == ["auth_token"]
    assert len(file.read_text()) == 64
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_an_earlier_token_stays_and_is_closed_to_others(home):
    file = home / ".ray/auth_token"
    file.parent.mkdir()
    file.write_text("0123456789abcdef" * 4)
    file.chmod(0o644)
    with private_token():
        pass
    assert file.read_text() == "0123456789abcdef" * 4
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize("kind", ["unset", "missing", "a file", "read-only"])
def test_without_a_home_the_token_is_in_the_environment(home, monkeypatch, kind):
    if kind == "unset":
        monkeypatch.delenv("HOME")
    elif kind == "read-only":
        monkeypatch.setenv("HOME", "/proc")
    else:
        (home / "file").touch()
        monkeypatch.setenv("HOME", str(home / ("file" if kind == "a file" else "missing/home")))
    with private_token():
        assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
    assert "RAY_AUTH_TOKEN" not in os.environ


def test_a_token_that_was_given_is_used(home, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/somewhere")
    with private_token():
        assert "RAY_AUTH_TOKEN" not in os.environ
    assert not (home / ".ray").exists()


# ------------------------------------------------------------------------------------------------ its processes


def test_no_process_is_left(not_running, monkeypatch, tmp_path):
    """Of those that the start began, also when it fails; others of this process stay."""
    import subprocess

    folder = tmp_path / "ray"
    monkeypatch.setattr(ray, "__file__", str(folder / "__init__.py"))
    command = ["bash", "-c", "sleep 60 & wait", str(folder / "raylet")]
    earlier, started = subprocess.Popen(command), []

    def fail(**arguments):
        started.append(subprocess.Popen(command))
        wait_until(lambda: ray_process.psutil.Process(started[0].pid).children())
        raise RuntimeError("no")

    monkeypatch.setattr(ray, "init", fail)
    other = subprocess.Popen(["sleep", "60"])
    try:
        process = RayProcess(None)
        with pytest.raises(UsageError, match="Ray did not start"):
            process.start()
        below = ray_process.psutil.Process(started[0].pid).children()
        process.end()
        assert started[0].poll() is not None
        wait_until(lambda: all(map(has_ended, below)), "the end of its children")
        assert earlier.poll() is None
        assert other.poll() is None
    finally:
        earlier.kill()
        other.kill()
