"""Locally aware patch features: PatchCore (arXiv 2106.08265), section 3.1."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

NEIGHBOURHOOD = 3


def patch_features(stages: Sequence[Tensor]) -> Tensor:
    """Join the feature maps of neighbouring stages into one grid of patch features.

    Each map is averaged over 3x3 neighbourhoods, the deeper ones are brought to the grid of the first by bilinear
    interpolation, and the channels are concatenated. Beyond the border zeros are averaged in, which makes patches there
    shorter and so less able to be far from the bank: networks see the border of an image less well than its inside, and
    averaging over what is there alone makes good borders the most abnormal patches of an image.

    Parameters
    ----------
    stages : sequence of (n, channels, height, width)
        Shallow to deep.

    Returns
    -------
    (n, height, width, sum of channels) float32, contiguous, on the device of the maps.
    """
    grid = stages[0].shape[-2:]
    pooled = [
        functional.avg_pool2d(stage, NEIGHBOURHOOD, stride=1, padding=NEIGHBOURHOOD // 2, count_include_pad=True)
        for stage in stages
    ]
    joined = [
        stage if stage.shape[-2:] == grid else functional.interpolate(stage, grid, mode="bilinear", align_corners=False)
        for stage in pooled
    ]
    return torch.cat(joined, dim=1).permute(0, 2, 3, 1).contiguous()
