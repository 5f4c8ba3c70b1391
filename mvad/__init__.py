"""mvad: distributed visual anomaly detection on Ray.

Each command of the command line is a function of the same name here: `run`, `fit`, `score`, `nightly`, `update`,
`models`, `false_alarms`, `compare`, `evaluate`, `inspect`, `report`, `maps`, `serve`, `sample`.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "run": "pipeline.flow",
    "fit": "pipeline.flow",
    "score": "pipeline.flow",
    "compare": "commands.compare",
    "nightly": "commands.nightly",
    "update": "commands.update",
    "models": "commands.update",
    "false_alarms": "commands.false_alarms",
    "evaluate": "pipeline.flow",
    "inspect": "inspection",
    "report": "reports",
    "maps": "commands.maps",
    "serve": "commands.serve",
    "plan": "commands.plan",
    "sample": "data.synthetic",
}

__all__ = [
    "compare",
    "evaluate",
    "false_alarms",
    "fit",
    "inspect",
    "maps",
    "models",
    "nightly",
    "report",
    "run",
    "sample",
    "score",
    "serve",
    "update",
]


def __getattr__(name: str) -> Any:
    """Import a command when it is first used: Ray and PyTorch take seconds to load."""
    if name not in _HOMES:
        raise AttributeError(f"module 'mvad' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"mvad.{_HOMES[name]}"), name)
