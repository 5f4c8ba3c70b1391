"""Versions of the software that scores depend on."""

import importlib.metadata
import platform

from mvad.plugins import method_packages
from mvad.version import VERSION

PACKAGES = ("ray", "torch", "torchvision", "timm", "faiss-cpu", "numpy", "pyarrow", "pillow", "scikit-learn")


def versions() -> dict[str, str]:
    """Versions of mvad, Python, `PACKAGES`, and packages with methods of their own."""
    packages = {name: importlib.metadata.version(name) for name in (*PACKAGES, *method_packages())}
    return {"mvad": VERSION, "python": platform.python_version(), **packages}
