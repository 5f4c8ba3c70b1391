"""Workers of a Ray on this machine are forked, and are as they would be if Ray had started each of them."""

import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import ray

from helpers.waits import has_ended, wait_until
from mvad import __main__ as program
from mvad.commands import COMMANDS, ON_RAY
from mvad.options import keywords_of
from mvad.runtime.ray_start import fork_client, forks, lean_node

HAS_GPU = any(map(os.path.exists, forks.GPU_DEVICES))
pytestmark = pytest.mark.skipif(sys.platform != "linux" or HAS_GPU, reason="workers are forked on Linux without GPUs")


@pytest.fixture
def server():
    server = forks.ForkServer()
    yield server
    server.end()


def client_command(folder, *command):
    """What Ray runs to start a worker."""
    return [sys.executable, "-I", "-S", fork_client.__file__, str(folder), sys.executable, *command]


def client(server, *command, **options):
    """The command of a worker, as Ray starts it: its exit code and what it wrote."""
    words = client_command(server._folder, *command)
    return subprocess.run(words, capture_output=True, text=True, timeout=120, check=False, **options)


@pytest.fixture
def script(tmp_path):
    """A script that writes what it is into the file that it is told."""
    path = tmp_path / "script.py"
    path.write_text(
        "import json, os, signal, sys\n"
        "print('said')\n"
        "with open(sys.argv[1] + '.part', 'w') as file:\n"
        "    modules = [name for name in ('torch', 'ray.data', 'mvad.scoring.scorer_actor') if name in sys.modules]\n"
        "    json.dump({'name': __name__, 'arguments': sys.argv, 'folder': os.getcwd(), 'path': sys.path[0],\n"
        "               'environment': dict(os.environ), 'modules': modules, 'parent': os.getppid(),\n"
        "               'waits': signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL,\n"
        "               'leads': os.getpgrp() == os.getpid()}, file)\n"
        "os.rename(sys.argv[1] + '.part', sys.argv[1])\n"
    )
    return path


def outcome(path):
    wait_until(path.exists, "the end of the script")
    return json.loads(path.read_text())


def test_a_worker_is_what_ray_asked_for(server, script, tmp_path):
    environment = {"RAY_JOB_ID": "01000000", "RAY_RAYLET_PID": "7", "COLOUR": "green"}
    files = [tmp_path / "first", tmp_path / "second"]
    output = tmp_path / "output"
    for file in files:
        with output.open("a") as stream:
            arguments = ["/a/setup_worker.py", str(script), str(file), "--language=PYTHON"]
            command = client_command(server._folder, *arguments)
            assert subprocess.run(command, env=environment, cwd="/usr", stdout=stream, timeout=120).returncode == 0
    first, second = map(outcome, files)
    assert first["name"] == "__main__"
    assert first["arguments"] == [str(script), str(files[0])]
    assert (first["folder"], first["path"]) == ("/usr", str(tmp_path))
    assert {name: first["environment"].get(name) for name in environment} == environment
    assert first["environment"].keys() <= {*environment, "LC_CTYPE"}
    assert first["modules"] == ["torch", "ray.data", "mvad.scoring.scorer_actor"]
    assert first["waits"]
    assert first["leads"]
    assert first["parent"] == second["parent"] != server.process.pid  # the server of this kind
    assert output.read_text() == "said\n" * 2


def test_each_kind_of_worker_has_a_server(server, script, tmp_path):
    parents = set()
    for job in ("01000000", "02000000"):
        file = tmp_path / job
        assert client(server, str(script), str(file), env={"RAY_JOB_ID": job}).returncode == 0
        parents.add(outcome(file)["parent"])
    assert len(parents) == 2


def test_servers_have_no_threads_that_a_fork_would_lose(server, script, tmp_path):
    assert client(server, str(script), str(tmp_path / "file")).returncode == 0
    processes = [psutil.Process(server.process.pid), psutil.Process(outcome(tmp_path / "file")["parent"])]
    for process in processes:
        names = sorted(path.read_text().strip() for path in Path(f"/proc/{process.pid}/task").glob("*/comm"))
        # PyArrow's allocator ends its thread before a fork, and starts it again.
        assert len([name for name in names if name != "jemalloc_bg_thd"]) == 1, names


def test_without_a_server_the_client_becomes_the_worker(server, script, tmp_path):
    server.process.kill()
    server.process.wait()
    file = tmp_path / "file"
    assert client(server, str(script), str(file)).stdout == "said\n"
    assert outcome(file)["parent"] == os.getpid()


