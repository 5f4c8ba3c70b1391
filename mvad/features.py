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

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from mvad.backbones import Backbone, BackboneSpec
from mvad.options import ImageSize
from mvad.patches import patch_features

KINDS = ("patches", "stages", "pooled", "pixels")
PIXELS_SIDE = 128


class FeatureExtractor:
    """Pixels to features of the kinds asked for.

    Attributes
    ----------
    shapes
        Shape of each kind's features of one image.
    """

    def __init__(
        self,
        kinds: Sequence[str],
        spec: BackboneSpec,
        weights: Mapping[str, NDArray[Any]],
        size: ImageSize,
        device: str | torch.device = "cpu",
    ) -> None:
        unknown = set(kinds) - set(KINDS)
        if unknown:
            raise ValueError(f"unknown kinds of features: {sorted(unknown)}")
        self.kinds = tuple(kinds)
        self.device = torch.device(device)
        depths = (0, 1, 2) if "stages" in kinds else (0, 1)
        self.backbone: Backbone | None = None
        if set(kinds) != {"pixels"}:
            self.backbone = Backbone(spec, weights, size.crop, device, depths, pooled="pooled" in kinds)
        blank = self(np.zeros((1, size.crop, size.crop, 3), np.uint8))
        self.shapes = {kind: tuple(features.shape[1:]) for kind, features in blank.items()}

    def __call__(self, pixels: NDArray[np.uint8]) -> dict[str, Tensor]:
        """Features by kind, float32 on the device, of (n, side, side, 3) uint8 RGB pixels."""
        found: dict[str, Tensor] = {}
        if "pixels" in self.kinds:
            found["pixels"] = small_pixels(pixels, self.device)
        if self.backbone is not None:
            stages, pooled = self.backbone.forward(pixels)
            if "patches" in self.kinds:
                found["patches"] = patch_features(stages[:2])
            if "stages" in self.kinds:
                found["stages"] = patch_features(stages, reference=1)
            if "pooled" in self.kinds and pooled is not None:
                found["pooled"] = pooled
        return found


def small_pixels(pixels: NDArray[np.uint8], device: torch.device) -> Tensor:
    """(n, side, side, 3) uint8 pixels as float32 from 0 to 1, averaged to at most 128 x 128; (n, height, width, 3)."""
    images = torch.from_numpy(np.array(pixels)).to(device).permute(0, 3, 1, 2).float().div_(255)
    if images.shape[-1] > PIXELS_SIDE:
        images = functional.adaptive_avg_pool2d(images, PIXELS_SIDE)
    return images.permute(0, 2, 3, 1).contiguous()
