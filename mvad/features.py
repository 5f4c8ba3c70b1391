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

from mvad.backbones import Backbone, BackboneSpec, cut_network, network
from mvad.options import ImageSize
from mvad.patches import patch_features

KINDS = ("patches", "stages", "pooled", "pixels")
PIXELS_SIDE = 128


class FeatureExtractor:
    """Pixels to features of the kinds asked for."""

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
        self.backbone: Backbone | None = None
        if set(kinds) != {"pixels"}:
            self.backbone = Backbone(spec, weights, size.crop, device, _depths(kinds), pooled="pooled" in kinds)

    def __call__(self, pixels: NDArray[np.uint8]) -> dict[str, Tensor]:
        """Features by kind, float32 on the device, of (n, side, side, 3) uint8 RGB pixels."""
        found: dict[str, Tensor] = {}
        if "pixels" in self.kinds:
            found["pixels"] = small_pixels(pixels, self.device)
        if self.backbone is not None:
            found |= _from_stages(self.kinds, *self.backbone.forward(pixels))
        return found


def _depths(kinds: Sequence[str]) -> tuple[int, ...]:
    return (0, 1, 2) if "stages" in kinds else (0, 1)


def _from_stages(kinds: Sequence[str], stages: Sequence[Tensor], pooled: Tensor | None) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    if "patches" in kinds:
        found["patches"] = patch_features(stages[:2])
    if "stages" in kinds:
        found["stages"] = patch_features(stages, reference=1)
    if "pooled" in kinds and pooled is not None:
        found["pooled"] = pooled
    return found


def feature_shapes(kinds: Sequence[str], spec: BackboneSpec, size: ImageSize) -> dict[str, tuple[int, ...]]:
    """Shape of each kind's features of one image; found without weights and without computing any."""
    shapes: dict[str, tuple[int, ...]] = {}
    if "pixels" in kinds:
        side = min(size.crop, PIXELS_SIDE)
        shapes["pixels"] = (side, side, 3)
    if set(kinds) != {"pixels"}:
        with torch.device("meta"), torch.inference_mode():
            stages = cut_network(network(spec, size.crop), spec, _depths(kinds), pooled="pooled" in kinds)
            maps, pooled = stages.eval()(torch.empty(1, 3, size.crop, size.crop))
            found = _from_stages(kinds, maps, pooled)
        shapes |= {kind: tuple(features.shape[1:]) for kind, features in found.items()}
    return shapes


def small_pixels(pixels: NDArray[np.uint8], device: torch.device) -> Tensor:
    """(n, side, side, 3) uint8 pixels as float32 from 0 to 1, averaged to at most 128 x 128; (n, height, width, 3)."""
    images = torch.from_numpy(np.array(pixels)).to(device).permute(0, 3, 1, 2).float().div_(255)
    if images.shape[-1] > PIXELS_SIDE:
        images = functional.adaptive_avg_pool2d(images, PIXELS_SIDE)
    return images.permute(0, 2, 3, 1).contiguous()
