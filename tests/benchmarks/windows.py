"""Images of many windows: what the search adds to decoding and the network, and whether a GPU agrees with the CPU."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import mvad
from benchmarks.case import MAX_PIXELS
from benchmarks.gpu.tools import load_network
from mvad.data.images import load_image
from mvad.data.large_samples import paint_image
from mvad.detectors import Detector, State, find_method
from mvad.features.extractor import FeatureExtractor
from mvad.features.kinds import PATCHES
from mvad.features.specs import prepare
from mvad.features.weights import Network
from mvad.model_store import ModelInfo, find_models, read_arrays, read_map_peaks
from mvad.runtime.session import ray_session
from mvad.runtime.threads import Threads, compute_device, use_one_thread
from mvad.scoring.windows import ImageScore, score_windows
from mvad.storage import to_uri

BACKBONE = "efficientnet_lite0"
CATEGORY = "board"  # of the large sample: images of 12 megapixels
N_FITTED, N_SCORED = 8, 3  # images, of each kind
SCORED = ("test/good", "test/bridge")
JPEG_QUALITY = 92


class Scorer(NamedTuple):
    """A model on one device."""

    model: ModelInfo
    extract: FeatureExtractor
    detector: Detector

    @classmethod
    def load(cls, model: ModelInfo, network: Network, device: str | torch.device) -> Scorer:
        extract = prepare([PATCHES], network, model.size, "auto", gpus=torch.cuda.is_available()).load(device)
        state = State(model.settings, read_arrays(model))
        return cls(model, extract, find_method(model.method).from_state(state, device))

    def score(self, uri: str, threshold: float) -> ImageScore:
        pixels = load_image(uri, self.model.size, MAX_PIXELS)[0]
        return score_windows(pixels, self.extract, {0: self.detector}, {0: threshold}, Threads(1))[0]


def windows(task: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The stage of the part gpu: one row."""
    with ray_session(None):
        yield measure_windows(Path(task["folder"]))


def measure_windows(folder: Path) -> dict[str, Any]:
    """Seconds of a fit, and of each part of scoring an image in one thread, medians; a session of Ray has begun."""
    folder.mkdir(parents=True, exist_ok=True)
    network, weights = load_network(BACKBONE, folder)
    _paint(folder / "data" / CATEGORY / "train/good", "train/good", N_FITTED)
    started = time.perf_counter()
    mvad.fit(str(folder / "data"), str(folder / "models"), backbone=BACKBONE, weights=str(weights), quiet=True)
    fit_seconds = time.perf_counter() - started
    (model,) = find_models(to_uri(str(folder / "models"))).values()
    peaks = read_map_peaks(model)
    assert peaks is not None
    uris = [uri for split in SCORED for uri in _paint(folder / split, split, N_SCORED)]
    device = compute_device()
    use_one_thread()
    scorer = Scorer.load(model, network, device)
    scorer.score(uris[0], float(peaks.max()))  # a warm-up
    on_gpu = scorer.extract.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    row = _seconds(scorer, uris, float(peaks.max()))
    if on_gpu:
        row["peak_bytes"] = torch.cuda.max_memory_allocated()
        on_cpu = Scorer.load(model, network, "cpu")
        row["largest_difference"] = max(_difference(scorer, on_cpu, uri) for uri in (uris[0], uris[-1]))
    bank = scorer.detector.arrays["bank"]
    return {
        "backbone": BACKBONE,
        "image": str(model.size),
        "windows": len(model.size.windows),
        "bank": len(bank),
        "fit_seconds": fit_seconds,
        "ratio": (row["decode_seconds"] + row["score_seconds"]) / (row["decode_seconds"] + row["forward_seconds"]),
        **row,
    }


def _paint(folder: Path, split: str, count: int) -> list[str]:
    folder.mkdir(parents=True)
    paths = [folder / f"{index}.jpg" for index in range(count)]
    for index, path in enumerate(paths):
        paint_image(CATEGORY, split, index)[0].save(path, quality=JPEG_QUALITY)
    return [to_uri(str(path)) for path in paths]


def _seconds(scorer: Scorer, uris: list[str], threshold: float) -> dict[str, Any]:
    """Median seconds of decoding an image, of the network on all its windows, and of the network and the search."""
    parts: list[tuple[float, float, float]] = []
    for uri in uris:
        moments = [time.perf_counter()]
        pixels = load_image(uri, scorer.model.size, MAX_PIXELS)[0]
        moments.append(time.perf_counter())
        for _ in scorer.extract.parts(pixels, scorer.model.size.windows):
            pass
        _wait_for_gpu()
        moments.append(time.perf_counter())
        score_windows(pixels, scorer.extract, {0: scorer.detector}, {0: threshold}, Threads(1))
        _wait_for_gpu()
        moments.append(time.perf_counter())
        first, second, third = np.diff(moments).tolist()
        parts.append((first, second, third))
    names = "decode_seconds", "forward_seconds", "score_seconds"
    return {name: statistics.median(column) for name, column in zip(names, zip(*parts, strict=True), strict=True)}


def _wait_for_gpu() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _difference(ours: Scorer, reference: Scorer, uri: str) -> float:
    """The largest difference of an image's score, and of any of its patches, as a share of the largest of them."""
    found, expected = ours.score(uri, -math.inf), reference.score(uri, -math.inf)
    patches = np.abs(found.grid - expected.grid).max() / expected.grid.max()
    return max(abs(found.score - expected.score) / expected.score, float(patches))
