"""Random variants of an image, as a camera could have taken them of the same product.

They are rotated and shifted a little, and flipped if the product looks much the same flipped.
"""

import numpy as np
from PIL import Image, ImageOps

MAX_ROTATION_DEGREES = 10.0
MAX_SHIFT = 0.05  # as a share of the side
MARGIN = 0.16  # as a share of the side: rotation and shift bring this much into view; it is filled by reflection
TRIALS = 8  # random moves that a flip is compared with
TRIAL_SIDE = 64  # pixels; at this size coarse structure is compared, not texture


def vary(image: Image.Image, seed: int, flips: str) -> Image.Image:
    """Return a random variant of an RGB image, of the same size.

    Each flip that ``flips`` (one of `options.FLIPS`) allows happens with probability one half.
    """
    random = np.random.default_rng(seed)
    angle, shift_x, shift_y = random.uniform(-1, 1, 3)
    flip_x, flip_y = random.random(2) < 0.5
    width, height = image.size
    margin_x, margin_y = round(MARGIN * width), round(MARGIN * height)
    padding = ((margin_y, margin_y), (margin_x, margin_x), (0, 0))
    padded = Image.fromarray(np.pad(np.asarray(image), padding, "reflect"))
    moved = padded.rotate(
        angle * MAX_ROTATION_DEGREES,
        Image.Resampling.BILINEAR,
        translate=(round(shift_x * MAX_SHIFT * width), round(shift_y * MAX_SHIFT * height)),
    )
    variant = moved.crop((margin_x, margin_y, margin_x + width, margin_y + height))
    if flip_x and flips in ("horizontal", "both"):
        variant = ImageOps.mirror(variant)
    if flip_y and flips in ("vertical", "both"):
        variant = ImageOps.flip(variant)
    return variant


def allowed_flips(image: Image.Image) -> str:
    """Return the flips that a product allows, one of `options.FLIPS`.

    A flip is allowed if it changes the image at most half as much as small moves do. The change is the mean absolute
    difference of pixels, of the image reduced to 64 x 64 pixels; for moves it is the mean over random rotations and
    shifts.
    """
    small = image.resize((TRIAL_SIDE, TRIAL_SIDE), Image.Resampling.BOX)
    moves = np.mean([_change(small, vary(small, seed, "none")) for seed in range(TRIALS)])
    horizontal = _change(small, ImageOps.mirror(small)) <= moves / 2
    vertical = _change(small, ImageOps.flip(small)) <= moves / 2
    if horizontal and vertical:
        return "both"
    return "horizontal" if horizontal else "vertical" if vertical else "none"


def _change(before: Image.Image, after: Image.Image) -> float:
    return float(np.abs(np.asarray(before, np.float32) - np.asarray(after, np.float32)).mean())
