"""The nodes of a real cluster on loopback: their token, their software, and how they end."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from helpers.nodes import free_port
from helpers.tiles import ROOT
from mvad.errors import UsageError
from mvad.runtime import node_check

RAY = Path(sys.executable).with_name("ray")
CHECK = """
import logging, subprocess, sys, time
import ray
from mvad.runtime import node_check
from mvad.errors import UsageError

address, ready = sys.argv[1:]

def wait_for(count):
    for _ in range(240):
        if sum(node["Alive"] for node in ray.nodes()) == count:
            return
        time.sleep(0.25)
    sys.exit("nodes: " + str(len(ray.nodes())))

def check(**limits):
    try:
        node_check.check_cluster(**limits)
        print("the same")
    except UsageError as error:
        print(error)

ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
wait_for(2)
check()
check(answer_timeout_s=0)
open(ready, "w").close()
wait_for(3)
check()
"""


def is_open(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def ended(process, seconds=30):
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """``cluster/local.sh`` with one worker: (process, port, environment)."""
    folder = tmp_path_factory.mktemp("local")
    (folder / "token").write_text("0123456789abcdef" * 4)
    port = free_port()
    variables = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    variables |= {"RAY_AUTH_TOKEN_PATH": str(folder / "token"), "RAY": str(RAY), "PYTHONPATH": str(ROOT)}
    variables |= {"MVAD_PORT": str(port), "MVAD_DASHBOARD_PORT": str(free_port())}
    log = folder / "log"
    with open(log, "w") as stream:
        process = subprocess.Popen(
            [ROOT / "cluster/local.sh", "1"],
            env=variables,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
            # Background processes ignore Ctrl-C, and their children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    try:
        while "Ctrl-C ends them" not in log.read_text():
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        yield process, port, {**variables, "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            ended(process)


def test_nodes_are_compared_before_the_first_image(local, tmp_path):
    _, port, variables = local
    other = tmp_path / "other"
    (other / "mvad").mkdir(parents=True)
    (other / "mvad/__init__.py").write_text('__version__ = "0.0.1"\n')
    (other / "torch-1.0.0.dist-info").mkdir()
    (other / "torch-1.0.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 1.0.0\n")
    check = tmp_path / "check.py"
    check.write_text(CHECK)
    ready = tmp_path / "ready"  # the driver asks for the other node
    driver = subprocess.Popen(
        [sys.executable, check, f"127.0.0.1:{port}", ready],
        cwd=tmp_path,  # Ray puts the driver's folder on the import path of all workers
        env=variables,
        stdout=subprocess.PIPE,
        text=True,
    )
    while not ready.exists() and driver.poll() is None:
        time.sleep(0.1)
    start = [RAY, "start", f"--address=127.0.0.1:{port}", "--block", "--num-cpus=1"]
    start += ["--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"]
    start += [f"--object-store-memory={2**27}"]
    odd_node = subprocess.Popen(
        start,
        env={**variables, "PYTHONPATH": str(other)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        out, _ = driver.communicate(timeout=100)
    finally:
        driver.kill()
        os.killpg(odd_node.pid, signal.SIGKILL)
        odd_node.wait()
    assert driver.returncode == 0, out
    same, unanswered, named = out.splitlines()
    assert same == "the same"
    assert "did not answer within 0 s" in unanswered
    assert re.search(rf"node {re.escape(socket.gethostname())} \([\d.]+\) has mvad 0\.0\.1 \(code \w+\)", named)
    assert "but this job runs with mvad 0." in named
    assert "(also different: torch)" in named


def test_only_the_right_token_is_accepted(local):
    _, _, variables = local

    def nodes(token):
        address = f"http://127.0.0.1:{variables['MVAD_DASHBOARD_PORT']}/api/v0/nodes"
        request = urllib.request.Request(address, headers={"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)["data"]["result"]["result"]

    listed = nodes(Path(variables["RAY_AUTH_TOKEN_PATH"]).read_text())
    assert sum(node["is_head_node"] for node in listed) == 1
    assert len(listed) >= 2
    for wrong in ("f" * 64, ""):
        with pytest.raises(urllib.error.HTTPError, match=r"40[13]"):
            nodes(wrong)


def test_ctrl_c_ends_all_processes(local):
    process, port, _ = local
    nodes = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout.split()
    assert len(nodes) == 2
    process.send_signal(signal.SIGINT)
    assert ended(process) == 0
    assert not is_open(port)
    for _ in range(50):
        listing = subprocess.run(["ps", "-eo", "pgid=,stat="], capture_output=True, text=True, check=True).stdout
        running = [
            group for group, state in map(str.split, listing.splitlines()) if group in nodes and "Z" not in state
        ]
        if not running:
            break
        time.sleep(0.1)
    assert running == []


def test_a_single_machine_is_not_compared(ray_local, monkeypatch):
    monkeypatch.setattr(
        node_check, "_compare_versions", lambda nodes, timeout_s: pytest.fail("the only node was asked")
    )
    node_check.check_cluster()


def test_mismatches():
    expected = {"mvad": "1.0 (code a)", "Python": "3.12.1", "torch": "2.9.1+cpu", "timm": "1.0.20"}
    assert node_check.mismatches(expected, {**expected, "Python": "3.12.9", "torch": "2.9.0+cu128"}) == []
    assert node_check.mismatches(expected, {**expected, "mvad": "1.0 (code b)", "torch": "2.8.1"}) == ["mvad", "torch"]
    assert node_check.mismatches(expected, {**expected, "timm": node_check.MISSING}) == ["timm"]


def test_versions_are_those_installed():
    import timm
    import torch

    import mvad

    versions = node_check.installed_versions()
    assert versions["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert versions["timm"] == timm.__version__
    assert versions["mvad"].startswith(f"{mvad.__version__} (code ")


def test_no_worker_joins(ray_local, monkeypatch):
    def never_answer(packages):
        import time

        time.sleep(600)

    messages = []
    head = {"head": {"Alive": True, "Resources": {}}}
    monkeypatch.setattr(node_check, "_alive_nodes", lambda: head)
    monkeypatch.setattr(node_check, "_version_reader", lambda: never_answer)
    with pytest.raises(UsageError, match=r"no worker joined the cluster within 0 s.*ray status"):
        node_check.check_cluster(notify=messages.append, join_timeout_s=0)
    assert messages == ["waiting for the first worker to join the cluster"]


def test_gpus_are_requested_only_while_the_job_waits(ray_local, monkeypatch):
    from ray.util import placement_group_table

    messages = []
    nodes = {"head": {"Resources": {}}, "worker": {"Resources": {"CPU": 8.0, "GPU": 1.0}}}
    monkeypatch.setattr(node_check, "_alive_nodes", lambda: nodes)
    node_check._await_workers(nodes, 1, messages.append, 0.1)
    node_check._await_workers(nodes, None, messages.append, 0.1)
    assert messages == []
    node_check._await_workers(nodes, 3, messages.append, 0.1)
    assert messages == ["waiting for 3 GPUs; the cluster has 1"]
    states = {group["state"] for group in placement_group_table().values()}
    assert states == {"REMOVED"}
