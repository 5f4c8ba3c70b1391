"""anomalib on the same images, in an environment of its own."""

from __future__ import annotations

import json
import subprocess
import sysconfig
import venv
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.case import Case, ray_cpus
from mvad.errors import UsageError
from mvad.features.backbone_spec import EMBEDDED
from mvad.features.backbones import timm_name

PEER = "anomalib==2.7.0"
PEER_LAYERS = {EMBEDDED: ["blocks.2", "blocks.4"]}  # by backbone; ResNets have layer2 and layer3


def measure_peer(case: Case) -> dict[str, Any]:
    """Scoring with our bank, and fitting its own if that was asked for; rates, seconds and AUROC.

    Raises
    ------
    UsageError
        It cannot be installed, or fails.
    """
    spec, options = case.spec, case.options
    np.save(case.folder / "bank.npy", case.bank().vectors)
    given = {
        "backbone": timm_name(spec.name) if spec.name == EMBEDDED else spec.name,
        "state": str(case.weights),
        "mean": spec.mean,
        "std": spec.std,
        "layers": PEER_LAYERS.get(spec.name, ["layer2", "layer3"]),
        "side": case.size.crop,
        "ratio": options.coreset_ratio,
        "threads": ray_cpus(),
        "score": str(case.folder / "once" / case.category),
    }
    python = peer_python(Path(options.peer_folder).expanduser())
    own_bank = {"train": None, "bank": str(case.folder / "bank.npy"), "repeats": options.repeats}
    scored = _run(python, {**given, **own_bank})
    found = {
        "version": PEER,
        "score_images_per_second": [len(case.labels) / seconds for seconds in scored["score_seconds"]],
        "auroc_with_our_bank": case.auroc(_by_name(scored)),
    }
    if options.peer_fit:
        fitted = _run(python, {**given, "train": str(case.good), "bank": None, "repeats": 0})
        found["fit_seconds"] = fitted["fit_seconds"]
        found["auroc"] = case.auroc(_by_name(fitted))
    return found


def _by_name(found: dict[str, Any]) -> dict[str, float]:
    return {Path(path).name: value for path, value in found["scores"].items()}


def _run(python: Path, given: dict[str, Any]) -> dict[str, Any]:
    script = Path(__file__).with_name("anomalib_process.py")
    done = subprocess.run([python, script], input=json.dumps(given), text=True, capture_output=True)
    if done.returncode:
        raise UsageError(f"{PEER} failed: {done.stderr.strip().splitlines()[-1]}; leave peer out of --parts.")
    return json.loads(done.stdout.strip().splitlines()[-1])


def peer_python(folder: Path) -> Path:
    """The Python of an environment with anomalib, which is made if it is not there.

    It sees the packages of this environment behind its own, so that both sides run the same build of PyTorch.
    """
    python = folder / "bin/python"
    if not (folder / "installed").exists():
        venv.create(folder, with_pip=True, clear=True)
        (packages,) = folder.glob("lib/python*/site-packages")
        (packages / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
        done = subprocess.run([python, "-m", "pip", "install", "--quiet", PEER], text=True, capture_output=True)
        if done.returncode:
            raise UsageError(f"{PEER} cannot be installed into {folder}: {done.stderr.strip().splitlines()[-1]}")
        (folder / "installed").touch()
    return python
