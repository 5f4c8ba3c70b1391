"""Variational autoencoder on patch features: Kingma, Welling, Auto-Encoding Variational Bayes, arXiv 1312.6114."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from mvad.detectors.trained import TrainedDetector

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from typing_extensions import Self

    from mvad.detectors.networks import PatchVAE

LATENT = 16
SAMPLES = 8  # of the latent variable, per estimate of a score


def vae_loss(network: nn.Module, rows: Tensor, generator: torch.Generator) -> Tensor:
    """Mean negative evidence lower bound of (n, channels) rows, with one sample of noise per row."""
    import torch

    noise = torch.randn((1, len(rows), LATENT), generator=generator).to(rows.device)
    return network(rows, noise).mean()


class VAE(TrainedDetector):
    """How improbable a patch is under a variational autoencoder of good patches: a bound of its -log density."""

    method: ClassVar[str] = "vae"
    feature: ClassVar[str] = "patches"

    def build(self, **shape: Any) -> PatchVAE:
        from mvad.detectors.networks import PatchVAE

        return PatchVAE(**shape)

    def _untrained(self, channels: int, device: torch.device) -> PatchVAE:
        from mvad.detectors.training import seeded

        self.shape = {"channels": channels, "latent": LATENT, "hidden": max(64, channels // 2)}
        return seeded(lambda: self.build(**self.shape), self.seed).to(device)

    def fit(self, features: Tensor) -> Self:
        """Train on (n, height, width, channels) float32 features of good images."""
        from mvad.detectors.training import split

        rows, held_out = (part.flatten(0, 2) for part in split(features, self.plan))
        network = self._untrained(features.shape[-1], features.device)
        network.standardise.learn(rows)
        self._train(network, rows, held_out, vae_loss)
        return self

    def grid(self, image: Tensor) -> Tensor:
        import torch

        # The same noise for every patch of every image: scores compare, and do not depend on the order of images.
        generator = torch.Generator().manual_seed(self.seed)
        noise = torch.randn((SAMPLES, LATENT), generator=generator).to(image.device)
        return self.network(image.reshape(-1, image.shape[-1]), noise).reshape(image.shape[:2])
