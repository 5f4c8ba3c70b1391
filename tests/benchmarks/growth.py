"""How seconds and memory grow with the number of images."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.case import category_uris, fit_models, link_images, score_images
from benchmarks.options import BenchmarkOptions
from benchmarks.peak import peak_memory
from mvad.data.manifest import Manifest
from mvad.model_store import find_models, read_arrays
from mvad.storage import to_uri

IMAGE_SIZE, CORESET_RATIO = 128, 0.002


def measure_growth(manifest: Manifest, category: str, options: BenchmarkOptions, folder: Path) -> list[dict[str, Any]]:
    """Fit to and score growing numbers of images, those of one category repeated; one row per number."""
    train, test = (category_uris(manifest, category, split) for split in ("train", "test"))
    common = {"engine": options.engine, "memory_limit": options.memory_limit}
    model_options = {
        "backbone": options.backbone_names[0],
        "image_size": IMAGE_SIZE,
        "coreset_ratio": CORESET_RATIO,
    }
    rows: list[dict[str, Any]] = []
    sizes = options.growth_sizes
    for number, size in enumerate([min(sizes), *sizes]):  # the first is a warm-up
        data, models, out = (folder / str(number) / name for name in ("data", "models", "out"))
        link_images(np.resize(train, size).tolist(), data / category / "train/good")
        link_images(np.resize(test, size).tolist(), data / category / "test/good")
        row: dict[str, Any] = {"images": size}
        with peak_memory() as peak:
            started = time.perf_counter()
            fit_models(data, models, **model_options, **common)
            row |= {"fit_seconds": time.perf_counter() - started}
        row |= {"fit_driver": peak.driver, "fit_actor": peak.actor}
        with peak_memory() as peak:
            started = time.perf_counter()
            score_images(data, models, out, **common)
            row |= {"score_seconds": time.perf_counter() - started}
        row |= {"score_driver": peak.driver, "score_actor": peak.actor}
        row["bank"] = len(read_arrays(find_models(to_uri(str(models)))[category])["bank"])
        rows.append(row)
    return rows[1:]