def test_a_worker_with_an_environment_of_its_own_is_not_forked(server):
    done = client(server, "-c", "import sys; print(sys.argv[1:])", f"{fork_client.ENVIRONMENT}={{}}")
    assert done.stdout == f"['{fork_client.ENVIRONMENT}={{}}']\n"


def test_servers_end_with_the_process_that_began_them(script, tmp_path):
    code = (
        "import sys, time\n"
        "from mvad.runtime.ray_start import forks\n"
        "server = forks.ForkServer()\n"
        "print(server._folder, flush=True)\n"
        "time.sleep(600)\n"
    )
    path = os.pathsep.join(filter(None, sys.path))
    driver = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path}
    )
    folder = Path(driver.stdout.readline().strip())
    subprocess.run(client_command(folder, str(script), str(tmp_path / "file")), check=True, timeout=120)
    outcome(tmp_path / "file")
    servers = psutil.Process(driver.pid).children(recursive=True)
    assert len(servers) >= 2
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    driver.stdout.close()
    wait_until(lambda: all(map(has_ended, servers)), "the end of the servers")
    wait_until(lambda: not folder.exists(), "the end of their folder")


def test_workers_draw_numbers_of_their_own(ray_local):
    @ray.remote(num_cpus=0)
    class Drawing:
        def draw(self):
            return os.getppid(), [ray.ObjectRef.from_random().hex() for _ in range(3)]

    drawn = ray.get([actor.draw.remote() for actor in [Drawing.remote() for _ in range(3)]])
    assert len({parent for parent, _ in drawn}) == 1  # they were forked
    assert "fork_server" in " ".join(psutil.Process(drawn[0][0]).cmdline())
    assert len({number for _, numbers in drawn for number in numbers}) == 9


def test_the_end_of_a_worker_is_its_own(ray_local):
    @ray.remote(num_cpus=0)
    class Counting:
        def processes(self):
            return os.getpid(), os.getppid()

    first, second = Counting.remote(), Counting.remote()
    (process, server), (other, _) = ray.get([first.processes.remote(), second.processes.remote()])
    process = psutil.Process(process)
    ray.kill(first)
    wait_until(lambda: has_ended(process))
    assert ray.get(second.processes.remote()) == (other, server)
    assert ray.get(Counting.remote().processes.remote())[1] == server


def test_numbers_that_workers_would_share_are_noticed():
    code = (
        "import ray\n"
        "from mvad.runtime.ray_start.fork_server import _random_id\n"
        "print(_random_id() == _random_id())\n"
        "ray.ObjectRef.from_random()\n"
        "print(_random_id() == _random_id())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["False", "True"]


def test_what_is_imported_before_ray_does_not_import_it():
    code = (
        "import sys\n"
        "from mvad.runtime.ray_start import fork_server\n"
        "fork_server._import(fork_server.WITHOUT_RAY + fork_server.LATER_WITHOUT_RAY)\n"
        "print('ray' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "False\n"


def test_forking_is_for_versions_of_ray_that_were_tried(monkeypatch):
    monkeypatch.setattr(ray, "__version__", "3.0.0")
    assert not lean_node.is_tried()
    assert forks.begun() is None
    assert not forks._begun


def test_forking_is_for_machines_without_gpus(monkeypatch, tmp_path):
    monkeypatch.setattr(forks, "GPU_DEVICES", (str(tmp_path),))
    assert forks.begun() is None


def test_without_a_place_for_its_socket_there_is_no_server(monkeypatch, tmp_path):
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    assert forks.begun() is None
    assert not list(folder.iterdir())
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    assert forks.begun() is None


def test_commands_that_start_ray_are_those_that_take_an_address():
    def takes_address(name):
        options = getattr(importlib.import_module(f"mvad.commands.{name}"), name).options
        return "address" in {parameter.name for parameter in keywords_of(options)}

    assert {*ON_RAY, "doctor"} == {name for name in COMMANDS if takes_address(name)}  # doctor only looks at one


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("score dump --models models", True),
        ("false-alarms data", True),
        ("score --help", False),
        ("score dump --address=1.2.3.4:6379", False),
        ("models models", False),
        ("", False),
    ],
)
def test_workers_are_prepared_for_commands_that_start_ray(monkeypatch, line, expected):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert program._starts_ray(line.split()) is expected
    monkeypatch.setenv("RAY_ADDRESS", "1.2.3.4:6379")
    assert not program._starts_ray(line.split())
