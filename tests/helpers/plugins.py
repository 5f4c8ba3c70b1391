"""Packages with methods, as pip would install them: a module, and a folder of metadata beside it."""

import os
import subprocess
import sys

from helpers.tiles import ROOT


def install(folder, package, code, **methods):
    """Put a package into a folder: its module and the entry points of its methods, as ``name="module:class"``."""
    module = package.replace("-", "_")
    (folder / f"{module}.py").write_text(code)
    information = folder / f"{module}-1.2.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
    lines = [f"{name} = {target}" for name, target in methods.items()]
    (information / "entry_points.txt").write_text("\n".join(["[mvad.methods]", *lines, ""]))


def run_python(folder, *arguments):
    """Run Python, in a folder and with the packages in it; what has ended."""
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "COLUMNS": "160"}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
