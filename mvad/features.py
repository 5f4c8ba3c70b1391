"""What detectors ask a backbone for; one forward pass serves several wishes.

``patches``
    The grid of locally aware patch features of the two deeper stages: (n, height, width, channels).
``pooled``
    One vector an image, the average-pooled last map or the [CLS] token: (n, channels).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mvad.backbones import Backbone, BackboneSpec
from mvad.options import ImageSize
from mvad.patches import patch_features

KINDS = ("patches", "pooled")
PATCH_DEPTHS = (1, 2)


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
        self.backbone = Backbone(spec, weights, size.crop, device, PATCH_DEPTHS, pooled="pooled" in kinds)
        blank = self(np.zeros((1, size.crop, size.crop, 3), np.uint8))
        self.shapes = {kind: tuple(features.shape[1:]) for kind, features in blank.items()}

    def __call__(self, pixels: NDArray[np.uint8]) -> dict[str, Tensor]:
        """Features by kind, float32 on the device, of (n, side, side, 3) uint8 RGB pixels."""
        stages, pooled = self.backbone.forward(pixels)
        found: dict[str, Tensor] = {}
        if "patches" in self.kinds:
            found["patches"] = patch_features(stages)
        if "pooled" in self.kinds and pooled is not None:
            found["pooled"] = pooled
        return found
