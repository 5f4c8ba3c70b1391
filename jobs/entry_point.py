"""Run the command that a file of this folder is named after, for ``ray job submit``."""

import sys
from pathlib import Path

from mvad.__main__ import main


def run_command(file: str) -> None:
    """Run ``mvad <name of file>`` with the arguments of this process, and exit with its exit code."""
    main([Path(file).stem, *sys.argv[1:]])
