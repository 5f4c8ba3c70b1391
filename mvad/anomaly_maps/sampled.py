"""The patches of an image that tell what product it shows: a few, spread over the image."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from mvad.data.image_size import ImageSize
from mvad.data.images.ignoring import ignored_pixels

SIDE = 8  # rows, and columns, of patches
WINDOWS_SIDE = 2  # rows, and columns, of windows that they are in: the others need not go through the network
MAX_SAMPLED_PATCHES = SIDE * SIDE

Item = TypeVar("Item")


def sampled_patches(size: ImageSize, grid: tuple[int, ...]) -> NDArray[np.bool_]:
    """Which of the patches of an image, (rows, columns), are sampled: up to 8 x 8, evenly spread.

    If images have windows, the patches are spread in up to 2 x 2 windows, which are spread themselves. Patches whose
    middle is ignored are left out, unless that leaves none.
    """
    sampled = np.zeros(grid, bool)
    rows = _along_axis([window.rows for window in size.windows], grid[0], size.height)
    columns = _along_axis([window.columns for window in size.windows], grid[1], size.width)
    sampled[np.ix_(rows, columns)] = True
    ignored = ignored_pixels(size)
    if ignored is None:
        return sampled
    middles = [
        (2 * np.arange(count) + 1) * length // (2 * count) for count, length in zip(grid, ignored.shape, strict=True)
    ]
    seen = sampled & ~ignored[np.ix_(*middles)]
    return seen if seen.any() else sampled


def _along_axis(parts: Sequence[slice], count: int, length: int) -> list[int]:
    """Which of ``count`` patches along an axis are sampled; ``parts``, in pixels, are what windows answer for."""
    spans = _spread(
        sorted({(part.start * count // length, part.stop * count // length) for part in parts}), WINDOWS_SIDE
    )
    return [place for span in spans for place in _spread(range(*span), SIDE // len(spans))]


def _spread(items: Sequence[Item], most: int) -> list[Item]:
    """At most so many of the items: the middles of equal parts of them."""
    count = min(most, len(items))
    return [items[(2 * number + 1) * len(items) // (2 * count)] for number in range(count)]
