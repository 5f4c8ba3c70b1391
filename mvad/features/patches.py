"""Locally aware patch features: PatchCore (arXiv 2106.08265), section 3.1."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

NEIGHBOURHOOD = 3


def patch_features(maps: Sequence[Tensor], reference: int = 0) -> Tensor:
    """Join the feature maps of several levels into one grid of patch features.

    Each map is averaged over 3x3 neighbourhoods. All are brought to the grid of one of them, smaller maps by bilinear
    interpolation and larger ones by averaging over its cells, and their channels are concatenated. Zeros beyond the
    border are averaged in, which makes patches there shorter and so less able to be far from the memory bank. Networks
    see the border of an image less well than its interior; averaging over the existing neighbours alone would make good
    borders the most abnormal patches of an image.

    Parameters
    ----------
    maps : sequence of (n, channels, height, width)
        Shallow to deep.
    reference
        Index of the map whose grid is used.

    Returns
    -------
    (n, height, width, sum of channels) float32, contiguous, on the device of the maps.
    """
    height, width = maps[reference].shape[-2:]
    pooled = [
        functional.avg_pool2d(level, NEIGHBOURHOOD, stride=1, padding=NEIGHBOURHOOD // 2, count_include_pad=True)
        for level in maps
    ]
    joined = [_to_grid(level, height, width) for level in pooled]
    return torch.cat(joined, dim=1).permute(0, 2, 3, 1).contiguous()


def _to_grid(level: Tensor, height: int, width: int) -> Tensor:
    if level.shape[-2:] == (height, width):
        return level
    if level.shape[-2] > height:
        return functional.adaptive_avg_pool2d(level, (height, width))
    return functional.interpolate(level, (height, width), mode="bilinear", align_corners=False)
