"""The README's commands exist, and what they need is there."""

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from mvad.cli import app

ROOT = Path(__file__).resolve().parents[1]
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
        known = {option for parameter in commands[name].params for option in parameter.opts}
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
