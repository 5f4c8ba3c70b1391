"""Deep feature reconstruction: Yang, Shi, Qi, DFR: Deep Feature Reconstruction, arXiv 2012.07122."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mvad.detectors.trained import Standardise, TrainedDetector
from mvad.detectors.training import seeded, split

VARIANCE = 0.9  # that the latent features must be able to carry, section III-C
PCA_ROWS = 20_000
LEAST_HIDDEN = 1024


def latent_size(rows: Tensor, seed: int = 0) -> int:
    """Number of principal components that carry 90 % of the variance of (n, channels) rows; at least one."""
    from sklearn.decomposition import PCA  # here, since actors that only score need not wait for it

    if len(rows) > PCA_ROWS:
        rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:PCA_ROWS]]
    shares = PCA(svd_solver="covariance_eigh").fit(rows.double().cpu().numpy()).explained_variance_ratio_
    return int((shares.cumsum() < VARIANCE).sum()) + 1


class _Network(nn.Module):
    """1x1 convolutions, which are linear layers on each patch: one wide layer on either side of the bottleneck.

    Narrow layers, as in the paper, reconstruct the most frequent kinds of good patches alone: where a category has many
    kinds, the rare ones score like defects.
    """

    def __init__(self, channels: int, latent: int, hidden: int) -> None:
        super().__init__()
        self.standardise = Standardise(channels)
        encoder = [nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, latent)]
        decoder = [nn.ReLU(), nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, channels)]
        self.layers = nn.Sequential(*encoder, *decoder)

    def forward(self, rows: Tensor) -> Tensor:
        """Squared error of reconstruction, mean over channels: (..., channels) to (...)."""
        wanted = self.standardise(rows)
        return (self.layers(wanted) - wanted).square().mean(dim=-1)


class FeatureAutoencoder(TrainedDetector):
    """Reconstructs multi-stage patch features through a bottleneck; what is not reconstructed was not good."""

    method: ClassVar[str] = "feature-autoencoder"
    feature: ClassVar[str] = "stages"
    default_epochs: ClassVar[int] = 30
    default_learning_rate: ClassVar[float] = 3e-3

    def build(self, **shape: Any) -> nn.Module:
        return _Network(**shape)

    def fit(self, features: Tensor) -> FeatureAutoencoder:
        """Train on (n, height, width, channels) float32 features of good images."""
        channels = features.shape[-1]
        kept, held_out = (part.reshape(-1, channels) for part in split(features, self.plan))
        scaler = Standardise(channels).to(features.device)
        scaler.learn(kept)
        latent = latent_size(scaler(kept), self.plan.seed)
        self.shape = {"channels": channels, "latent": latent, "hidden": max(LEAST_HIDDEN, channels // 2)}
        network = seeded(lambda: _Network(**self.shape), self.plan.seed).to(features.device)
        network.standardise.load_state_dict(scaler.state_dict())
        self._train(network, kept, held_out, lambda model, rows, noise: model(rows).mean())
        return self

    def grid(self, image: Tensor) -> Tensor:
        return self.network(image)
