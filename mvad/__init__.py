"""mvad: distributed visual anomaly detection on Ray.

Each command of the command line is a function of the same name here: ``mvad.run``, ``mvad.fit``, ``mvad.score``, ...
Only ``mvad results`` is ``mvad.export_results``, for ``mvad.results`` is a package.
Options are keywords, or an object such as ``mvad.options.ScoreOptions``.

In this process, without Ray: ``mvad.load_model``, ``mvad.PatchCore`` and the other methods, ``mvad.read_results``.
"""

import os

# Ray reads its settings when it is imported, which any module may do first.
# Nothing that Ray's core prints to a driver's terminal is for users of this program.
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
# A thread that still asks Ray for something when it has ended must not start it, or join somebody else's.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
# Ray's core would answer SIGTERM with a stack of C++ and an abort.
os.environ.setdefault("RAY_DISABLE_FAILURE_SIGNAL_HANDLER", "1")
# Libraries that tell their makers over the network how they are used, ONNX Runtime with names and hashes of models.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import importlib
from typing import Any

from mvad.commands import COMMANDS
from mvad.version import VERSION

__version__ = VERSION
IN_PROCESS = [
    *("Model", "Prediction", "Results", "load_model", "read_results"),
    *("KNN", "VAE", "Autoencoder", "FeatureAutoencoder", "PatchCore", "Subspace", "VAEFewShot", "ViTKNN"),
]
__all__ = [*COMMANDS, *IN_PROCESS]


def __getattr__(name: str) -> Any:
    """Import a command, or what runs in this process, when it is first used."""
    if name in IN_PROCESS:
        return getattr(importlib.import_module("mvad.in_process"), name)
    if name not in COMMANDS:
        raise AttributeError(f"module 'mvad' has no attribute {name!r}")
    return getattr(importlib.import_module(f"mvad.commands.{name}"), name)
