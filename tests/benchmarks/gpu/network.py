"""Ways of running a network on a GPU: images per second, and how far features are from those of the CPU."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.gpu.tools import CASES, largest_difference, load_network, load_pixels, median_seconds
from mvad.data.image_size import ImageSize
from mvad.features.backbones import FeatureNetwork, patch_features
from mvad.features.extractor import GPU_CHUNK, TorchExtractor
from mvad.features.kinds import PATCHES
from mvad.runtime.threads import compute_device

BATCHES = (32, 128)
N_COMPARED = 8  # images whose features the CPU computes too
INPUTS = 4  # batches that take turns, so that none stays in a cache
ROUNDS = 8  # batches that the pinned buffers take per call

Way = Callable[[Tensor], Tensor]


def network(task: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One row per network, image size, batch size and way."""
    for backbone, side in CASES:
        extractor, pixels, expected = _prepare(task, backbone, side)
        forward = _forward(extractor)
        for batch in BATCHES:
            ways: dict[str, tuple[Way, bool]] = {"float32": (forward, False), "TF32 convolutions": (forward, True)}
            if batch == BATCHES[0]:
                ways |= {
                    "float32, channels first": (_channels_first(extractor), False),
                    "float32, algorithms timed": (_timed_algorithms(forward), False),
                    "TF32, algorithms timed": (_timed_algorithms(forward), True),
                }
            ways |= {
                "autocast to bfloat16": (_autocast(forward, torch.bfloat16), False),
                "autocast to float16": (_autocast(forward, torch.float16), False),
                "float32, CUDA graph": (_graph(forward), False),
                "bfloat16, CUDA graph": (_graph(_autocast(forward, torch.bfloat16)), False),
            }
            yield from _rows(ways, backbone, side, pixels, batch, expected)
        yield from _host_rows(extractor, backbone, side, pixels.cpu().numpy())
        del extractor, forward
        torch.cuda.empty_cache()


