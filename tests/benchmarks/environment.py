"""Environments of their own for programs that the benchmarks compare with or use."""

from __future__ import annotations

import subprocess
import sysconfig
import venv
from pathlib import Path

from mvad.errors import UsageError


def environment_python(folder: Path, package: str, shares_packages: bool = False) -> Path:
    """Return the Python of an environment with a package, and make that environment if it does not exist.

    With ``shares_packages``, packages of this environment are visible in it after its own.
    """
    python = folder / "bin/python"
    if not (folder / "installed").exists():
        venv.create(folder, with_pip=True, clear=True)
        if shares_packages:
            (packages,) = folder.glob("lib/python*/site-packages")
            (packages / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
        pip = subprocess.run([python, "-m", "pip", "install", "--quiet", package], text=True, capture_output=True)
        if pip.returncode:
            raise UsageError(f"{package} cannot be installed into {folder}: {pip.stderr.strip().splitlines()[-1]}")
        (folder / "installed").touch()
    return python
