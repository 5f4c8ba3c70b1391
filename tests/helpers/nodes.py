"""A Ray cluster of several nodes on this machine, each with its own resources, any of which can be killed."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from ray.job_submission import JobStatus, JobSubmissionClient

from helpers.tiles import ROOT

RAY = Path(sys.executable).with_name("ray")
TOKEN = "0123456789abcdef" * 4


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Nodes:
    """A head that runs no work and asks for a token, and the workers that are added to it.

    Every node is a process group of its own, so that all its processes can be ended.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="mvad-", ignore_cleanup_errors=True)
        self._port, dashboard = free_port(), free_port()
        token = Path(self._folder.name) / "token"
        token.write_text(TOKEN)
        self.variables = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self.variables |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "PYTHONPATH": str(ROOT)}
        self.variables |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}
        self._nodes: dict[str, subprocess.Popen] = {}
        self.address = f"http://127.0.0.1:{dashboard}"
        self._start(
            "head",
            "--head",
            f"--port={self._port}",
            "--num-cpus=0",
            "--num-gpus=0",
            "--dashboard-host=127.0.0.1",
            f"--dashboard-port={dashboard}",
        )

    def add(self, name: str, *resources: str) -> None:
        """Start a worker; ``resources`` as for ``ray start``."""
        self._start(name, f"--address=127.0.0.1:{self._port}", *resources)

    def _start(self, name: str, *arguments: str) -> None:
        log = Path(self._folder.name) / f"{name}.log"
        command = [RAY, "start", "--block", "--node-ip-address=127.0.0.1", "--dashboard-agent-listen-port=0"]
        command += ["--min-worker-port=0", "--max-worker-port=0", f"--object-store-memory={2**27}", *arguments]
        # In a shared folder, the end of one node would remove files of jobs that others still run. Ray makes sockets
        # in the folder, whose paths must be short.
        command.append(f"--temp-dir={self._folder.name}/{name}")
        with open(log, "w") as stream:
            node = subprocess.Popen(command, env=self.variables, stdout=stream, stderr=stream, start_new_session=True)
        self._nodes[name] = node
        # Nodes that start at the same time choose the same names for their sockets.
        while "Ray runtime started" not in log.read_text():
            assert node.poll() is None, log.read_text()
            time.sleep(0.1)

    def processes(self, name: str) -> list[str]:
        """Return the command lines of the processes on a node."""
        return [" ".join(command) for _, command in self._children(name)]

    def _children(self, name: str) -> list[tuple[int, list[str]]]:
        children = []
        for process in psutil.Process(self._nodes[name].pid).children(recursive=True):
            try:
                children.append((process.pid, process.cmdline()))
            except psutil.Error:
                continue
        return children

    def kill(self, name: str) -> None:
        """Kill a node as a power cut does: its raylet without any shutdown, and with it all its workers."""
        (raylet,) = [pid for pid, command in self._children(name) if command and command[0].endswith("/raylet")]
        os.kill(raylet, signal.SIGKILL)
        self._end([self._nodes.pop(name)])

    def client(self, token: str = TOKEN) -> JobSubmissionClient:
        return JobSubmissionClient(self.address, headers={"Authorization": f"Bearer {token}"})

    def submit(self, *job: Any) -> str:
        """Submit one of mvad's jobs with this folder as its working directory; returns its id."""
        # The driver of a job does not inherit its node's environment.
        entrypoint = shlex.join(["env", f"PYTHONPATH={ROOT}", sys.executable, *map(str, job)])
        environment = {"working_dir": str(ROOT), "excludes": [".git", "tests"]}
        for _ in range(60):
            try:
                return self.client().submit_job(entrypoint=entrypoint, runtime_env=environment)
            except RuntimeError as error:
                if "No available agent" not in str(error):  # the agent of a new head takes some seconds to start
                    raise
                time.sleep(0.5)
        raise AssertionError("the head accepted no job")

    def outcome(self, job: str, seconds: float = 400) -> tuple[JobStatus, str]:
        """Wait for a job to end; returns its status and its log."""
        client, deadline = self.client(), time.monotonic() + seconds
        while not (status := client.get_job_status(job)).is_terminal() and time.monotonic() < deadline:
            time.sleep(0.2)
        return status, client.get_job_logs(job)

    def close(self) -> None:
        self._end(list(self._nodes.values()))
        self._folder.cleanup()

    @staticmethod
    def _end(nodes: list[subprocess.Popen]) -> None:
        for node in nodes:
            try:
                os.killpg(node.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        for node in nodes:
            node.wait(30)
