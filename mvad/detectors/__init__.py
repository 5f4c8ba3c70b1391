"""The methods, by the name given to ``--method``."""

from mvad.detectors.autoencoder import Autoencoder
from mvad.detectors.base import Detector, Scores, State
from mvad.detectors.feature_autoencoder import FeatureAutoencoder
from mvad.detectors.knn import KNN, ViTKNN
from mvad.detectors.patchcore import PatchCore
from mvad.detectors.vae import VAE
from mvad.detectors.vae_fewshot import VAEFewShot
from mvad.errors import UsageError

_ALL: list[type[Detector]] = [
    PatchCore,
    KNN,
    ViTKNN,
    Autoencoder,
    FeatureAutoencoder,
    VAE,
    VAEFewShot,
]
METHODS = {kind.method: kind for kind in _ALL}


def find_method(name: str) -> type[Detector]:
    """The detector class called ``name``; UsageError if there is none."""
    if name not in METHODS:
        raise UsageError(f"unknown method {name!r}; choose one of: {', '.join(METHODS)}.")
    return METHODS[name]


__all__ = [
    "KNN",
    "METHODS",
    "VAE",
    "Autoencoder",
    "Detector",
    "FeatureAutoencoder",
    "PatchCore",
    "Scores",
    "State",
    "VAEFewShot",
    "ViTKNN",
    "find_method",
]
