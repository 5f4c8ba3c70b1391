"""Whether a GPU and the CPU give the same scores and verdicts: whole runs, and the same models on both."""

from __future__ import annotations

from collections.abc import Iterator
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
from mvad.features.extractor import prepare
from mvad.features.weights import Network
from mvad.model_store import ModelInfo, find_models, read_arrays
from mvad.results import read_run, read_scores
from mvad.runtime.session import ray_session
from mvad.storage import to_uri

METHODS = ("patchcore", "knn", "autoencoder", "feature-autoencoder", "vae")
BACKBONE, SIDE = "efficientnet_lite0", 224
OPTIONS = {"backbone": BACKBONE, "image_size": SIDE, "engine": "torch", "limit": 40, "folds": 2, "epochs": 5}
CPU_LIMIT_S, GPU_LIMIT_S = 60.0, 100.0


def agreement(task: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Fit and score with every method on both; one row per method."""
    folder = Path(task["folder"])
    for device, limit_s, visible in (("cpu", CPU_LIMIT_S, ""), ("gpu", GPU_LIMIT_S, None)):
        ended = run_stage("runs", {**task, "device": device}, limit_s, visible)
        (folder / "runs.log").rename(folder / f"{device}.log")
        yield {"runs_on": device, **ended}
    for method in METHODS:
        if (folder / "gpu" / method / "run.json").exists() and (folder / "cpu" / method / "run.json").exists():
            yield _compare(folder, method)


def runs(task: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Run every method on the devices that this process sees."""
    with ray_session(None):
        for method in METHODS:
            out = Path(task["folder"]) / task["device"] / method
            result = mvad.run(task["root"], str(out), method=method, categories=task["category"], quiet=True, **OPTIONS)
            yield {"method": method, "seconds": result.seconds}


def _compare(folder: Path, method: str) -> dict[str, Any]:
    """Differences of two runs, and of one model on both devices, with and without TF32 in convolutions."""
    on_cpu, on_gpu = (_table(folder / device / method) for device in ("cpu", "gpu"))
    assert on_cpu["uri"].equals(on_gpu["uri"])
    cpu_scores, gpu_scores = (table["score"].to_numpy() for table in (on_cpu, on_gpu))
    (model,) = find_models(to_uri(str(folder / "cpu" / method / "models"))).values()
    uris = on_cpu["uri"].to_pylist()
    row = {
        "method": method,
        "images": len(uris),
        "runs_difference": _largest_relative(gpu_scores, cpu_scores),
        "runs_verdicts": _count_different(on_cpu["verdict"].to_pylist(), on_gpu["verdict"].to_pylist()),
        "seconds_cpu": read_run(to_uri(str(folder / "cpu" / method)))["seconds"],
        "seconds_gpu": read_run(to_uri(str(folder / "gpu" / method)))["seconds"],
    }
    threshold = on_cpu["threshold"].to_numpy()
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
