"""What an extra brings is missing in one sentence, with the command to type."""

import ast
import re
import subprocess
import sys

import pytest

from helpers.tiles import ROOT
from mvad.errors import EXTRAS, UsageError, extra

# The command line where none of an extra's modules can be imported.
WITHOUT = "import sys; sys.modules.update(dict.fromkeys({modules})); from mvad.__main__ import main; main(sys.argv[1:])"


def without(modules, folder, *arguments):
    command = [sys.executable, "-c", WITHOUT.format(modules=modules), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("modules", [EXTRAS["serve"], ("python_multipart",)])
def test_serve_without_its_extra_says_what_to_install(tmp_path, modules):
    ended = without(modules, tmp_path, "serve", "--models", "models")
    assert ended.returncode == 2
    sentence = r'mvad: this needs \w+, which is not installed: pip install "mvad\[serve\]"\n'
    assert re.fullmatch(sentence, ended.stderr), ended.stderr


def test_other_commands_do_without_the_extra(tmp_path):
    code = (
        WITHOUT.format(modules=EXTRAS["serve"]).replace(
            "main(sys.argv[1:])", "import mvad, mvad.cli\nmvad.cli.application()"
        )
        + """
import importlib, pkgutil
for name in ("run", "fit", "score", "nightly", "report", "inspect", "compare", "update", "watch", "plan"):
    getattr(mvad, name)
for name in ("reports.page", "inspection.page", "scoring.score", "fitting.fit", "watching.watch", "nights.rows"):
    importlib.import_module(f"mvad.{name}")
"""
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("name", EXTRAS)
def test_the_packages_of_an_extra_are_imported_where_it_is_needed_alone(name):
    rooms = {"serve": {"demo", "review", "html", "commands"}}[name]
    for file in sorted((ROOT / "mvad").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            modules = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if {module.partition(".")[0] for module in modules} & set(EXTRAS[name]):
                assert file.relative_to(ROOT / "mvad").parts[0] in rooms, file
                assert file.parent.name != "commands" or node.col_offset, file  # where the command is used


def test_another_missing_module_is_a_fault_of_the_installation():
    with pytest.raises(ModuleNotFoundError, match="nowhere"), extra("serve"):
        __import__("nowhere")
    with pytest.raises(UsageError, match=r'pip install "mvad\[serve\]"'), extra("serve"):
        raise ModuleNotFoundError("No module named 'fastapi.routing'", name="fastapi.routing")
