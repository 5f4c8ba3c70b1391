"""Anomaly maps: grids of patch scores brought to the size of the image."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch.nn import functional

SIGMA = 4.0  # pixels, arXiv 2106.08265, section 3.3


def anomaly_map(grid: NDArray[np.float32], side: int, sigma: float = SIGMA) -> NDArray[np.float32]:
    """Upsample a grid of patch scores bilinearly and smooth it with a Gaussian.

    Parameters
    ----------
    grid : (rows, columns) float32
    side
        Side in pixels of the square the model saw.
    sigma
        Of the Gaussian, in pixels.

    Returns
    -------
    (side, side) float32
    """
    scaled = functional.interpolate(
        torch.from_numpy(np.array(grid, np.float32))[None, None],
        (side, side),
        mode="bilinear",
        align_corners=False,
    )
    return gaussian_filter(scaled[0, 0].numpy(), sigma)
