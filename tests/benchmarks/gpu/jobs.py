"""Fit and score as users run them on a GPU, and what their parts cost by themselves: what limits a job."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.case import MAX_PIXELS, fit_models, link_images, n_cpus, score_images, time_runs
from benchmarks.gpu.tools import CASES, load_network, load_pixels, median_seconds, watched_card
from benchmarks.options import BenchmarkOptions
from mvad.data.image_size import ImageSize
from mvad.data.images import load_image
from mvad.detectors import State, find_method
from mvad.features.extractor import GPU_CHUNK
from mvad.features.kinds import PATCHES
from mvad.features.specs import prepare
from mvad.model_store import find_models, read_arrays
from mvad.pipeline.dataset import MIN_BLOCK_ROWS
from mvad.results import read_run
from mvad.runtime.session import ray_session
from mvad.runtime.threads import compute_device
from mvad.storage import to_uri

N_FITTED = 128  # images
N_DECODED = 48
CORESET_RATIO = 0.02


def jobs(task: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One row per network and size; large images are fewer."""
    folder, options = Path(task["folder"]), BenchmarkOptions(**task["options"])
    with ray_session(None):
        for number, (backbone, side) in enumerate(CASES):
            yield _measure(task["train"], task["test"], backbone, side, options, folder / str(number))


def _measure(
    train: list[str], test: list[str], backbone: str, side: int, options: BenchmarkOptions, folder: Path
) -> dict[str, Any]:
    folder.mkdir()
    count = max(1, options.images * CASES[0][1] ** 2 // side**2)
    network, weights = load_network(backbone, folder)
    data, many = folder / "data", folder / "many"
    link_images(np.resize(train, N_FITTED).tolist(), data / "category/train/good")
    link_images(np.resize(test, count).tolist(), many / "category")
    common = {"weights": str(weights), "memory_limit": options.memory_limit}
    fit = {"backbone": backbone, "image_size": side, "coreset_ratio": CORESET_RATIO, **common}
    with watched_card() as fit_card:
        (fit_seconds,) = time_runs(lambda: fit_models(data, folder / "models", **fit))
    with watched_card() as score_card:
        (score_seconds,) = time_runs(lambda: score_images(many, folder / "models", folder / "scores", **common))
    stage = read_run(to_uri(str(folder / "scores")))["stages"]["score"]
    (model,) = find_models(to_uri(str(folder / "models"))).values()
    row = {
        "backbone": backbone,
        "side": side,
        "fitted_images": N_FITTED,
        "fit_seconds": fit_seconds,
        "fit_peak_bytes": fit_card.memory,
        "fit_record": {name: model.record[name] for name in ("fit_seconds", "n_train", "bytes")},
        "scored_images": count,
        "score_seconds": score_seconds,
        "score_peak_bytes": score_card.memory,
        "score_gpu_busy": score_card.busy,
        "score_stage": stage,
        # The first block comes after the actor and the network have started.
        "flow_images_per_second": (count - MIN_BLOCK_ROWS) / max(stage["seconds"] - stage["first_seconds"], 1e-9),
    }
    size = ImageSize.square(side)
    sample = [test[number % len(test)] for number in range(N_DECODED)]
    (decode_seconds,) = time_runs(lambda: [load_image(uri, size, MAX_PIXELS) for uri in sample])
    decode = decode_seconds / N_DECODED
    pixels = load_pixels(test, side, GPU_CHUNK)
    extract = prepare([PATCHES], network, size, gpus=True).load(compute_device())
    features = extract(pixels)[PATCHES]
    state = State(model.settings, read_arrays(model))
    detector = find_method(model.method).from_state(state, "cuda")
    rates = {
        "decoding": n_cpus() / decode,  # at most: cores that share caches are slower than one alone
        "network": GPU_CHUNK / median_seconds(lambda: extract(pixels)),
        "search": GPU_CHUNK / median_seconds(lambda: detector.image_scores(features)),
    }
    actor = 1 / (1 / rates["network"] + 1 / rates["search"])
    return row | {
        "bank": len(state.arrays["bank"]),
        "decode_seconds": decode,
        "rates": rates,
        "actor_images_per_second": actor,
        "limit": "decoding" if rates["decoding"] < actor else min(("network", "search"), key=rates.__getitem__),
    }
