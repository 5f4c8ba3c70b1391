"""The networks of the methods that train one. Their attributes are the names of the arrays on disk."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

IMAGE_CHANNELS = (3, 16, 32, 64, 128)  # of the image autoencoder, from the image down
BOTTLENECK_CHANNELS = 16


class Standardise(nn.Module):
    """Scale channels to zero mean and unit deviation over the good images."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("deviation", torch.ones(channels))

    def learn(self, rows: Tensor) -> None:
        """Learn from (n, channels) rows; a constant channel stays unscaled."""
        deviation = rows.std(dim=0, correction=0)
        self.mean.copy_(rows.mean(dim=0))
        self.deviation.copy_(torch.where(deviation > 1e-6, deviation, torch.ones_like(deviation)))

    def forward(self, rows: Tensor) -> Tensor:
        return (rows - self.mean) / self.deviation


class ImageAutoencoder(nn.Module):
    """Strided convolutions down to a bottleneck of 1/16 of the side, and transposed ones up again."""

    def __init__(self) -> None:
        super().__init__()
        down: list[nn.Module] = []
        for n_in, n_out in pairwise(IMAGE_CHANNELS):
            down += [nn.Conv2d(n_in, n_out, 4, stride=2, padding=1), nn.ReLU()]
        up: list[nn.Module] = [nn.Conv2d(BOTTLENECK_CHANNELS, IMAGE_CHANNELS[-1], 1), nn.ReLU()]
        for n_in, n_out in pairwise(IMAGE_CHANNELS[::-1]):
            up += [nn.ConvTranspose2d(n_in, n_out, 4, stride=2, padding=1), nn.ReLU()]
        bottleneck = nn.Conv2d(IMAGE_CHANNELS[-1], BOTTLENECK_CHANNELS, 1)
        self.layers = nn.Sequential(*down, bottleneck, *up[:-1], nn.Sigmoid())

    def forward(self, images: Tensor) -> Tensor:
        """Squared error of reconstruction, mean over colours: (n, height, width, 3) to (n, height, width)."""
        target = images.permute(0, 3, 1, 2)
        height, width = target.shape[-2:]
        # The sides must be multiples of 16: the padding is cut off again.
        padded = nn.functional.pad(target, (0, -width % 16, 0, -height % 16), mode="replicate")
        return (self.layers(padded)[..., :height, :width] - target).square().mean(dim=1)


class PatchAutoencoder(nn.Module):
    """1x1 convolutions, which are linear layers on each patch: one wide layer on either side of the bottleneck.

    Narrow layers, as in the paper, only reconstruct the most frequent kinds of good patches: in a category of many
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
        target = self.standardise(rows)
        return (self.layers(target) - target).square().mean(dim=-1)


class PatchVAE(nn.Module):
    """Gaussian encoder and decoder of one patch; the decoder's variance is one learnt number per channel."""

    def __init__(self, channels: int, latent: int, hidden: int) -> None:
        super().__init__()
        self.standardise = Standardise(channels)
        self.encoder = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, 2 * latent))
        self.decoder = nn.Sequential(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, channels))
        self.log_variance = nn.Parameter(torch.zeros(channels))

    def forward(self, rows: Tensor, noise: Tensor) -> Tensor:
        """Negative evidence lower bound in nats, estimated with the given noise: (n, channels) to (n,).

        The noise is standard normal, (samples, n, latent), or (samples, latent), the same for all rows.
        """
        target = self.standardise(rows)
        mean, log_deviation = self.encoder(target).chunk(2, dim=-1)
        log_deviation = log_deviation.clamp(-8, 4)
        if noise.dim() == 2:
            noise = noise[:, None, :]
        errors = (self.decoder(mean + log_deviation.exp() * noise) - target).square() / self.log_variance.exp()
        likelihood = -0.5 * (errors + self.log_variance + math.log(2 * math.pi)).sum(dim=-1).mean(dim=0)
        divergence = 0.5 * (mean.square() + (2 * log_deviation).exp() - 1 - 2 * log_deviation).sum(dim=-1)
        return divergence - likelihood
