"""Locally aware patch features: PatchCore (arXiv 2106.08265), section 3.1."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

NEIGHBOURHOOD = 3


def patch_features(stages: Sequence[Tensor], reference: int = 0) -> Tensor:
    """Join the feature maps of neighbouring stages into one grid of patch features.

    Each map is averaged over 3x3 neighbourhoods, all are brought to the grid of one of them, smaller maps by bilinear
    interpolation and larger ones by averaging over its cells, and the channels are concatenated. Beyond the border
    zeros are averaged in, which makes patches there shorter and so less able to be far from the bank: networks see the
    border of an image less well than its inside, and averaging over what is there alone makes good borders the most
    abnormal patches of an image.

    Parameters
    ----------
    stages : sequence of (n, channels, height, width)
        Shallow to deep.
    reference
        The stage whose grid is used.

    Returns
    -------
    (n, height, width, sum of channels) float32, contiguous, on the device of the maps.
    """
    height, width = stages[reference].shape[-2:]
    pooled = [
        functional.avg_pool2d(stage, NEIGHBOURHOOD, stride=1, padding=NEIGHBOURHOOD // 2, count_include_pad=True)
        for stage in stages
    ]
    joined = [_to_grid(stage, height, width) for stage in pooled]
    return torch.cat(joined, dim=1).permute(0, 2, 3, 1).contiguous()


def _to_grid(stage: Tensor, height: int, width: int) -> Tensor:
    if stage.shape[-2:] == (height, width):
        return stage
    if stage.shape[-2] > height:
        return functional.adaptive_avg_pool2d(stage, (height, width))
    return functional.interpolate(stage, (height, width), mode="bilinear", align_corners=False)
