"""The same work without Ray, in as many single-threaded processes as the machine has cores.

The floor is decoding and the forward pass of the truncated network, without any use of its feature maps: no job that
looks at images can be faster on this machine. `Workers` measures the floor, and also everything that scoring computes.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import NamedTuple

import faiss
import torch
from torch import Tensor, nn

from mvad.data.image_size import ImageSize
from mvad.data.images import load_image
from mvad.detectors import METHODS, State
from mvad.features.backbones import Backbone
from mvad.features.extractor import FeatureExtractor, OnnxExtractor, TorchExtractor, onnx_graph
from mvad.features.kinds import PATCHES
from mvad.features.specs import ExtractorSpec, resolve_engine
from mvad.features.weights import Network

IMAGES_PER_TASK = 8
MAX_PIXELS = 10**9
OUTPUTS = ("shallow", "deep")

ExtractorLoader = Callable[[], FeatureExtractor]


class _TruncatedNetwork(nn.Module):
    def __init__(self, network: Network) -> None:
        super().__init__()
        self.backbone = Backbone(network.spec, network.weights)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.backbone(pixels)[0])


def backbone_loader(network: Network, side: int, engine: str) -> ExtractorLoader:
    """Return a function that loads, in another process, an extractor of the truncated network's feature maps alone."""
    size = ImageSize.square(side)
    if resolve_engine(engine) == "onnx":
        return functools.partial(OnnxExtractor, OUTPUTS, onnx_graph(_TruncatedNetwork(network), side, side), size)
    return functools.partial(_load_torch, network, size)


def _load_torch(network: Network, size: ImageSize) -> TorchExtractor:
    return TorchExtractor(OUTPUTS, _TruncatedNetwork(network), size)


def spec_loader(spec: ExtractorSpec) -> ExtractorLoader:
    """Return a function that loads mvad's extractor in another process."""
    return spec.load


class Stages(NamedTuple):
    """Seconds of a core per image: decoding, the forward pass, and the search of the bank."""

    decode: float
    forward: float
    search: float


class _Process(NamedTuple):
    extract: FeatureExtractor
    size: ImageSize
    score: Callable[[Tensor], object] | None


_process: _Process


def _start(loader: ExtractorLoader, size: ImageSize, model: tuple[str, State] | None) -> None:
    global _process
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    score = None if model is None else METHODS[model[0]].from_state(model[1]).image_scores
    _process = _Process(loader(), size, score)


def _work(uris: Sequence[str]) -> Stages:
    decode = forward = search = 0.0
    for uri in uris:
        started = time.perf_counter()
        pixels, _, _ = load_image(uri, _process.size, MAX_PIXELS)
        decoded = time.perf_counter()
        features = _process.extract(pixels[None])
        extracted = time.perf_counter()
        if _process.score is not None:
            _process.score(features[PATCHES])
        decode, forward = decode + decoded - started, forward + extracted - decoded
        search += time.perf_counter() - extracted
    return Stages(decode, forward, search)


class Workers:
    """Processes that decode images, run a network and, given a model, score; they start with the first work.

    Parameters
    ----------
    loader
        Loads each process's extractor.
    model
        Method and state of a detector of patch features; None: do not score.
    """

    def __init__(
        self, loader: ExtractorLoader, size: ImageSize, processes: int, model: tuple[str, State] | None = None
    ) -> None:
        self._pool = ProcessPoolExecutor(processes, get_context("spawn"), _start, (loader, size, model))

    def measure(self, uris: Sequence[str]) -> tuple[float, Stages]:
        """Return the seconds for all images, and the seconds of a core per image and stage."""
        chunks = [uris[start : start + IMAGES_PER_TASK] for start in range(0, len(uris), IMAGES_PER_TASK)]
        started = time.perf_counter()
        costs = list(self._pool.map(_work, chunks))
        seconds = time.perf_counter() - started
        return seconds, Stages(*(sum(column) / len(uris) for column in zip(*costs, strict=True)))

    def close(self) -> None:
        self._pool.shutdown()
