"""anomalib on the same images, in an environment of its own."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.case import Case, n_cpus
from benchmarks.environment import environment_python
from mvad.errors import UsageError
from mvad.features.backbone_spec import EMBEDDED
from mvad.features.backbones import timm_name

PEER = "anomalib==2.7.0"
PEER_LAYERS = {EMBEDDED: ["blocks.2", "blocks.4"]}  # per backbone; ResNets have layer2 and layer3


def measure_peer(case: Case) -> dict[str, Any]:
    """Score with mvad's bank and, if asked to, fit anomalib's own; return rates, seconds and AUROC.

    Raises
    ------
    UsageError
        anomalib cannot be installed, or fails.
    """
    spec, options = case.spec, case.options
    np.save(case.folder / "bank.npy", case.bank().vectors)
    task = {
        "backbone": timm_name(spec.name) if spec.name == EMBEDDED else spec.name,
        "state": str(case.weights),
        "mean": spec.mean,
        "std": spec.std,
        "layers": PEER_LAYERS.get(spec.name, ["layer2", "layer3"]),
        "side": case.size.width,
        "ratio": options.coreset_ratio,
        "threads": n_cpus(),
        "score": str(case.folder / "once" / case.category),
    }
    # Both sides run the same build of PyTorch.
    python = environment_python(Path(options.peer_folder).expanduser(), PEER, shares_packages=True)
    our_bank = {"train": None, "bank": str(case.folder / "bank.npy"), "repeats": options.repeats}
    scored = _run(python, {**task, **our_bank})
    measurements = {
        "version": PEER,
        "score_images_per_second": [len(case.labels) / seconds for seconds in scored["score_seconds"]],
        "auroc_with_our_bank": case.auroc(_scores_by_name(scored)),
    }
    if options.peer_fit:
        fitted = _run(python, {**task, "train": str(case.good), "bank": None, "repeats": 0})
        measurements["fit_seconds"] = fitted["fit_seconds"]
        measurements["auroc"] = case.auroc(_scores_by_name(fitted))
    return measurements


def _scores_by_name(answer: dict[str, Any]) -> dict[str, float]:
    return {Path(path).name: score for path, score in answer["scores"].items()}


def _run(python: Path, task: dict[str, Any]) -> dict[str, Any]:
    script = Path(__file__).with_name("anomalib_process.py")
    process = subprocess.run([python, script], input=json.dumps(task), text=True, capture_output=True)
    if process.returncode:
        raise UsageError(f"{PEER} failed: {process.stderr.strip().splitlines()[-1]}; leave peer out of --parts.")
    return json.loads(process.stdout.strip().splitlines()[-1])
