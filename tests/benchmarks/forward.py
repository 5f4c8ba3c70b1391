"""Ways of running a network on this machine, and of decoding, side by side: one image and one thread at a time."""

from __future__ import annotations

import importlib.util
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

from benchmarks.floor import floor_opener
from mvad.data.image_size import ImageSize
from mvad.data.images import load_image, read_image
from mvad.features.backbones import cut_network, network
from mvad.features.weights import Network

LOOKED_AT = 8  # images
AT_ONCE = 4  # runs in a row of each way, in turn with the others
JPEG_QUALITY, JPEG_SIDE = 92, 1024

Way = Callable[[], Sequence[Tensor]]


def compare_forward_passes(own: Network, size: ImageSize, uris: Sequence[str], repeats: int) -> list[dict[str, Any]]:
    """Milliseconds of ways of running the truncated network, and of decoding JPEG, and how far each is from the plain.

    Returns
    -------
    A row a way: ``way``, ``milliseconds``, ``difference`` (the largest, as a share of the largest plain value).
    """
    pixels = np.stack([load_image(uri, size, 10**9)[0] for uri in uris[:1]])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _timed(_ways(own, size, pixels), repeats) + _timed(_jpegs(uris[:LOOKED_AT], size), repeats)
    finally:
        torch.set_num_threads(threads)


def _ways(own: Network, size: ImageSize, pixels: np.ndarray) -> dict[str, Way]:
    spec = own.spec
    whole = network(spec, size.crop)
    whole.load_state_dict({name: torch.tensor(array) for name, array in own.weights.items()})
    plain = cut_network(whole.eval(), spec, (0, 1), pooled=False).eval()
    mean, std = torch.tensor(spec.mean).view(1, 3, 1, 1), torch.tensor(spec.std).view(1, 3, 1, 1)
    images = ((torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - mean) / std).contiguous()
    last = images.contiguous(memory_format=torch.channels_last)
    plain_last = cut_network(whole, spec, (0, 1), pooled=False).eval().to(memory_format=torch.channels_last)

    def lower() -> Sequence[Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            return [stage.float() for stage in plain_last(last)[0]]

    ways: dict[str, Way] = {
        "PyTorch": lambda: plain(images)[0],
        "PyTorch, channels last": lambda: plain_last(last)[0],
        "PyTorch, channels last, bfloat16": lower,
    }
    for engine in ("torch", "onnx"):
        title = "mvad --engine torch: batch norms folded" if engine == "torch" else "mvad --engine onnx"
        if engine == "torch" or importlib.util.find_spec("onnxruntime"):
            extract = floor_opener(own, size.crop, engine)()
            ways[title] = lambda extract=extract: extract.run(pixels)  # type: ignore[misc]
    compiled = _compiled(plain_last, last)
    if compiled is not None:
        ways["PyTorch, inductor with frozen weights"] = compiled
    return ways


def _compiled(plain: nn.Module, images: Tensor) -> Way | None:
    """By inductor, where there is a compiler for it."""
    import torch._inductor.config as inductor

    logging.getLogger("torch").setLevel(logging.ERROR)
    kept, inductor.freezing = inductor.freezing, True
    try:
        run = torch.compile(lambda given: plain(given)[0])
        with torch.no_grad():
            run(images)
    except Exception:  # no compiler, or one that fails
        return None
    finally:
        inductor.freezing = kept

    def way() -> Sequence[Tensor]:
        with torch.inference_mode(False), torch.no_grad():
            return run(images)

    return way


def _jpegs(uris: Sequence[str], size: ImageSize) -> dict[str, Way]:
    """Decoding photos of `JPEG_SIDE` pixels made of the images: in full, and at a half or less where that is enough."""
    files = []
    for uri in uris:
        target = io.BytesIO()
        read_image(uri, 10**9).resize((JPEG_SIDE, JPEG_SIDE)).save(target, "JPEG", quality=JPEG_QUALITY)
        files.append(target.getvalue())

    def decode(draft: bool) -> Sequence[Tensor]:
        found = []
        for data in files:
            image = Image.open(io.BytesIO(data))
            if draft:
                image.draft("RGB", (size.resize, size.resize))
            small = image.convert("RGB").resize((size.resize, size.resize), Image.Resampling.BILINEAR)
            found.append(torch.from_numpy(np.asarray(small, np.float32)))
        return found

    return {
        f"JPEG of {JPEG_SIDE} pixels, {len(files)} of them": lambda: decode(False),
        "the same, decoded as drafts": lambda: decode(True),
    }


def _timed(ways: dict[str, Way], repeats: int) -> list[dict[str, Any]]:
    """Each way in turn, so that what else the machine does falls on all of them alike; the first is the plain one."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    found: dict[str, Sequence[Tensor]] = {}
    with torch.inference_mode():
        for _ in range(repeats + 1):  # the first is a warm-up
            for name, way in ways.items():
                started = time.perf_counter()
                for _ in range(AT_ONCE):
                    found[name] = way()
                seconds[name].append((time.perf_counter() - started) / AT_ONCE)
    plain = next(iter(found.values()))
    scale = max(float(values.abs().max()) for values in plain)
    rows = []
    for name, values in found.items():
        away = max(float((one - other).abs().max()) for one, other in zip(values, plain, strict=True))
        milliseconds = statistics.median(seconds[name][1:]) * 1e3
        rows.append({"way": name, "milliseconds": milliseconds, "difference": away / scale})
    return rows
