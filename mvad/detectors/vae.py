"""Variational autoencoders on patch features: Kingma, Welling, Auto-Encoding Variational Bayes, arXiv 1312.6114."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from mvad.detectors.base import Pretrained
from mvad.detectors.state import State
from mvad.detectors.trained import TrainedDetector

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from typing_extensions import Self

LATENT = 16
SAMPLES = 8  # of the latent variable, per estimate of a score
ADAPTATION = 0.3  # share of the epochs and of the learning rate used to adapt to a category


def vae_loss(network: nn.Module, rows: Tensor, generator: torch.Generator) -> Tensor:
    """Mean negative evidence lower bound of (n, channels) rows, with one sample of noise per row."""
    import torch

    noise = torch.randn((1, len(rows), LATENT), generator=generator).to(rows.device)
    return network(rows, noise).mean()


class VAE(TrainedDetector):
    """How improbable a patch is under a variational autoencoder of good patches: a bound of its -log density."""

    method: ClassVar[str] = "vae"
    feature: ClassVar[str] = "patches"
    architecture: ClassVar[str] = "PatchVAE"

    @classmethod
    def check_state(cls, state: State, shape: Sequence[int] | None = None) -> None:
        super().check_state(state, shape)
        if state.settings["shape"]["latent"] != LATENT:
            raise ValueError(f"its network has {state.settings['shape']['latent']} latent variables, not {LATENT}")

    def _untrained(self, features: Tensor) -> Any:
        channels = features.shape[-1]
        return self.build(channels=channels, latent=LATENT, hidden=max(64, channels // 2)).to(features.device)

    def fit(self, features: Tensor) -> Self:
        """Train on (n, height, width, channels) float32 features of good images."""
        from mvad.detectors.training import split

        rows, held_out = (part.flatten(0, 2) for part in split(features, self.plan))
        network = self._untrained(features)
        network.standardise.learn(rows)
        self._train(network, rows, held_out, vae_loss)
        return self

    def noise(self) -> Tensor:
        """The noise that all scores are estimated with: (samples, latent), the same for every patch of every image.

        So scores compare, and do not depend on the order of images.
        """
        import torch

        return torch.randn((SAMPLES, LATENT), generator=torch.Generator().manual_seed(self.seed))

    def grid(self, image: Tensor) -> Tensor:
        noise = self.noise().to(image.device)
        return self.network(image.reshape(-1, image.shape[-1]), noise).reshape(image.shape[:2])


class VAEFewShot(Pretrained, VAE):
    """For few images: trained once on good patches of other categories, then adapted to this one.

    The features of each category are standardised by their own mean and deviation, so that the network learns how the
    channels of the backbone vary together, regardless of their level.
    """

    method: ClassVar[str] = "vae-fewshot"

    def pretrain(self, others: Sequence[Tensor]) -> Self:
        """Train on features of good images of other categories: (n, height, width, channels) float32 each."""
        import torch

        from mvad.detectors.networks import Standardise
        from mvad.detectors.training import split

        rows: list[Tensor] = []
        held_out: list[Tensor] = []
        for features in others:
            scaler = Standardise(features.shape[-1]).to(features.device)
            scaler.learn(features.flatten(0, 2))
            for parts, images in zip((rows, held_out), split(features, replace(self.plan, copies=1)), strict=True):
                parts.append(scaler(images.flatten(0, 2)))
        self._train(self._untrained(others[0]), torch.cat(rows), torch.cat(held_out), vae_loss)
        return self

    def fit(self, features: Tensor) -> Self:
        """Adapt to (n, height, width, channels) float32 features of good images."""
        from mvad.detectors.training import split

        network = self.network.requires_grad_(True)
        rows, held_out = (part.flatten(0, 2) for part in split(features, self.plan))
        network.standardise.learn(rows)
        epochs = max(1, round(ADAPTATION * self.plan.epochs))
        plan = replace(self.plan, epochs=epochs, learning_rate=ADAPTATION * self.plan.learning_rate)
        self._train(network, rows, held_out, vae_loss, plan)
        return self
