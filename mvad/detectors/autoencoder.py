"""A convolutional autoencoder on pixels: the simplest reconstruction method, and a baseline for the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mvad.detectors.trained import TrainedDetector
from mvad.features.backbone_spec import NO_BACKBONE

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import Self

    from mvad.detectors.networks import ImageAutoencoder


class Autoencoder(TrainedDetector):
    """Map: reconstruction error of each pixel; image score: its mean."""

    method: ClassVar[str] = "autoencoder"
    feature: ClassVar[str] = "pixels"
    default_backbone: ClassVar[str] = NO_BACKBONE
    batch_size: ClassVar[int] = 16

    def build(self, **shape: Any) -> ImageAutoencoder:
        from mvad.detectors.networks import ImageAutoencoder

        return ImageAutoencoder(**shape)

    def fit(self, features: Tensor) -> Self:
        """Train on (n, height, width, 3) float32 pixels of good images."""
        from mvad.detectors.training import seeded, split

        images, held_out = split(features, self.plan)
        self._train(seeded(self.build, self.seed).to(features.device), images, held_out)
        return self

    def grid(self, image: Tensor) -> Tensor:
        return self.network(image[None])[0]

    def image_score(self, grids: NDArray[np.float32]) -> NDArray[np.float32]:
        return grids.mean(axis=(1, 2))
