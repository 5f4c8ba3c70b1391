"""mvad: distributed visual anomaly detection on Ray.

Each command of the command line is a function of the same name here: ``mvad.run``, ``mvad.fit``, ``mvad.score``, ...
Options are keywords, or an object such as ``mvad.options.ScoreOptions``.
"""

import importlib
from typing import Any

from mvad.commands import COMMANDS
from mvad.version import VERSION

__version__ = VERSION
__all__ = [*COMMANDS]


def __getattr__(name: str) -> Any:
    """Import a command when it is first used."""
    if name not in COMMANDS:
        raise AttributeError(f"module 'mvad' has no attribute {name!r}")
    return getattr(importlib.import_module(f"mvad.commands.{name}"), name)
