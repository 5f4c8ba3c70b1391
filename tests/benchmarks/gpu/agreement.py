"""Whether a GPU and the CPU give the same scores and verdicts: whole runs, and the same models on both."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

import mvad
from benchmarks.gpu.part import run_stage
from benchmarks.gpu.tools import load_pixels
from mvad.detectors import State, find_method
from mvad.features.specs import prepare
from mvad.features.weights import Network
from mvad.model_store import ModelInfo, find_models, read_arrays
from mvad.results import read_scores
from mvad.runtime.session import ray_session
from mvad.storage import to_uri

METHODS = ("patchcore", "knn", "feature-autoencoder", "vae")  # the first with folds, for verdicts
BACKBONE, SIDE = "efficientnet_lite0", 224
OPTIONS = {"backbone": BACKBONE, "image_size": SIDE, "engine": "torch", "limit": 40, "epochs": 3}
RUNS_LIMIT_S = 95.0
DEVICES = {"cpu": "", "gpu": None}  # the devices that CUDA shows to their processes


def agreement(task: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Fit and score with every method on both; one row per method."""
    folder = Path(task["folder"])
    with ThreadPoolExecutor() as pool:
        ended = {device: pool.submit(_run_on, device, task) for device in DEVICES}
        yield from ({"runs_on": device, **future.result()} for device, future in ended.items())
    for method in METHODS:
        if all((folder / device / "runs" / method / "run.json").exists() for device in DEVICES):
            yield _compare(folder, method)


def _run_on(device: str, task: dict[str, Any]) -> dict[str, Any]:
    folder = Path(task["folder"]) / device
    folder.mkdir()
    return run_stage("runs", {**task, "folder": str(folder)}, RUNS_LIMIT_S, DEVICES[device])


def runs(task: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Run every method on the devices that this process sees."""
    out, common = Path(task["folder"]), {"categories": task["category"], "quiet": True, **OPTIONS}
    first, *others = METHODS
    with ray_session(None):
        result = mvad.run(task["root"], str(out / "runs" / first), method=first, folds=2, **common)
        yield {"methods": first, "seconds": result.seconds}
        result = mvad.compare(task["root"], str(out / "compared"), methods=",".join(others), **common)
        yield {"methods": others, "seconds": result.seconds}
        for method in others:
            (out / "compared" / "runs" / method).rename(out / "runs" / method)


def _compare(folder: Path, method: str) -> dict[str, Any]:
    """Differences of two runs, and of one model on both devices, with and without TF32 in convolutions."""
    on_cpu, on_gpu = (_table(folder / device / "runs" / method) for device in DEVICES)
    assert on_cpu["uri"].equals(on_gpu["uri"])
    cpu_scores, gpu_scores = (table["score"].to_numpy() for table in (on_cpu, on_gpu))
    (model,) = find_models(to_uri(str(folder / "cpu" / "runs" / method / "models"))).values()
    uris = on_cpu["uri"].to_pylist()
    row = {
        "method": method,
        "images": len(uris),
        "runs_difference": _largest_relative(gpu_scores, cpu_scores),
        "runs_verdicts": _count_different(on_cpu["verdict"].to_pylist(), on_gpu["verdict"].to_pylist()),
    }
    threshold = np.array(on_cpu["threshold"].to_pylist(), float)  # not a number where there is none
    for name, tf32 in (("float32", False), ("tf32", True)):
        scores = _scores_on_gpu(model, uris, tf32)
        row[f"{name}_difference"] = _largest_relative(scores, cpu_scores)
        row[f"{name}_verdicts"] = _count_different((scores > threshold).tolist(), (cpu_scores > threshold).tolist())
    return row


def _table(run: Path) -> pa.Table:
    return read_scores(to_uri(str(run)), ["uri", "score", "threshold", "verdict"]).sort_by("uri")


def _scores_on_gpu(model: ModelInfo, uris: list[str], tf32: bool) -> NDArray[np.float32]:
    torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = True, tf32
    method = find_method(model.method)
    network = Network.load(model.backbone, None)
    extract = prepare([method.feature], network, model.size, gpus=True).load("cuda")
    features = extract(load_pixels(uris, SIDE, len(uris)))[method.feature]
    detector = method.from_state(State(model.settings, read_arrays(model)), "cuda")
    return detector.image_scores(features)


def _largest_relative(ours: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    return float((np.abs(ours - expected) / np.abs(expected)).max())


def _count_different(ours: list[Any], expected: list[Any]) -> int:
    return sum(one != other for one, other in zip(ours, expected, strict=True))
