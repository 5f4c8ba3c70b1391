"""A convolutional autoencoder on pixels: the plainest of the reconstruction methods, and the others' yardstick."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from mvad.detectors.trained import TrainedDetector
from mvad.detectors.training import seeded, split
from mvad.features.backbone_spec import NO_BACKBONE

WIDTHS = (3, 16, 32, 64, 128)
LATENT = 16  # channels of the bottleneck


class _Network(nn.Module):
    """Strided convolutions down to a bottleneck of 1/16 of the side, and transposed ones up again."""

    def __init__(self) -> None:
        super().__init__()
        down: list[nn.Module] = []
        for before, after in pairwise(WIDTHS):
            down += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.ReLU()]
        up: list[nn.Module] = [nn.Conv2d(LATENT, WIDTHS[-1], 1), nn.ReLU()]
        for before, after in pairwise(WIDTHS[::-1]):
            up += [nn.ConvTranspose2d(before, after, 4, stride=2, padding=1), nn.ReLU()]
        self.layers = nn.Sequential(*down, nn.Conv2d(WIDTHS[-1], LATENT, 1), *up[:-1], nn.Sigmoid())

    def forward(self, images: Tensor) -> Tensor:
        """Squared error of reconstruction, mean over colours: (n, height, width, 3) to (n, height, width)."""
        wanted = images.permute(0, 3, 1, 2)
        height, width = wanted.shape[-2:]
        # The sides must be multiples of 16: what is added at the edges is cut off again.
        padded = nn.functional.pad(wanted, (0, -width % 16, 0, -height % 16), mode="replicate")
        return (self.layers(padded)[..., :height, :width] - wanted).square().mean(dim=1)


class Autoencoder(TrainedDetector):
    """Image score: mean reconstruction error; map: the error of each pixel."""

    method: ClassVar[str] = "autoencoder"
    feature: ClassVar[str] = "pixels"
    default_backbone: ClassVar[str] = NO_BACKBONE
    batch_size: ClassVar[int] = 16

    def build(self, **shape: Any) -> nn.Module:
        return _Network(**shape)

    def fit(self, features: Tensor) -> Autoencoder:
        """Train on (n, height, width, 3) float32 pixels of good images."""
        kept, held_out = split(features, self.plan)
        network = seeded(self.build, self.plan.seed).to(features.device)
        self._train(network, kept, held_out, lambda model, rows, noise: model(rows).mean())
        return self

    def grid(self, image: Tensor) -> Tensor:
        return self.network(image[None])[0]

    def of_image(self, grids: NDArray[np.float32]) -> NDArray[np.float32]:
        return grids.mean(axis=(1, 2))
