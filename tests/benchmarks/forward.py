"""Ways of running a network on this machine, and of decoding: one image and one thread at a time."""

from __future__ import annotations

import io
import logging
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.floor import backbone_loader
from mvad.data.image_size import ImageSize
from mvad.data.images import load_image, read_image
from mvad.features.backbones import build_network, truncate_network
from mvad.features.weights import Network

N_JPEGS, JPEG_QUALITY, JPEG_SIDE = 8, 92, 1024
RUNS_IN_A_ROW = 4  # of each way, before the next way has its turn
MAX_PIXELS = 10**9

Way = Callable[[], Sequence[Tensor]]


def compare_forward_passes(
    weights: Network, size: ImageSize, uris: Sequence[str], repeats: int
) -> list[dict[str, Any]]:
    """Time ways of running the truncated network and of decoding JPEG, and compare their results with the plain way.

    Returns
    -------
    One row per way: ``way``, ``milliseconds``, ``difference`` (largest, as a share of the largest plain value).
    """
    pixels = np.stack([load_image(uris[0], size, MAX_PIXELS)[0]])  # a copy: PyTorch wants it writable
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        ways = _network_ways(weights, size, pixels)
        return _time_ways(ways, repeats) + _time_ways(_jpeg_ways(uris[:N_JPEGS], size), repeats)
    finally:
        torch.set_num_threads(threads)


def _network_ways(weights: Network, size: ImageSize, pixels: np.ndarray) -> dict[str, Way]:
    spec = weights.spec
    full = build_network(spec)
    full.load_state_dict({name: torch.tensor(array) for name, array in weights.weights.items()})
    plain = truncate_network(full.eval(), spec, spec.patch_layers, pooled=False).eval()
    mean, std = torch.tensor(spec.mean).view(1, 3, 1, 1), torch.tensor(spec.std).view(1, 3, 1, 1)
    images = ((torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - mean) / std).contiguous()
    images_last = images.contiguous(memory_format=torch.channels_last)
    plain_last = (
        truncate_network(full, spec, spec.patch_layers, pooled=False).eval().to(memory_format=torch.channels_last)
    )

    def bfloat16() -> Sequence[Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            return [feature_map.float() for feature_map in plain_last(images_last)[0]]

    torch_extract, onnx_extract = (backbone_loader(weights, size.width, engine)() for engine in ("torch", "onnx"))
    ways: dict[str, Way] = {
        "PyTorch": lambda: plain(images)[0],
        "PyTorch, channels last": lambda: plain_last(images_last)[0],
        "PyTorch, channels last, bfloat16": bfloat16,
        "mvad --engine torch: batch norms folded": lambda: torch_extract.run(pixels),
        "mvad --engine onnx": lambda: onnx_extract.run(pixels),
    }
    compiled = _compiled_way(plain_last, images_last)
    if compiled is not None:
        ways["PyTorch, inductor with frozen weights"] = compiled
    return ways


def _compiled_way(plain: nn.Module, images: Tensor) -> Way | None:
    """Compile with inductor; None where there is no working compiler."""
    import torch._inductor.config as inductor

    logging.getLogger("torch").setLevel(logging.ERROR)
    freezing, inductor.freezing = inductor.freezing, True
    try:
        run = torch.compile(lambda batch: plain(batch)[0])
        with torch.no_grad():
            run(images)
    except Exception:  # no compiler, or one that fails
        return None
    finally:
        inductor.freezing = freezing

    def way() -> Sequence[Tensor]:
        with torch.inference_mode(False), torch.no_grad():
            return run(images)

    return way


def jpeg_files(uris: Sequence[str]) -> list[bytes]:
    """Make photos of `JPEG_SIDE` pixels from images."""
    files = []
    for uri in uris:
        target = io.BytesIO()
        read_image(uri, MAX_PIXELS).resize((JPEG_SIDE, JPEG_SIDE)).save(target, "JPEG", quality=JPEG_QUALITY)
        files.append(target.getvalue())
    return files


def _jpeg_ways(uris: Sequence[str], size: ImageSize) -> dict[str, Way]:
    """Decode photos made from the images: in full, and at reduced size where that is enough."""
    files = jpeg_files(uris)

    def decode(draft: bool) -> Sequence[Tensor]:
        images = []
        for data in files:
            image = Image.open(io.BytesIO(data))
            if draft:
                image.draft("RGB", size.resize)
            small = image.convert("RGB").resize(size.resize, Image.Resampling.BILINEAR)
            images.append(torch.from_numpy(np.asarray(small, np.float32)))
        return images

    return {
        f"{len(files)} JPEG files of {JPEG_SIDE} pixels": lambda: decode(False),
        "the same, decoded as drafts": lambda: decode(True),
    }


def _time_ways(ways: dict[str, Way], repeats: int) -> list[dict[str, Any]]:
    """Time the ways in turn, so that other load on the machine affects all alike; the first way is the plain one."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    outputs: dict[str, Sequence[Tensor]] = {}
    with torch.inference_mode():
        for _ in range(repeats + 1):  # the first is a warm-up
            for name, way in ways.items():
                started = time.perf_counter()
                for _ in range(RUNS_IN_A_ROW):
                    outputs[name] = way()
                seconds[name].append((time.perf_counter() - started) / RUNS_IN_A_ROW)
    plain = next(iter(outputs.values()))
    scale = max(float(values.abs().max()) for values in plain)
    rows = []
    for name, values in outputs.items():
        difference = max(float((one - other).abs().max()) for one, other in zip(values, plain, strict=True))
        milliseconds = statistics.median(seconds[name][1:]) * 1e3
        rows.append({"way": name, "milliseconds": milliseconds, "difference": difference / scale})
    return rows
