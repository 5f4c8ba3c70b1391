"""What the work takes by itself, without Ray: in as many processes of one thread as the machine has cores.

The floor is decoding and the forward pass of the truncated network, with nothing made of its maps; no job that looks at
images can be faster on this machine. `Workers` measures it, and also all that scoring computes.
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

from mvad.commands.plan import Stages
from mvad.data.image_size import ImageSize
from mvad.data.images import load_image
from mvad.detectors import METHODS, State
from mvad.features.extractor import (
    ExtractorSpec,
    FeatureExtractor,
    OnnxExtractor,
    TorchExtractor,
    onnx_graph,
    resolve_engine,
)
from mvad.features.kinds import PATCHES
from mvad.features.weights import Network

AT_ONCE = 8  # images a task
MAX_PIXELS = 10**9
MAPS = ("shallow", "deep")

Opener = Callable[[], FeatureExtractor]


class _Maps(nn.Module):
    def __init__(self, network: Network, side: int) -> None:
        super().__init__()
        from mvad.features.backbones import Backbone

        self.backbone = Backbone(network.spec, network.weights, side)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.backbone(pixels)[0])


def floor_opener(network: Network, side: int, engine: str) -> Opener:
    """What opens, in another process, an extractor of nothing but the maps of the truncated network."""
    if resolve_engine(engine) == "onnx":
        return functools.partial(OnnxExtractor, MAPS, onnx_graph(_Maps(network, side), side))
    return functools.partial(_open_torch, network, side)


def _open_torch(network: Network, side: int) -> TorchExtractor:
    return TorchExtractor(MAPS, _Maps(network, side))


def package_opener(package: ExtractorSpec) -> Opener:
    """What opens a package in another process."""
    return package.open


class _Process(NamedTuple):
    extract: FeatureExtractor
    size: ImageSize
    score: Callable[[Tensor], object] | None


_process: _Process


def _start(opener: Opener, size: ImageSize, model: tuple[str, State] | None) -> None:
    global _process
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    score = None if model is None else METHODS[model[0]].from_state(model[1]).image_scores
    _process = _Process(opener(), size, score)


def _work(uris: Sequence[str]) -> Stages:
    decode = forward = search = 0.0
    for uri in uris:
        started = time.perf_counter()
        pixels, _, _ = load_image(uri, _process.size, MAX_PIXELS)
        decoded = time.perf_counter()
        found = _process.extract(pixels[None])
        extracted = time.perf_counter()
        if _process.score is not None:
            _process.score(found[PATCHES])
        decode, forward = decode + decoded - started, forward + extracted - decoded
        search += time.perf_counter() - extracted
    return Stages(decode, forward, search)


class Workers:
    """Processes that decode images, run a network, and with a model score them; they start with the first work.

    Parameters
    ----------
    opener
        Opens what each of them extracts with.
    model
        Method and state of a detector of patches; None: nothing is scored.
    """

    def __init__(self, opener: Opener, size: ImageSize, processes: int, model: tuple[str, State] | None = None) -> None:
        self._pool = ProcessPoolExecutor(processes, get_context("spawn"), _start, (opener, size, model))

    def measure(self, uris: Sequence[str]) -> tuple[float, Stages]:
        """Seconds for all images, and what one takes of a core."""
        parts = [uris[start : start + AT_ONCE] for start in range(0, len(uris), AT_ONCE)]
        started = time.perf_counter()
        done = list(self._pool.map(_work, parts))
        seconds = time.perf_counter() - started
        return seconds, Stages(*(sum(column) / len(uris) for column in zip(*done, strict=True)))

    def close(self) -> None:
        self._pool.shutdown()
