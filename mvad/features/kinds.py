"""What detectors ask a backbone for; one forward pass serves several wishes.

``patches``
    The grid of locally aware patch features of the two shallower stages: (n, height, width, channels).
``stages``
    The same of all three stages, on the grid of the middle one.
``pooled``
    One vector an image, the average-pooled last map or the [CLS] token: (n, channels).
``pixels``
    The image itself, no larger than 128 x 128, 0 to 1: (n, height, width, 3). Needs no backbone.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

PATCHES, STAGES, POOLED, PIXELS = KINDS = ("patches", "stages", "pooled", "pixels")
PIXELS_SIDE = 128


def small_pixels(pixels: NDArray[np.uint8], device: torch.device) -> Tensor:
    """(n, side, side, 3) uint8 pixels as float32 from 0 to 1, averaged to at most 128 x 128; (n, height, width, 3)."""
    images = torch.from_numpy(np.array(pixels)).to(device).permute(0, 3, 1, 2).float().div_(255)
    if images.shape[-1] > PIXELS_SIDE:
        images = functional.adaptive_avg_pool2d(images, PIXELS_SIDE)
    return images.permute(0, 2, 3, 1).contiguous()
