"""The patch of an image that is farthest from a memory bank, found without comparing every patch with every vector.

PatchCore's image score (arXiv 2106.08265, section 3.3) needs one patch only: that whose nearest neighbour in the bank
is farthest away. The distance of a patch to any vector of the bank bounds its nearest-neighbour distance from above, so
a patch is out as soon as some vector is nearer to it than the farthest patch is to all of them. Which vector to compare
a patch with is guessed along a few axes, among longer and longer stretches of the bank, whose order is greedy's: each
of its beginnings covers the whole. A guess never decides: bounds are distances in all dimensions, and whatever patches
they leave are compared with the whole bank.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mvad.neighbours import MemoryBank

GUIDES = 48  # axes that guesses are made along
SAMPLE = 512  # vectors of the bank that the axes are found from
LEVELS = (512, 4096)  # stretches of the bank end here; the last at its end
CHUNK = 1 << 17  # numbers handled at a time, which stay in a processor's cache


class Farthest(NamedTuple):
    """Of each image, its farthest patch, that patch's distance to the bank and the nearest vector there: (n,) each."""

    patch: Tensor
    distance: Tensor
    nearest: Tensor


def principal_axes(vectors: Tensor, count: int) -> Tensor:
    """The orthogonal directions in which vectors vary most: (count, d), fewer where d or their number is less.

    Found from the inner products of the vectors, which is fast for a few long ones.

    Parameters
    ----------
    vectors : (n, d) float32
    """
    centred = vectors - vectors.mean(dim=0)
    weights = torch.linalg.eigh(centred @ centred.T).eigenvectors.flip(1)[:, : min(count, vectors.shape[1])]
    return torch.nn.functional.normalize(weights.T @ centred, dim=1)


class FarthestSearch:
    """Exact search for the farthest patches.

    Parameters
    ----------
    bank
        Its vectors in the order greedy chose them.
    """

    def __init__(self, bank: MemoryBank) -> None:
        self.bank = bank
        self._vectors = bank.tensor
        self._rows = max(1, CHUNK // self._vectors.shape[1])
        self._axes = principal_axes(self._vectors[:SAMPLE], GUIDES)
        self._centre = self._axes @ self._vectors[:SAMPLE].mean(dim=0)
        self._guides = self._along_axes(self._vectors)
        self._norms = self._guides.square().sum(dim=1)
        ends = [end for end in LEVELS if end < len(bank)] + [len(bank)]
        self._stretches = list(zip([0, *ends[:-1]], ends, strict=True))

    def _along_axes(self, rows: Tensor) -> Tensor:
        return (rows @ self._axes.T).sub_(self._centre)

    def __call__(self, patches: Tensor) -> Farthest:
        """The farthest patch of each image; whichever images come together, the answer for each is the same.

        Parameters
        ----------
        patches : (n, p, d) float32 on the bank's device
        """
        images, per_image, width = patches.shape
        rows = patches.reshape(-1, width)
        guides = self._along_axes(rows)
        bounds = torch.full((images, per_image), torch.inf, device=rows.device)
        left = torch.ones_like(bounds, dtype=torch.bool)
        patch = torch.zeros(images, dtype=torch.int64, device=rows.device)
        farthest = Farthest(patch, torch.full((images,), -torch.inf, device=rows.device), patch.clone())
        for start, end in self._stretches:
            for part in torch.nonzero(left.flatten()).flatten().split(self._rows):
                ranks = torch.addmm(self._norms[start:end], guides[part], self._guides[start:end].T, alpha=-2)
                guessed = self._vectors[ranks.argmin(dim=1) + start]
                distances = torch.linalg.vector_norm(guessed.sub_(rows[part]), dim=1)
                bounds.view(-1)[part] = torch.minimum(bounds.view(-1)[part], distances)
            self._settle_highest(patches, bounds, left, farthest)
        while left.any():
            self._settle_highest(patches, bounds, left, farthest)
        return farthest

    def _settle_highest(self, patches: Tensor, bounds: Tensor, left: Tensor, farthest: Farthest) -> None:
        """Compare the patch with the highest bound of each image with the whole bank, and drop those below it."""
        images = torch.nonzero(left.any(dim=1)).flatten()
        if not len(images):
            return
        highest = torch.where(left[images], bounds[images], -torch.inf).argmax(dim=1)
        distances, nearest = self.bank.nearest(patches[images, highest])
        wins = distances > farthest.distance[images]
        won = images[wins]
        farthest.patch[won], farthest.distance[won], farthest.nearest[won] = (
            highest[wins],
            distances[wins],
            nearest[wins],
        )
        left[images, highest] = False
        left &= bounds > farthest.distance[:, None]
