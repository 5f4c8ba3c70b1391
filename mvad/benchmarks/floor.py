"""The floor: decoding and the forward pass alone, in as many processes of one thread as the job has actors."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch

from mvad.backbones import Backbone, BackboneSpec
from mvad.images import load_image
from mvad.options import ImageSize
from mvad.planning import Stages
from mvad.weights import load_weights

AT_ONCE = 8  # images a task


_backbone: Backbone
_size: ImageSize


def _start(spec: BackboneSpec, weights: str | None, size: ImageSize) -> None:
    global _backbone, _size
    torch.set_num_threads(1)
    _backbone, _size = Backbone(spec, load_weights(spec, weights), size.crop), size


def _work(uris: Sequence[str]) -> Stages:
    found = [0.0, 0.0]
    for uri in uris:
        started = time.perf_counter()
        pixels, _, _ = load_image(uri, _size, 10**9)
        decoded = time.perf_counter()
        _backbone.forward(pixels[None])
        found[0] += decoded - started
        found[1] += time.perf_counter() - decoded
    return Stages(*found)


class Floor:
    """Processes that decode and run the backbone, started once.

    Parameters
    ----------
    weights
        As given to ``--weights``.
    """

    def __init__(self, spec: BackboneSpec, weights: str | None, size: ImageSize, processes: int) -> None:
        self._pool = ProcessPoolExecutor(processes, get_context("spawn"), _start, (spec, weights, size))
        self._processes = processes

    def measure(self, uris: Sequence[str]) -> tuple[float, Stages]:
        """Seconds for all images, and what one takes of a core."""
        parts = [uris[start : start + AT_ONCE] for start in range(0, len(uris), AT_ONCE)]
        started = time.perf_counter()
        done = list(self._pool.map(_work, parts))
        seconds = time.perf_counter() - started
        return seconds, Stages(*(sum(column) / len(uris) for column in zip(*done, strict=True)))

    def close(self) -> None:
        self._pool.shutdown()
