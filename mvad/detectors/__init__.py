"""The methods by name. Their parameters are options on the command line, so PyTorch loads only when one is used.

A method of mvad is one file in this folder, with a subclass of `Detector`, and one line in the list below. Other
packages add theirs as entry points (`plugins`).
"""

from mvad.detectors.autoencoders import Autoencoder, FeatureAutoencoder
from mvad.detectors.base import Detector, Extendable, LeaveOneOut, Pretrained, Scores, Shardable
from mvad.detectors.knn import KNN, ViTKNN
from mvad.detectors.patchcore import PatchCore
from mvad.detectors.state import State
from mvad.detectors.subspace import Subspace
from mvad.detectors.trained import TrainedDetector
from mvad.detectors.vae import VAE, VAEFewShot
from mvad.errors import UsageError
from mvad.features.kinds import KINDS
from mvad.plugins import Methods

_ALL: list[type[Detector]] = [
    PatchCore,
    Subspace,
    KNN,
    ViTKNN,
    Autoencoder,
    FeatureAutoencoder,
    VAE,
    VAEFewShot,
]
METHODS = Methods({detector.method: detector for detector in _ALL}, Detector, KINDS)


def find_method(name: str) -> type[Detector]:
    """Return the detector class called ``name``; UsageError if there is none."""
    if name not in METHODS:
        raise UsageError(f"unknown method {name!r}; choose one of: {', '.join(METHODS)}.")
    return METHODS[name]


__all__ = [
    "KNN",
    "METHODS",
    "VAE",
    "Autoencoder",
    "Detector",
    "Extendable",
    "FeatureAutoencoder",
    "LeaveOneOut",
    "PatchCore",
    "Pretrained",
    "Scores",
    "Shardable",
    "State",
    "Subspace",
    "TrainedDetector",
    "VAEFewShot",
    "ViTKNN",
    "find_method",
]
