"""The README's commands exist, and what they need is there."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from helpers.tiles import ROOT
from mvad.cli import app

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(?:bash|console)\n(.*?)```", README, flags=re.S)
LINES = [line.strip().removeprefix("$ ") for block in BLOCKS for line in block.replace("\\\n", " ").splitlines()]


def uses():
    """Command name and arguments of every use of mvad or of a job in the README."""
    for line in LINES:
        words = shlex.split(line, comments=True)
        for number, word in enumerate(words):
            if word.split("/")[-1] == "mvad" and number + 1 < len(words):
                yield words[number + 1], words[number + 2 :]
            elif re.fullmatch(r"jobs/\w+\.py", word):
                assert (ROOT / word).exists(), word
                yield Path(word).stem, words[number + 1 :]


def test_commands_and_options_exist():
    commands = get_command(app).commands
    found = list(uses())
    assert len(found) >= 5
    for name, arguments in found:
        assert name in commands, name
        known = {option for one in commands[name].params for option in (*one.opts, *one.secondary_opts)}
        for argument in arguments:
            if argument.startswith("--"):
                assert argument in known | {"--help"}, f"{name} {argument}"


def test_every_command_is_in_the_readme():
    assert set(get_command(app).commands) <= {name for name, _ in uses()}


def test_make_targets_exist():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.M))
    used = {target for line in LINES for target in re.findall(r"^make (\w+)", line)}
    assert {"demo", "test"} <= used <= targets


@pytest.mark.parametrize("word", ["/work/", "/root/", "/tmp/v"])
def test_no_paths_of_one_machine(word):
    for place in [ROOT / "README.md", *ROOT.glob("mvad/**/*.py"), *ROOT.glob("jobs/*.py")]:
        assert word not in place.read_text(), place


def test_the_method_of_the_readme_works(tiles, tmp_path):
    """As the README says: its file, an import and a line in the list, then the main job with it."""
    shutil.copytree(ROOT / "mvad", tmp_path / "mvad", ignore=shutil.ignore_patterns("__pycache__"))
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", README, flags=re.S) if "(Detector)" in block]
    assert len(code.splitlines()) <= 40
    detectors = tmp_path / "mvad/detectors"
    (detectors / "mahalanobis.py").write_text(code)
    listing = (detectors / "__init__.py").read_text()
    line = re.search(r"beside its import: `(.*?)`", README).group(1)
    listing = listing.replace("_ALL: list[type[Detector]] = [\n", f"_ALL: list[type[Detector]] = [\n{line}\n")
    (detectors / "__init__.py").write_text(f"from mvad.detectors.mahalanobis import Mahalanobis\n{listing}")
    command = [sys.executable, "-m", "mvad", "run", str(tiles), "--out", "out", "--method", "mahalanobis"]
    options = ["--backbone", "efficientnet_lite0", "--image-size", "64", "--actors", "1", "--folds", "0", "--quiet"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    ended = subprocess.run(
        [*command, *options], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert [row["method"] for row in summary] == ["mahalanobis"] * 3
    assert all(row["image_auroc"] > 0.6 for row in summary)
    assert (tmp_path / "out/models/mahalanobis/alpha/precision.npy").exists()
