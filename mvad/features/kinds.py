"""The kinds of features that detectors ask for; one forward pass computes several of them.

``patches``
    Locally aware patch features of the layers that the backbone's spec chooses, by default the two shallower feature
    levels, on the grid of `BackboneSpec.grid_layer`: (n, height, width, channels).
``stages``
    The same of all three feature levels, averaged over 3x3, on the grid of the middle one.
``pooled``
    One vector per image, the average-pooled last map or the [CLS] token: (n, channels).
``pixels``
    The image itself, at most 128 x 128, values from 0 to 1: (n, height, width, 3). Needs no backbone.
"""

from collections.abc import Iterable

PATCHES, STAGES, POOLED, PIXELS = KINDS = ("patches", "stages", "pooled", "pixels")
GRIDS = (PATCHES, STAGES)  # which put together from windows are those of the whole image
MAX_PIXELS_SIDE = 128


def network_kinds(kinds: Iterable[str]) -> tuple[str, ...]:
    """Return the kinds that a network computes, in the given order."""
    return tuple(kind for kind in kinds if kind != PIXELS)


def small_side(height: int, width: int) -> int:
    """Side of the square that `extractor.small_pixels` averages images to."""
    return min(height, width, MAX_PIXELS_SIDE)
