"""Decoding JPEG files on the GPU's decoder, and with Pillow on the cores."""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional
from torchvision.io import decode_jpeg

from benchmarks.forward import jpeg_files
from benchmarks.gpu.tools import median_seconds
from mvad.runtime.threads import usable_cores

N_FILES, N_DISTINCT, SIDE = 64, 8, 224


def decoding(task: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One row per way of decoding `forward.jpeg_files` and resizing them to `SIDE`."""
    files = (jpeg_files(task["test"][:N_DISTINCT]) * N_FILES)[:N_FILES]
    encoded = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in files]
    pool = ThreadPoolExecutor(cores := usable_cores())
    expected_full = np.asarray(Image.open(io.BytesIO(files[0])).convert("RGB"), np.int16)
    expected_small = _pillow(files[0]).astype(np.int16)

    def on_cores() -> None:
        list(pool.map(_pillow, files))

    def on_gpu(resize: bool) -> list[torch.Tensor]:
        images = decode_jpeg(encoded, device="cuda")
        return [_resize(image) for image in images] if resize else list(images)

    yield {"way": "Pillow, one core", "images_per_second": 1 / median_seconds(lambda: _pillow(files[0]))}
    yield {"way": f"Pillow, {cores} cores", "images_per_second": N_FILES / median_seconds(on_cores)}
    for name, resize, expected in (
        ("nvJPEG, not resized", False, expected_full),
        ("nvJPEG, resized there", True, expected_small),
    ):
        torch.cuda.reset_peak_memory_stats()
        image = on_gpu(resize)[0].cpu().permute(1, 2, 0).numpy().astype(np.int16)
        row = {"way": name, "images_per_second": N_FILES / median_seconds(lambda resize=resize: on_gpu(resize))}
        differences = np.abs(image - expected)
        row |= {"largest_difference": int(differences.max()), "mean_difference": float(differences.mean())}
        yield row | {"peak_bytes": torch.cuda.max_memory_allocated()}


def _pillow(data: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def _resize(image: torch.Tensor) -> torch.Tensor:
    small = functional.interpolate(image[None].float(), (SIDE, SIDE), mode="bilinear", antialias=True)
    return small[0].round().clamp(0, 255).to(torch.uint8)
