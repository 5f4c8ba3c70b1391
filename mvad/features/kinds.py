"""The kinds of features that detectors ask for; one forward pass computes several of them.

``patches``
    Locally aware patch features of the layers that the backbone's spec chooses, by default the two shallower feature
    levels, on the grid of `BackboneSpec.grid_layer`: (n, height, width, channels). Of images that are seen through
    windows and as a whole (`ImageSize.whole`), they are those of both: `put_whole`.
``stages``
    The same of all three feature levels, averaged over 3x3, on the grid of the middle one.
``pooled``
    One vector per image, the average-pooled last map or the [CLS] token: (n, channels).
``pixels``
    The image itself, at most 128 x 128, values from 0 to 1: (n, height, width, 3). Needs no backbone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

PATCHES, STAGES, POOLED, PIXELS = KINDS = ("patches", "stages", "pooled", "pixels")
GRIDS = (PATCHES, STAGES)  # which put together from windows are those of the whole image
MAX_PIXELS_SIDE = 128
PLACE_WIDTH = 2  # features of a patch that say where it is, after all others: `patch_space.grid_places`


def network_kinds(kinds: Iterable[str]) -> tuple[str, ...]:
    """Return the kinds that a network computes, in the given order."""
    return tuple(kind for kind in kinds if kind != PIXELS)


def small_side(height: int, width: int) -> int:
    """Side of the square that `extractor.small_pixels` averages images to."""
    return min(height, width, MAX_PIXELS_SIDE)


def put_whole(features: Any, whole: Any) -> None:
    """Put the patches of an image as a whole, (r, c, channels), below those of its windows, after a row of NaN.

    ``features``, (rows + 1 + r, columns, channels), is an array or a tensor, as is ``whole``; c is at most ``columns``.
    """
    rows, columns = whole.shape[:2]
    features[-rows - 1 :] = math.nan
    features[-rows:, :columns] = whole


def split_levels(features: Tensor) -> tuple[Tensor, Tensor]:
    """The patches of the windows of images, (n, rows, columns, channels), and of the images as a whole, (n, r, c, ...).

    The inverse of `put_whole`, for a batch of at least one image. ValueError if there is no row of NaN.
    """
    is_nan = features[0, :, :, 0].isnan().cpu()
    dividers = is_nan.all(dim=1).nonzero()
    if not len(dividers):
        raise ValueError("the features hold no patches of images as a whole")
    rows = int(dividers[0])
    columns = int((~is_nan[rows + 1]).sum())
    return features[:, :rows], features[:, rows + 1 :, :columns].contiguous()
