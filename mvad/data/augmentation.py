"""Random variants of an image: what a camera could have taken of the same product.

They are rotated and shifted a little, and flipped where the product looks much the same flipped.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

ROTATION = 10.0  # degrees at most
SHIFT = 0.05  # of the side at most
MARGIN = 0.16  # of the side: what such a rotation and shift bring into view, filled by reflection
TRIALS = 8  # moves that a flip is measured against
TRIAL_SIDE = 64  # pixels: coarse structure is compared, not texture


def vary(image: Image.Image, seed: int, flips: str) -> Image.Image:
    """A random variant of an RGB image, of the same size.

    Parameters
    ----------
    flips
        Those that are tossed for, one of `options.FLIPS`.
    """
    random = np.random.default_rng(seed)
    angle, right, down = random.uniform(-1, 1, 3)
    toss = random.random(2) < 0.5
    width, height = image.size
    across, along = round(MARGIN * width), round(MARGIN * height)
    wide = Image.fromarray(np.pad(np.asarray(image), ((along, along), (across, across), (0, 0)), "reflect"))
    moved = wide.rotate(
        angle * ROTATION,
        Image.Resampling.BILINEAR,
        translate=(round(right * SHIFT * width), round(down * SHIFT * height)),
    )
    varied = moved.crop((across, along, across + width, along + height))
    if toss[0] and flips in ("horizontal", "both"):
        varied = ImageOps.mirror(varied)
    if toss[1] and flips in ("vertical", "both"):
        varied = ImageOps.flip(varied)
    return varied


def allowed_flips(image: Image.Image) -> str:
    """Which flips a product allows, of `options.FLIPS`: those that change its image half as much as small moves do.

    The change is the mean absolute difference of pixels, of the image reduced to 64 pixels a side; what it is measured
    against is the mean over random rotations and shifts.
    """
    small = image.resize((TRIAL_SIDE, TRIAL_SIDE), Image.Resampling.BOX)
    moves = np.mean([_change(small, vary(small, seed, "none")) for seed in range(TRIALS)])
    horizontal = _change(small, ImageOps.mirror(small)) <= moves / 2
    vertical = _change(small, ImageOps.flip(small)) <= moves / 2
    if horizontal and vertical:
        return "both"
    return "horizontal" if horizontal else "vertical" if vertical else "none"


def _change(one: Image.Image, other: Image.Image) -> float:
    return float(np.abs(np.asarray(one, np.float32) - np.asarray(other, np.float32)).mean())
