"""The variational autoencoder for few images: what it can learn from other categories, it has learnt before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from mvad.detectors.trained import Standardise
from mvad.detectors.training import split
from mvad.detectors.vae import VAE, _loss, _Network

ADAPT = 0.3  # of the learning rate and of the epochs, in adapting


class VAEFewShot(VAE):
    """Trained once on good patches of other categories, then adapted to this one.

    Each category's features are standardised by its own mean and deviation, so that what is learnt is how the channels
    of the backbone go together, wherever they lie.
    """

    method: ClassVar[str] = "vae-fewshot"
    transfers: ClassVar[bool] = True

    def pretrain(self, others: Sequence[Tensor]) -> VAEFewShot:
        """Train on features of good images of other categories: (n, height, width, channels) float32 each."""
        kept: list[Tensor] = []
        held_out: list[Tensor] = []
        for features in others:
            scaler = Standardise(features.shape[-1]).to(features.device)
            scaler.learn(features.flatten(0, 2))
            for part, rows in zip((kept, held_out), split(features, replace(self.plan, copies=1)), strict=True):
                part.append(scaler(rows.flatten(0, 2)))
        network = self._untrained(others[0].shape[-1]).to(others[0].device)
        self._train(network, torch.cat(kept), torch.cat(held_out), _loss)
        return self

    def fit(self, features: Tensor) -> VAEFewShot:
        """Adapt to (n, height, width, channels) float32 features of good images."""
        network = self.network
        assert isinstance(network, _Network)
        kept, held_out = (part.flatten(0, 2) for part in split(features, self.plan))
        network.requires_grad_(True)
        network.standardise.learn(kept)
        plan = replace(
            self.plan,
            epochs=max(1, round(ADAPT * self.plan.epochs)),
            learning_rate=ADAPT * self.plan.learning_rate,
        )
        self._train(network, kept, held_out, _loss, plan)
        return self
