"""The methods, by the name given to ``--method``."""

from mvad.detectors.base import Detector, Scores
from mvad.detectors.knn import KNN, ViTKNN
from mvad.detectors.patchcore import PatchCore
from mvad.errors import UsageError

METHODS: dict[str, type[Detector]] = {
    "patchcore": PatchCore,
    "knn": KNN,
    "vit-knn": ViTKNN,
}


def find_method(name: str) -> type[Detector]:
    """The detector class called ``name``; UsageError if there is none."""
    if name not in METHODS:
        raise UsageError(f"unknown method {name!r}; choose one of: {', '.join(METHODS)}.")
    return METHODS[name]


__all__ = ["KNN", "METHODS", "Detector", "PatchCore", "Scores", "ViTKNN", "find_method"]
