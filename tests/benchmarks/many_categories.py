"""Fit and score very many small categories in one run: how long it takes, and whether memory stays where it is.

python tests/many_categories.py --categories 1000 --images 4 --size 64
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

import mvad
from benchmarks.peak import peak_memory
from helpers.tiles import paint
from mvad import results
from mvad.storage import to_uri

OPTIONS = {"backbone": "efficientnet_lite0", "quiet": True, "new_run": True}


def write_categories(root: Path, categories: int, images: int, size: int) -> int:
    """Categories in the MVTec layout, each with so many good images and a half of them to test; gives the images."""
    random = np.random.default_rng(0)
    test = max(1, images // 2)
    for number in range(categories):
        parts = (("train/good", images, False), ("test/good", test, False), ("test/spot", test, True))
        for part, count, defect in parts:
            folder = root / f"part-{number:04}" / part
            folder.mkdir(parents=True)
            for name in range(count):
                Image.fromarray(paint(random, defect, side=size)[0]).save(folder / f"{name}.png")
    return categories * (images + 2 * test)


@contextmanager
def shared_memory() -> Iterator[list[int]]:
    """The most bytes of shared memory, where Ray's objects lie, above what was there before; the last entry."""
    seen, done = [0], threading.Event()
    before = psutil.virtual_memory().shared

    def watch() -> None:
        while not done.wait(0.2):
            seen.append(max(seen[-1], psutil.virtual_memory().shared - before))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


def measure(root: Path, out: Path, n_images: int, size: int, folds: int, actors: int | None) -> dict[str, Any]:
    """Run once; seconds a stage, and peaks in megabytes."""
    started = time.monotonic()
    with peak_memory() as peak, shared_memory() as shared:
        result = mvad.run(str(root), str(out), image_size=size, folds=folds, actors=actors, **OPTIONS)
    seconds = time.monotonic() - started
    n_rows, n_models = len(results.read_scores(to_uri(out), ["image_id"])), len(result.summary) - 1
    return {
        "categories": n_models,
        "images": n_images,
        "rows": n_rows,
        "exit_code": result.exit_code,
        "seconds": round(seconds, 1),
        **{f"{name}_seconds": round(value, 1) for name, value in result.seconds.items()},
        "driver_mb": round(peak.driver / 1e6),
        "actor_mb": round(peak.actor / 1e6),
        "shared_mb": round(shared[-1] / 1e6),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Very many categories in one run.")
    parser.add_argument("--categories", default="1000", help="numbers, comma separated: a run each")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--folds", type=int, default=2)
    parser.add_argument("--actors", type=int)
    options = parser.parse_args()
    complete = True
    for categories in map(int, options.categories.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            root, out = Path(folder) / "data", Path(folder) / "out"
            n_images = write_categories(root, categories, options.images, options.size)
            found = measure(root, out, n_images, options.size, options.folds, options.actors)
        tested = categories * 2 * max(1, options.images // 2)
        complete &= found["exit_code"] == 0 and found["rows"] == tested and found["categories"] == categories
        print("  ".join(f"{name} {value}" for name, value in found.items()), flush=True)
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