def compiled(task: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The same for networks that inductor has compiled, which takes it long."""
    for backbone, side in CASES[:2]:
        extractor, pixels, expected = _prepare(task, backbone, side)
        run: Way = torch.compile(_forward(extractor))
        ways = {"float32, torch.compile": run, "bfloat16, torch.compile": _autocast(run, torch.bfloat16)}
        for name, way in ways.items():
            yield from _rows({name: (way, False)}, backbone, side, pixels, GPU_CHUNK, expected)


def _prepare(task: dict[str, Any], backbone: str, side: int) -> tuple[TorchExtractor, Tensor, Tensor]:
    """An extractor on the GPU, pixels there, and features of the first of them from the CPU."""
    weights, _ = load_network(backbone, Path(task["folder"]))
    pixels = load_pixels(task["test"], side, BATCHES[-1])
    on_cpu = FeatureNetwork([PATCHES], weights.spec, weights.weights).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        (expected,) = on_cpu(torch.from_numpy(pixels[:N_COMPARED]))
    on_gpu = FeatureNetwork([PATCHES], weights.spec, weights.weights)
    extractor = TorchExtractor([PATCHES], on_gpu, ImageSize.square(side), compute_device())
    return extractor, torch.from_numpy(pixels).cuda(), expected


def _forward(extractor: TorchExtractor) -> Way:
    return lambda pixels: extractor.network(pixels)[0]  # type: ignore[misc]


def _channels_first(extractor: TorchExtractor) -> Way:
    backbone: Any = extractor.network.backbone  # type: ignore[union-attr]
    layers = copy.deepcopy(backbone.layers).to(memory_format=torch.contiguous_format)

    def forward(pixels: Tensor) -> Tensor:
        images = (pixels.permute(0, 3, 1, 2).float() / 255 - backbone.mean) / backbone.std
        return patch_features(layers(images.contiguous())[0][:2])

    return forward


def _autocast(way: Way, dtype: torch.dtype) -> Way:
    def forward(pixels: Tensor) -> Tensor:
        with torch.autocast("cuda", dtype):
            return way(pixels).float()

    return forward


def _timed_algorithms(way: Way) -> Way:
    """Let cuDNN time its algorithms for each shape and take the fastest, also those that are not deterministic."""

    def forward(pixels: Tensor) -> Tensor:
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = True, False
        try:
            return way(pixels)
        finally:
            torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True

    return forward


def _graph(way: Way) -> Way:
    """Capture the kernels of the first batch in a CUDA graph, and replay them on all others."""
    captured: list[tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = []

    def replay(pixels: Tensor) -> Tensor:
        if not captured:
            captured.append(_capture(way, pixels.clone()))
        graph, source, result = captured[0]
        source.copy_(pixels)
        graph.replay()
        return result

    return replay


def _capture(way: Way, source: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor]:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # a warm-up: what is set up on first use cannot be captured
        for _ in range(3):
            way(source)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = way(source)
    return graph, source, result


def _rows(
    ways: dict[str, tuple[Way, bool]], backbone: str, side: int, pixels: Tensor, batch: int, expected: Tensor
) -> Iterator[dict[str, Any]]:
    inputs = [pixels[torch.arange(batch) + start] for start in range(0, max(1, len(pixels) - batch + 1), batch)][
        :INPUTS
    ]
    for name, (way, tf32) in ways.items():
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
        row = {"backbone": backbone, "side": side, "batch": batch, "way": name}
        try:
            with torch.inference_mode():
                torch.cuda.reset_peak_memory_stats()
                difference = largest_difference(way(inputs[0])[:N_COMPARED], expected)
                seconds = median_seconds(functools.partial(_run_all, way, inputs)) / len(inputs)
            peak = torch.cuda.max_memory_allocated()
            row |= {"images_per_second": batch / seconds, "difference": difference, "peak_bytes": peak}
        except RuntimeError as error:  # one way that fails is no reason to lose the others
            row["error"] = str(error).splitlines()[0]
        finally:
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        yield row


def _run_all(way: Way, inputs: list[Tensor]) -> None:
    for pixels in inputs:
        way(pixels)


def _host_rows(
    extractor: TorchExtractor, backbone: str, side: int, pixels: NDArray[np.uint8]
) -> Iterator[dict[str, Any]]:
    """From pixels in main memory: as mvad copies them, and through two pinned buffers on a stream of their own."""
    chunk = pixels[:GPU_CHUNK]
    chunks = [chunk] * ROUNDS
    buffers = [torch.empty(chunk.shape, dtype=torch.uint8).pin_memory() for _ in range(2)]
    on_card = [torch.empty(chunk.shape, dtype=torch.uint8, device="cuda") for _ in range(2)]
    copied, used = ([torch.cuda.Event() for _ in range(2)] for _ in range(2))
    copies, main = torch.cuda.Stream(), torch.cuda.current_stream()

    def double_buffered() -> None:
        for number, source in enumerate(chunks):
            slot = number % 2
            copied[slot].synchronize()  # the buffer has been read
            buffers[slot].copy_(torch.from_numpy(source))
            with torch.cuda.stream(copies):
                copies.wait_event(used[slot])
                on_card[slot].copy_(buffers[slot], non_blocking=True)
                copied[slot].record(copies)
            main.wait_event(copied[slot])
            extractor.network(on_card[slot])  # type: ignore[misc]
            used[slot].record(main)

    def as_mvad() -> None:
        for source in chunks:
            extractor.run(source)

    with torch.inference_mode():
        for name, work in (("from main memory, as mvad", as_mvad), ("pinned double buffers", double_buffered)):
            rate = ROUNDS * GPU_CHUNK / median_seconds(work)
            yield {"backbone": backbone, "side": side, "batch": GPU_CHUNK, "way": name, "images_per_second": rate}
