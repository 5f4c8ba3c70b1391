"""The space in which patches are compared: as they are, or whitened, by Euclidean or cosine distance, and by place.

Half the squared Euclidean distance of two vectors of length 1 is 1 - cos of the angle between them. So patches of
length 1 go into the memory bank, and the search stays as it is. Where the place of a patch counts, row and column are
two more features of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mvad.features.kinds import PLACE_WIDTH
from mvad.search.whitening import Whitening

ROWS_PER_CHUNK = 2048
SPREAD_SAMPLE = 4096  # patches


class PatchSpace:
    """Brings patches into the space of a memory bank, and distances there to patch scores.

    Parameters
    ----------
    distance
        ``euclidean``, or ``cosine``: then scores are 1 - cos. A patch of zeros stays one; its score to others is 1/2.
    whitening
        By which patches are whitened first, if at all.
    place_scale
        If above 0, the last `PLACE_WIDTH` features of a patch are its place; they are multiplied by this, and have no
        part in whitening or in the angle.
    """

    def __init__(
        self, distance: str = "euclidean", whitening: Whitening | None = None, place_scale: float = 0.0
    ) -> None:
        self.is_cosine, self.whitening, self.place_scale = distance == "cosine", whitening, place_scale

    def __call__(self, patches: Tensor) -> Tensor:
        """Bring patches, (..., d) float32, into the space: each the same, whichever the others are."""
        if not self.is_cosine and self.whitening is None and not self.place_scale:
            return patches
        rows = patches.reshape(-1, patches.shape[-1])
        width = rows.shape[1] - (PLACE_WIDTH if self.place_scale else 0)
        brought = torch.empty_like(rows)
        for part, out in zip(rows.split(ROWS_PER_CHUNK), brought.split(ROWS_PER_CHUNK), strict=True):
            values = part[:, :width].double() if self.whitening is None else self.whitening(part[:, :width])
            if self.is_cosine:
                lengths = values.square().sum(dim=1, keepdim=True).sqrt_()
                values = values / lengths.clamp_min_(torch.finfo(torch.float64).tiny)
            out[:, :width] = values
            out[:, width:] = part[:, width:] * self.place_scale
        return brought.view(patches.shape)

    def scores(self, distances: NDArray[np.float32]) -> NDArray[np.float32]:
        """Patch scores of Euclidean distances in the space."""
        return (np.square(distances, dtype=np.float64) / 2).astype(np.float32) if self.is_cosine else distances

    def distance(self, score: float) -> float:
        """The Euclidean distance of a patch score."""
        return float(np.sqrt(2 * score)) if self.is_cosine and score > 0 else score


def grid_places(rows: int, columns: int) -> Tensor:
    """The place of each patch of a grid: row and column of its middle, as shares of the longer side.

    (rows, columns, `PLACE_WIDTH`) float32.
    """
    down, across = (torch.arange(length, dtype=torch.float64).add_(0.5) for length in (rows, columns))
    places = torch.stack(torch.meshgrid(down, across, indexing="ij"), dim=-1)
    return places.div_(max(rows, columns)).float()


class Spread(NamedTuple):
    """What says how far some patches lie from their mean; that of all of several sets follows from theirs."""

    n_patches: int
    mean: NDArray[np.float64]  # (d,)
    square: float  # mean squared length

    @classmethod
    def measure(cls, patches: Tensor, space: PatchSpace) -> Spread:
        """Measure (n, d) patches in a space, without their places, by an evenly spaced sample of them."""
        sample = space(patches[:: math.ceil(len(patches) / SPREAD_SAMPLE)])
        values = sample.double().cpu().numpy()  # NumPy adds in one order, whatever the number of threads
        return cls(len(patches), values.mean(axis=0), float(np.square(values).sum(axis=1).mean()))


def distance_from_mean(spreads: Sequence[Spread]) -> float:
    """The root mean square distance from their mean of all patches of several sets; 1 if they are all alike."""
    shares = np.array([one.n_patches for one in spreads], float)
    shares /= shares.sum()
    mean = sum(share * one.mean for share, one in zip(shares, spreads, strict=True))
    square = sum(share * one.square for share, one in zip(shares, spreads, strict=True))
    variance = float(square - np.square(mean).sum())
    return math.sqrt(variance) if variance > 1e-12 * square else 1.0
