"""A short form of ``make faults``: the driver is killed once, and a scoring actor; SIGTERM comes during scoring."""

import os
import shutil
import signal
import subprocess
import sys
import time

from helpers import harness
from helpers.harness import Running, campaign
from helpers.tiles import ROOT


def test_rows_after_kills_are_those_of_an_undisturbed_run(base_run, tiles, tmp_path):
    shutil.copytree(tiles / "alpha/test", tmp_path / "dump/alpha")
    (tmp_path / "dump/alpha/broken.png").write_bytes(b"")
    targets = ("driver", "actor")
    models = base_run[0] / "models"
    options = (
        "--max-errors",
        "1",
        "--engine",
        "torch",
    )  # each run would export the network to ONNX again, which takes seconds
    tally = campaign(
        tmp_path, tmp_path / "dump", models, kills=2, seed=1, targets=targets, running=Running(), options=options
    )
    assert dict(tally.kills) == {"driver": 1, "actor": 1}
    assert tally.finished >= 1
    assert tally.faults == []


def test_sigterm_while_scoring_leaves_no_process(base_run, tiles, tmp_path):
    shutil.copytree(tiles / "alpha/test", tmp_path / "dump/alpha")
    command = [sys.executable, "-m", "mvad", "score", tmp_path / "dump", "--models", base_run[0] / "models"]
    command += ["--out", tmp_path / "out", "--engine", "torch", "--actors", "1"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {harness.MARK: str(tmp_path), "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(list(map(str, command)), env=environment, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not any("ray::MapWorker" in line for _, line in harness.below(process.pid)):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert err.splitlines()[-1].startswith("mvad: stopped by SIGTERM; what has been written is kept")
    assert "Traceback" not in err, err
    ended = harness.Ended()
    ended.add(str(tmp_path), "the run")
    assert ended.overstayed(wait=True) == []
