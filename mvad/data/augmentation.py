"""Random variants of an image, as a camera could have taken them of the same product.

Those of a few images are rotated and shifted a little, and flipped if the product looks much the same flipped: `vary`.
Others are asked for by name: `Augmentation`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

AUGMENTATIONS = ("brightness", "rotation", "quarter-turns", "flips")
BRIGHTNESS = 0.8, 1.2  # factors of pixel values
MAX_TILT_DEGREES = 5.0  # of ``rotation``
MAX_STRETCH = 0.05  # of an image that counts as square: the difference of its sides, as a share of the longer one

MAX_ROTATION_DEGREES = 10.0
MAX_SHIFT = 0.05  # as a share of the side
MARGIN = 0.16  # as a share of the side: rotation and shift bring this much into view; it is filled by reflection
TRIALS = 8  # random moves that a flip is compared with
TRIAL_SIDE = 64  # pixels; at this size coarse structure is compared, not texture


@dataclass(frozen=True)
class Augmentation:
    """How variants of an image differ from it.

    ``kinds`` are some of `AUGMENTATIONS`, or None: moved and flipped, as `vary` does. ``flips`` is ``auto``, those that
    the product allows, or one of `options.FLIPS`.
    """

    kinds: tuple[str, ...] | None = None
    flips: str = "auto"

    @property
    def looks_at_flips(self) -> bool:
        """Whether it matters which flips the product allows."""
        return self.flips == "auto" and (self.kinds is None or "flips" in self.kinds)

    def apply(self, image: Image.Image, seed: int, flips: str, *, is_square: bool = True) -> Image.Image:
        """Return a random variant of an RGB image, of the same size.

        With the kind ``brightness`` pixel values are multiplied by a factor from `BRIGHTNESS`; with ``rotation`` the
        image is rotated by up to `MAX_TILT_DEGREES`. With ``quarter-turns`` or ``flips``, it is turned and mirrored by
        one combination of those asked for that is not the image itself, each as likely as any other. Images that are
        not square, or were not before they were resized, are turned by half turns alone.

        ``flips`` are those allowed, one of `options.FLIPS`.
        """
        if self.kinds is None:
            return vary(image, seed, flips)
        random = np.random.default_rng(seed)
        factor, angle, choice = random.uniform(*BRIGHTNESS), random.uniform(-1, 1), random.random()
        if "rotation" in self.kinds:
            image = _tilted(image, angle * MAX_TILT_DEGREES)
        turns = (0,) if "quarter-turns" not in self.kinds else (0, 1, 2, 3) if is_square else (0, 2)
        moves = _turns_and_flips(turns, flips if "flips" in self.kinds else "none")
        if moves:
            n_turns, is_mirrored = moves[int(choice * len(moves))]
            image = ImageOps.mirror(image) if is_mirrored else image
            image = Image.fromarray(np.rot90(np.asarray(image), n_turns)) if n_turns else image
        if "brightness" in self.kinds:
            image = Image.fromarray((np.asarray(image) * factor).round().clip(0, 255).astype(np.uint8))
        return image


NO_FLIPS = Augmentation(flips="none")


def is_square(width: int, height: int) -> bool:
    """Whether an image is so nearly square that it may be turned by quarter turns."""
    return abs(width - height) <= MAX_STRETCH * max(width, height)


def _turns_and_flips(turns: tuple[int, ...], flips: str) -> list[tuple[int, bool]]:
    """The ways to turn and mirror an image, other than not at all: quarter turns, after a mirroring left to right."""
    # Upside down is mirrored and turned by half a turn.
    of_flips = {
        "none": [(0, False)],
        "horizontal": [(0, False), (0, True)],
        "vertical": [(0, False), (2, True)],
        "both": [(0, False), (0, True), (2, True), (2, False)],
    }[flips]
    moves = {((turn + extra) % 4, is_mirrored) for turn in turns for extra, is_mirrored in of_flips}
    return sorted(moves - {(0, False)})


def _tilted(image: Image.Image, degrees: float) -> Image.Image:
    """Rotate an image; what comes into view at its borders is reflected."""
    width, height = image.size
    sine = math.sin(math.radians(MAX_TILT_DEGREES))
    margin_x, margin_y = (math.ceil(sine * length / 2) + 1 for length in (height, width))
    padded = np.pad(np.asarray(image), ((margin_y, margin_y), (margin_x, margin_x), (0, 0)), "reflect")
    turned = Image.fromarray(padded).rotate(degrees, Image.Resampling.BILINEAR)
    return turned.crop((margin_x, margin_y, margin_x + width, margin_y + height))


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
