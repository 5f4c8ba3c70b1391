"""The variational autoencoder for few images: it first learns from other categories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, cast

from mvad.detectors.base import Pretrained, State
from mvad.detectors.vae import VAE, vae_loss

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from typing_extensions import Self

    from mvad.detectors.networks import PatchVAE

ADAPTATION = 0.3  # share of the epochs and of the learning rate used to adapt to a category


class VAEFewShot(Pretrained, VAE):
    """Trained once on good patches of other categories, then adapted to this one.

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
        network = self._untrained(others[0].shape[-1], others[0].device)
        self._train(network, torch.cat(rows), torch.cat(held_out), vae_loss)
        return self

    def start_from(self, state: State, device: str | torch.device) -> None:
        self.restore(state, device)

    def fit(self, features: Tensor) -> Self:
        """Adapt to (n, height, width, channels) float32 features of good images."""
        from mvad.detectors.training import split

        network = cast("PatchVAE", self.network)
        rows, held_out = (part.flatten(0, 2) for part in split(features, self.plan))
        network.requires_grad_(True)
        network.standardise.learn(rows)
        plan = replace(
            self.plan,
            epochs=max(1, round(ADAPTATION * self.plan.epochs)),
            learning_rate=ADAPTATION * self.plan.learning_rate,
        )
        self._train(network, rows, held_out, vae_loss, plan)
        return self
