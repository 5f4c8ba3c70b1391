"""How seconds and memory grow with the number of images."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peak import peak_memory
from mvad.data.manifest import Manifest
from mvad.model_store import find_models, read_arrays
from mvad.options import BenchmarkOptions
from mvad.pipeline.flow import fit, score
from mvad.storage import to_uri

SIDE, RATIO = 128, 0.002


def growth(
    manifest: Manifest, category: str, sizes: Sequence[int], options: BenchmarkOptions, folder: Path
) -> list[dict[str, Any]]:
    """Fit to and score so many images, those of a category over and over, each time; a row a size."""
    own = manifest.table.filter(np.array(manifest.table["category"].to_pylist()) == category)
    split = np.array(own["split"].to_pylist())
    uris = np.array(own["uri"].to_pylist())
    common = {"backbone": options.backbone_names[0], "image_size": SIDE, "coreset_ratio": RATIO, "folds": 0}
    common |= {"engine": options.engine}
    common |= {"memory_limit": options.memory_limit, "quiet": True, "new_run": True}
    rows: list[dict[str, Any]] = []
    for size in [min(sizes), *sizes]:  # the first is a warm-up
        place = folder / str(len(rows))
        for name, chosen in (("train/good", split == "train"), ("test/good", split == "test")):
            target = place / "data" / category / name
            target.mkdir(parents=True)
            for number, uri in enumerate(np.resize(uris[chosen], size)):
                (target / f"{number:06}{Path(uri).suffix}").symlink_to(uri.removeprefix("file://"))
        row: dict[str, Any] = {"images": size}
        with peak_memory() as peak:
            started = time.perf_counter()
            fit(str(place / "data"), str(place / "models"), **common)
            row |= {"fit_seconds": time.perf_counter() - started}
        row |= {"fit_driver": peak.driver, "fit_actor": peak.actor}
        with peak_memory() as peak:
            started = time.perf_counter()
            out = str(place / "out")
            limit = options.memory_limit
            score(str(place / "data"), str(place / "models"), out, memory_limit=limit, quiet=True)
            row |= {"score_seconds": time.perf_counter() - started}
        row |= {"score_driver": peak.driver, "score_actor": peak.actor}
        row["bank"] = len(read_arrays(find_models(to_uri(str(place / "models")))[category])["bank"])
        rows.append(row)
    return rows[1:]
