"""What mvad works with does not report to anybody what it is used for."""

import os
import subprocess
import sys

import pytest
import ray

SILENCED = {"ORT_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "RAY_USAGE_STATS_ENABLED": "0"}
# Variables that silence ONNX Runtime by themselves.
SILENCING = {*SILENCED, "CI", "ORT_RUNNING_UNIT_TESTS", "ORT_TELEMETRY_DISABLED", "XDG_CACHE_HOME"}


def files_at_home(home, code):
    """What a process leaves in its home folder; whoever reports has a queue and an identifier there."""
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if name not in SILENCING}
    environment |= {"HOME": str(home), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=120)
    return [path.name for path in home.rglob("*") if path.is_file()]


def test_nothing_is_left_at_home(tmp_path):
    assert files_at_home(tmp_path / "ours", "import mvad, onnxruntime; mvad.load_model; mvad.run") == []
    if not files_at_home(tmp_path / "others", "import onnxruntime"):
        pytest.skip("this ONNX Runtime does not report anything")


def test_workers_do_not_report(ray_local):
    @ray.remote
    def settings():
        return {name: os.environ.get(name) for name in SILENCED}

    assert ray.get(settings.remote()) == SILENCED
