"""The methods that reconstruct good images or their features; what they fail to reconstruct is abnormal."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from mvad.detectors.trained import TrainedDetector
from mvad.features.backbone_spec import NO_BACKBONE

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import Self

LATENT_VARIANCE = 0.9  # share of the variance that the latent features must carry, section III-C
MAX_PCA_ROWS = 20_000
MIN_HIDDEN = 1024


class Autoencoder(TrainedDetector):
    """A convolutional autoencoder on pixels: the simplest reconstruction method, and a baseline for the others.

    Map: reconstruction error of each pixel; image score: its mean.
    """

    method: ClassVar[str] = "autoencoder"
    feature: ClassVar[str] = "pixels"
    default_backbone: ClassVar[str] = NO_BACKBONE
    batch_size: ClassVar[int] = 16
    architecture: ClassVar[str] = "ImageAutoencoder"

    def fit(self, features: Tensor) -> Self:
        """Train on (n, height, width, 3) float32 pixels of good images."""
        from mvad.detectors.training import split

        self._train(self.build().to(features.device), *split(features, self.plan))
        return self

    def grid(self, image: Tensor) -> Tensor:
        return self.network(image[None])[0]

    def image_score(self, grids: NDArray[np.float32]) -> NDArray[np.float32]:
        return grids.mean(axis=(1, 2))


class FeatureAutoencoder(TrainedDetector):
    """Multi-stage patch features through a bottleneck.

    Yang, Shi, Qi, DFR: Deep Feature Reconstruction, arXiv 2012.07122.
    """

    method: ClassVar[str] = "feature-autoencoder"
    feature: ClassVar[str] = "stages"
    default_epochs: ClassVar[int] = 30
    default_learning_rate: ClassVar[float] = 3e-3
    architecture: ClassVar[str] = "PatchAutoencoder"

    def fit(self, features: Tensor) -> Self:
        """Train on (n, height, width, channels) float32 features of good images."""
        from mvad.detectors.networks import Standardise
        from mvad.detectors.training import split

        channels = features.shape[-1]
        rows, held_out = (part.flatten(0, 2) for part in split(features, self.plan))
        scaler = Standardise(channels).to(features.device)
        scaler.learn(rows)
        latent = latent_size(scaler(rows), self.seed)
        network = self.build(channels=channels, latent=latent, hidden=max(MIN_HIDDEN, channels // 2))
        network.standardise = scaler
        self._train(network.to(features.device), rows, held_out)
        return self

    def grid(self, image: Tensor) -> Tensor:
        return self.network(image)


def latent_size(rows: Tensor, seed: int = 0) -> int:
    """Count the principal components that carry 90 % of the variance of (n, channels) rows; at least one."""
    import torch
    from sklearn.decomposition import PCA

    if len(rows) > MAX_PCA_ROWS:
        rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:MAX_PCA_ROWS]]
    shares = PCA(svd_solver="covariance_eigh").fit(rows.double().cpu().numpy()).explained_variance_ratio_
    return int((shares.cumsum() < LATENT_VARIANCE).sum()) + 1
