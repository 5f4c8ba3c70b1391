"""Sheets of soft light and dark bands, wider than a window of `TILES`: good, with a spot, and with a band missing."""

import numpy as np
from PIL import Image

from helpers.tiles import EMBEDDED

SIDE, BAND, TILE = 512, 128, 64  # pixels
TILES = {**EMBEDDED, "image_size": 128, "tile_size": TILE, "coreset_ratio": 0.02, "actors": 1}
LEVELS = {**TILES, "tile_levels": "whole,tiles"}
SPOT = (slice(150, 162), slice(230, 242))


def paint(random, kind="good"):
    """One sheet: (512, 512) uint8. Where a dark band is missing, all that a window sees is part of good sheets, too."""
    columns = np.arange(SIDE) + random.uniform(0, 2 * BAND)
    wave = np.sin(np.pi * columns / BAND)
    if kind == "missing":
        dark = 2 * BAND * round(columns.mean() / (2 * BAND) - 0.75) + BAND  # where the one nearest to the middle starts
        wave[np.abs(columns - dark - BAND / 2) <= BAND] = 1  # as in the middle of the light bands beside it
    shade = 128 + 60 * np.tanh(6 * wave)
    pixels = shade + random.normal(0, 6, (SIDE, SIDE))
    if kind == "spot":
        pixels[SPOT] = 250 - shade[SPOT[1]]
    return pixels.clip(0, 255).astype(np.uint8)


def write(root, seed=0, **counts):
    """Images ``root/sheet/<split>/<kind>``, by ``<split>_<kind>`` how many; the root is given back."""
    random = np.random.default_rng(seed)
    for name, count in counts.items():
        split, kind = name.split("_")
        folder = root / "sheet" / split / kind
        folder.mkdir(parents=True)
        for number in range(count):
            Image.fromarray(paint(random, kind)).save(folder / f"{number}.png")
    return root
