"""Variational autoencoder on patch features: Kingma, Welling, Auto-Encoding Variational Bayes, arXiv 1312.6114."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mvad.detectors.trained import Standardise, TrainedDetector
from mvad.detectors.training import seeded, split

LATENT = 16
SAMPLES = 8  # of the latent variable, in an estimate


class _Network(nn.Module):
    """Gaussian encoder and decoder of one patch; the decoder's variance is one learnt number a channel."""

    def __init__(self, channels: int, latent: int, hidden: int) -> None:
        super().__init__()
        self.standardise = Standardise(channels)
        self.encoder = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, 2 * latent))
        self.decoder = nn.Sequential(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, channels))
        self.log_variance = nn.Parameter(torch.zeros(channels))

    def forward(self, rows: Tensor, noise: Tensor) -> Tensor:
        """Negative evidence lower bound in nats, estimated with the noise given: (n, channels) to (n,).

        Parameters
        ----------
        rows : (n, channels)
        noise : (samples, latent), the same for all rows, or (samples, n, latent)
            Standard normal.
        """
        wanted = self.standardise(rows)
        mean, log_deviation = self.encoder(wanted).chunk(2, dim=-1)
        log_deviation = log_deviation.clamp(-8, 4)
        if noise.dim() == 2:
            noise = noise[:, None, :]
        errors = (self.decoder(mean + log_deviation.exp() * noise) - wanted).square() / self.log_variance.exp()
        likelihood = -0.5 * (errors + self.log_variance + math.log(2 * math.pi)).sum(dim=-1).mean(dim=0)
        divergence = 0.5 * (mean.square() + (2 * log_deviation).exp() - 1 - 2 * log_deviation).sum(dim=-1)
        return divergence - likelihood


def _loss(network: nn.Module, rows: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn((1, len(rows), LATENT), generator=generator).to(rows.device)
    return network(rows, noise).mean()


class VAE(TrainedDetector):
    """How improbable a patch is under a variational autoencoder of good patches, as a bound on its -log density."""

    method: ClassVar[str] = "vae"
    feature: ClassVar[str] = "patches"

    def build(self, **shape: Any) -> nn.Module:
        return _Network(**shape)

    def fit(self, features: Tensor) -> VAE:
        """Train on (n, height, width, channels) float32 features of good images."""
        channels = features.shape[-1]
        kept, held_out = (part.reshape(-1, channels) for part in split(features, self.plan))
        network = self._untrained(channels).to(features.device)
        network.standardise.learn(kept)
        self._train(network, kept, held_out, _loss)
        return self

    def _untrained(self, channels: int) -> _Network:
        self.shape = {"channels": channels, "latent": LATENT, "hidden": max(64, channels // 2)}
        return seeded(lambda: _Network(**self.shape), self.plan.seed)

    def grid(self, image: Tensor) -> Tensor:
        # The same noise for every patch of every image: scores compare, and do not depend on the order of images.
        generator = torch.Generator().manual_seed(self.plan.seed)
        noise = torch.randn((SAMPLES, LATENT), generator=generator).to(image.device)
        return self.network(image.reshape(-1, image.shape[-1]), noise).reshape(image.shape[:2])
