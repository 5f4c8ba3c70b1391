"""Deep feature reconstruction: Yang, Shi, Qi, DFR: Deep Feature Reconstruction, arXiv 2012.07122."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from mvad.detectors.trained import TrainedDetector

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import Self

    from mvad.detectors.networks import PatchAutoencoder

LATENT_VARIANCE = 0.9  # share of the variance that the latent features must carry, section III-C
MAX_PCA_ROWS = 20_000
MIN_HIDDEN = 1024


def latent_size(rows: Tensor, seed: int = 0) -> int:
    """Count the principal components that carry 90 % of the variance of (n, channels) rows; at least one."""
    import torch
    from sklearn.decomposition import PCA

    if len(rows) > MAX_PCA_ROWS:
        rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:MAX_PCA_ROWS]]
    shares = PCA(svd_solver="covariance_eigh").fit(rows.double().cpu().numpy()).explained_variance_ratio_
    return int((shares.cumsum() < LATENT_VARIANCE).sum()) + 1


class FeatureAutoencoder(TrainedDetector):
    """Reconstructs multi-stage patch features through a bottleneck; what it fails to reconstruct is abnormal."""

    method: ClassVar[str] = "feature-autoencoder"
    feature: ClassVar[str] = "stages"
    default_epochs: ClassVar[int] = 30
    default_learning_rate: ClassVar[float] = 3e-3

    def build(self, **shape: Any) -> PatchAutoencoder:
        from mvad.detectors.networks import PatchAutoencoder

        return PatchAutoencoder(**shape)

    def fit(self, features: Tensor) -> Self:
        """Train on (n, height, width, channels) float32 features of good images."""
        from mvad.detectors.networks import Standardise
        from mvad.detectors.training import seeded, split

        channels = features.shape[-1]
        rows, held_out = (part.reshape(-1, channels) for part in split(features, self.plan))
        scaler = Standardise(channels).to(features.device)
        scaler.learn(rows)
        latent = latent_size(scaler(rows), self.seed)
        self.shape = {"channels": channels, "latent": latent, "hidden": max(MIN_HIDDEN, channels // 2)}
        network = seeded(lambda: self.build(**self.shape), self.seed).to(features.device)
        network.standardise.load_state_dict(scaler.state_dict())
        self._train(network, rows, held_out)
        return self

    def grid(self, image: Tensor) -> Tensor:
        return self.network(image)
