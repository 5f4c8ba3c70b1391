"""The commands, options, targets and code in the README and in ``docs/`` work."""

import itertools
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from benchmarks.main import app as benchmark_app
from benchmarks.options import BenchmarkOptions
from helpers import plugins
from helpers.tiles import ROOT
from mvad.cli import application

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
HAND_WRITTEN = [page for page in PAGES if page.name != "cli.md"]
COMMANDS = {**get_command(application()).commands, "benchmark": get_command(benchmark_app)}


def code_blocks(page, languages):
    return re.findall(rf"^```(?:{languages})\n(.*?)^```", page.read_text(), flags=re.S | re.M)


def shell_lines(page):
    """Lines of the page's shell commands, those that continue joined."""
    for block in code_blocks(page, "bash|console|cron"):
        for line in block.replace("\\\n", " ").splitlines():
            yield line.strip().removeprefix("$ ")


def command_uses(page):
    """Name and arguments of every use of a command or of a job on a page, in shell blocks and in tables."""
    inline = re.findall(r"`((?:mvad|python) [^`\n]*)`", page.read_text())
    for line in re.split(r"\n|&&", "\n".join([*shell_lines(page), *inline])):
        words = shlex.split(line, comments=True)
        for number, word in enumerate(words):
            if word.split("/")[-1] == "mvad" and number + 1 < len(words):
                yield words[number + 1], words[number + 2 :]
            elif re.fullmatch(r"jobs/\w+\.py", word):
                assert (ROOT / word).exists(), word
                yield Path(word).stem, words[number + 1 :]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_exist(page):
    for name, arguments in command_uses(page):
        if name.startswith("--") or name == "COMMAND":
            continue
        assert name in COMMANDS, name
        options = {option for each in COMMANDS[name].params for option in (*each.opts, *each.secondary_opts)}
        for argument in arguments:
            if argument.startswith("--"):
                assert argument in options | {"--help"}, f"{name} {argument}"


@pytest.mark.parametrize("page", HAND_WRITTEN, ids=lambda page: page.name)
def test_parts_of_the_benchmark_exist(page):
    for name, arguments in command_uses(page):
        for option, value in itertools.pairwise(arguments if name == "benchmark" else ()):
            if option in ("--parts", "--gpu"):
                BenchmarkOptions(**{option.removeprefix("--"): value})


@pytest.mark.parametrize("page", HAND_WRITTEN, ids=lambda page: page.name)
def test_modules_of_the_benchmark_exist(page):
    for module, options in re.findall(r"python -m (benchmarks[.\w]*)(.*)", page.read_text()):
        file = ROOT / f"tests/{module.replace('.', '/')}.py"
        assert file.exists(), module
        for option in re.findall(r"--[a-z-]+", options):
            assert f'"{option}"' in file.read_text(), option


@pytest.mark.parametrize("page", HAND_WRITTEN, ids=lambda page: page.name)
def test_options_named_in_the_text_exist(page):
    options = {
        option
        for command in COMMANDS.values()
        for parameter in command.params
        for option in (*parameter.opts, *parameter.secondary_opts)
    }
    own_method = {"--shrinkage"}  # of the example of a method
    other = {"--help", "--install-completion"}
    for option in re.findall(r"`(--[a-z0-9-]+)", page.read_text()):
        assert option in options | own_method | other, option


def test_every_command_is_documented():
    documented = {name for page in HAND_WRITTEN for name, _ in command_uses(page)}
    assert set(COMMANDS) <= documented


def test_every_job_is_a_command_and_every_job_file_is_small():
    jobs = {path.stem: path for path in ROOT.glob("jobs/*.py") if path.stem != "entry_point"}
    assert set(jobs) == {"run", "fit", "score", "nightly", "compare", "update", "tune", "benchmark"} <= set(COMMANDS)
    assert all(len(path.read_text().splitlines()) <= 12 for path in jobs.values())


def test_make_targets_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    lines = [line for page in PAGES for line in shell_lines(page)]
    inline = [word for page in PAGES for word in re.findall(r"`(make\s[\w-]+)`", page.read_text())]
    used = {target for line in [*lines, *inline] for target in re.findall(r"^make\s([\w-]+)", line)}
    assert {"demo", "test", "docs", "benchmark"} <= used <= targets


@pytest.mark.parametrize("word", ["/work/", "/root/", "/tmp/v"])
def test_no_paths_of_one_machine(word):
    for path in [*PAGES, *ROOT.glob("mvad/**/*.py"), *ROOT.glob("jobs/*.py")]:
        assert word not in path.read_text(), path


def test_the_method_of_the_docs_works(tiles, tmp_path):
    """As docs/methods.md says: a module and its entry point, then the main job with it."""
    page = ROOT / "docs/methods.md"
    (code,) = [block for block in code_blocks(page, "python") if "(Detector)" in block]
    assert len(code.splitlines()) <= 45
    (project,) = [tomllib.loads(block) for block in code_blocks(page, "toml") if "entry-points" in block]
    (module,) = project["tool"]["setuptools"]["py-modules"]
    name = project["project"]["name"]
    assert module == name.replace("-", "_")
    plugins.install(tmp_path, name, code, **project["project"]["entry-points"]["mvad.methods"])
    command = ["-m", "mvad", "run", str(tiles), "--out", "out", "--method", "mahalanobis"]
    options = ["--backbone", "efficientnet_lite0", "--image-size", "64", "--actors", "1", "--calibration", "none"]
    # With PyTorch nothing is exported first.
    process = plugins.run_python(tmp_path, *command, *options, "--engine", "torch", "--quiet", "--shrinkage", "0.2")
    assert process.returncode == 0, process.stderr
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert [row["method"] for row in summary] == ["mahalanobis"] * 3
    assert all(row["image_auroc"] > 0.6 for row in summary)
    model = tmp_path / "out/models/mahalanobis/alpha"
    assert (model / "precision.npy").exists()
    assert json.loads((tmp_path / "out/run.json").read_text())["versions"]["mvad-mahalanobis"] == "1.2"
    assert '"shrinkage": 0.2' in (model / "model.json").read_text()
