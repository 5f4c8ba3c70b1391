"""``ray job submit`` to a cluster that asks for a token, as the README says."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import pytest

from helpers.nodes import free_port
from helpers.tiles import ROOT
from helpers.waits import wait_until
from mvad import results
from mvad.storage import to_uri

RAY = Path(sys.executable).with_name("ray")


def environment(token):
    """Ours, without what the Ray of this test session has left in it."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"}
    return {**ours, **own, "RAY_metrics_report_interval_ms": "500"}


@pytest.fixture
def head(tmp_path):
    """A head of its own in a process group of its own: (address of its jobs server, environment, port of metrics)."""
    token = tmp_path / "token"
    token.write_text("0123456789abcdef" * 4)
    port, jobs, exported = free_port(), free_port(), free_port()
    command = [RAY, "start", "--head", "--block", f"--port={port}", "--num-cpus=2", "--node-ip-address=127.0.0.1"]
    command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={jobs}", f"--metrics-export-port={exported}"]
    command += [f"--dashboard-agent-listen-port={free_port()}"]  # the default is taken where another Ray runs
    log = open(tmp_path / "head.log", "w")  # noqa: SIM115
    process = subprocess.Popen(command, env=environment(token), stdout=log, stderr=log, start_new_session=True)
    address = f"http://127.0.0.1:{jobs}"
    try:
        wait_for(jobs, process, tmp_path / "head.log")
        yield address, environment(token), exported
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        time.sleep(2)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.close()


def wait_for(port, process, log):
    for _ in range(120):
        assert process.poll() is None, log.read_text()
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.5)
    pytest.fail(f"no answer on port {port}: {log.read_text()}")


def submit(head, *job, **changed):
    address, variables, _ = head
    command = [RAY, "job", "submit", "--address", address, "--working-dir", ".", "--", sys.executable, *job]
    for _ in range(10):
        done = subprocess.run(
            [str(part) for part in command],
            cwd=ROOT,
            env={**variables, **changed},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        if "No available agent" not in done.stderr:  # a new head takes some seconds to have one
            break
        time.sleep(1)
    return done


def metrics(port):
    """mvad's metrics as Prometheus would read them, by name and labels."""
    text = urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
    values = {}
    for name, labels, value in re.findall(r"^ray_mvad_(\w+)\{(.*)\} (\S+)$", text, re.MULTILINE):
        tags = re.findall(r'(stage|status)="(\w+)"', labels)
        key = (name, *(tag for _, tag in sorted(tags)))
        values[key] = values.get(key, 0.0) + float(value)
    return values


def test_a_submitted_job_gives_the_same_results(head, base_run, tiles, tmp_path):
    out = tmp_path / "out"
    models = base_run[0] / "models"
    done = submit(head, "jobs/score.py", tiles, "--models", models, "--out", out, "--maps", "all", "--actors", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (out / "_SUCCESS").exists()
    expected = results.read_scores(to_uri(base_run[0]), ["image_id", "score", "patch_scores"])
    found = results.read_scores(to_uri(out), ["image_id", "score", "patch_scores"])
    assert found.equals(expected)
    summary = json.loads((out / "summary.json").read_text())
    assert [row["image_auroc"] for row in summary] == [row["image_auroc"] for row in base_run[1].summary]
    size = sum(file.stat().st_size for file in tiles.glob("*/test/*/*.png"))
    expected = {("images_total", "score", "ok"): len(found), ("bytes_read_total", "score"): size}
    wait_until(lambda: expected.items() <= metrics(head[2]).items(), "the counts that Ray exports")
    assert metrics(head[2])["actor_seconds_total", "score"] > 0
    # The log of the job: plain lines of ours, no bars, nothing of Ray's.
    lines = done.stdout.split("Running entrypoint for job")[1].splitlines()[1:]
    own = [line for line in lines if not line.startswith("20") and line.strip()]
    assert own[0].startswith("32 images of 2 categories")
    assert not any(word in line for line in own for word in ("core_worker", "logging.cc", "Traceback", "Warning")), own

    other = tmp_path / "other"
    other.write_text("f" * 64)
    refused = submit(head, "jobs/score.py", "--help", RAY_AUTH_TOKEN_PATH=str(other))
    assert refused.returncode != 0
    assert "Authentication" in refused.stdout + refused.stderr
