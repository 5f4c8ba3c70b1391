"""Small tiles with a stripe pattern, good and with a dark square: the data of most tests."""

from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
REAL_DATA = ROOT.parent / "shared" / "data"
EMBEDDED = {"backbone": "efficientnet_lite0", "quiet": True}
COMPARED = {"image_size": 64, "epochs": 2, "learning_rate": 3e-3, "shots": "2", "shot_repeats": 2, **EMBEDDED}


def paint(random, defect=False, side=96):
    """A grey striped tile, with a dark square if defective; and the mask."""
    columns = np.arange(side)
    pixels = 120 + 40 * np.sin(columns / 5 + random.uniform(0, 6)) + random.normal(0, 4, (side, side))
    mask = np.zeros((side, side), bool)
    if defect:
        y, x = random.integers(20, side - 36, 2)
        mask[y : y + 16, x : x + 16] = True
        pixels[mask] = 15
    return pixels.clip(0, 255).astype(np.uint8), mask


def write_category(root, name, *, train=8, good=4, defective=4, seed=0):
    """A small category in the MVTec layout."""
    random = np.random.default_rng(seed)
    for part, count, defect in (
        ("train/good", train, False),
        ("test/good", good, False),
        ("test/spot", defective, True),
    ):
        folder = root / name / part
        folder.mkdir(parents=True)
        for number in range(count):
            pixels, mask = paint(random, defect)
            Image.fromarray(pixels).save(folder / f"{number:03}.png")
            if defect:
                truth = root / name / "ground_truth" / "spot"
                truth.mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask).save(truth / f"{number:03}_mask.png")


def tree(root, *paths):
    """Empty files below a folder, which is given back."""
    for path in paths:
        place = root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
    return root
