"""PatchCore: Roth et al., Towards Total Recall in Industrial Anomaly Detection, arXiv 2106.08265."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mvad.detectors.base import Detector, Scores
from mvad.options import FitOptions
from mvad.runtime.tensors import as_tensor
from mvad.search.coreset import ShardCoreset, greedy_coreset, random_projection
from mvad.search.exact_search import ExactSearch
from mvad.search.memory_bank import MemoryBank
from mvad.search.worst_patch import worst_patches


class PatchCore(Detector):
    """A memory bank of good patches; a patch is as abnormal as it is far from the bank.

    Parameters
    ----------
    coreset_ratio
        Share of the training patches kept in the bank (section 3.2).
    projection
        Dimensions of the random projection the coreset is chosen in; 0: none.
    reweight
        Neighbours b of equation 7, which makes an image score count for less where the bank is dense in patches as
        near as the nearest one; 0: the image score is the largest patch distance.
    seed
        Seed of the projection.
    """

    method: ClassVar[str] = "patchcore"
    feature: ClassVar[str] = "patches"
    extends: ClassVar[bool] = True
    merges: ClassVar[bool] = True

    def __init__(self, coreset_ratio: float = 0.1, projection: int = 128, reweight: int = 9, seed: int = 0) -> None:
        self.coreset_ratio, self.projection, self.reweight, self.seed = (
            coreset_ratio,
            projection,
            reweight,
            seed,
        )
        self.coverage = 0.0
        self._bank: MemoryBank | None = None
        self._search: ExactSearch | None = None

    @classmethod
    def from_options(cls, options: FitOptions) -> PatchCore:
        return cls(options.coreset_ratio, options.projection, options.reweight, options.seed)

    @classmethod
    def from_state(
        cls, settings: dict[str, Any], arrays: dict[str, NDArray[Any]], device: str | torch.device = "cpu"
    ) -> PatchCore:
        settings = dict(settings)
        coverage = settings.pop("coverage")
        detector = cls(**settings)
        detector.coverage = coverage
        detector._bank = MemoryBank(arrays["bank"], device)
        return detector

    @property
    def settings(self) -> dict[str, Any]:
        """Parameters, and ``coverage``: the coreset's radius in the projected space, or a bound (see `shards`)."""
        return {
            "coreset_ratio": self.coreset_ratio,
            "projection": self.projection,
            "reweight": self.reweight,
            "seed": self.seed,
            "coverage": self.coverage,
        }

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        return {"bank": self.bank.vectors}

    @property
    def bank(self) -> MemoryBank:
        if self._bank is None:
            raise RuntimeError("this PatchCore is not fitted; call fit first")
        return self._bank

    @property
    def search(self) -> ExactSearch:
        if self._search is None or self._search.bank is not self.bank:
            self._search = ExactSearch(self.bank)
        return self._search

    def fit(self, features: Tensor) -> PatchCore:
        """Fill the bank with a coreset of the patches of good images, in the order greedy chose them.

        Parameters
        ----------
        features : (n, height, width, channels) float32
        """
        patches = features.flatten(0, 2)
        self._fill(patches, max(1, round(self.coreset_ratio * len(patches))))
        return self

    def _fill(self, patches: Tensor, size: int) -> None:
        vectors, self.coverage = self._coreset(patches, size)
        self._bank = MemoryBank(vectors, patches.device)

    def _coreset(self, patches: Tensor, size: int) -> tuple[NDArray[np.float32], float]:
        chosen, radius = greedy_coreset(random_projection(patches, self.projection, self.seed), size)
        return patches[torch.from_numpy(chosen).to(patches.device)].cpu().numpy(), radius

    def subsample(self, features: Tensor, share: float) -> ShardCoreset:
        patches = features.flatten(0, 2)
        return ShardCoreset(*self._coreset(patches, max(1, math.ceil(share * len(patches)))))

    def fit_shards(self, shards: Sequence[ShardCoreset], size: int, device: str = "cpu") -> PatchCore:
        union = np.concatenate([shard.vectors for shard in shards])
        self._fill(as_tensor(union, device), size)
        self.coverage += max(shard.radius for shard in shards)
        return self

    def extend(self, features: Tensor) -> PatchCore:
        """Choose a coreset anew from the bank and the patches of more images, larger by their share of patches.

        Parameters
        ----------
        features : (n, height, width, channels) float32
        """
        patches = features.flatten(0, 2)
        size = len(self.bank) + max(1, round(self.coreset_ratio * len(patches)))
        self._fill(torch.cat([self.bank.tensor, patches]), size)
        return self

    def score(self, features: Tensor) -> Scores:
        """Score images; each on its own, so that its company in a batch changes nothing.

        Parameters
        ----------
        features : (n, height, width, channels) float32 on the detector's device
        """
        images = features.flatten(1, 2)
        found = [self.search.nearest(patches) for patches in images]
        grid = np.stack([distances.cpu().numpy() for distances, _ in found]).reshape(features.shape[:-1])
        patch = torch.from_numpy(grid.reshape(len(images), -1).argmax(axis=1)).to(images.device)
        nearest = torch.stack([indices[own] for (_, indices), own in zip(found, patch, strict=True)])
        return Scores(self._reweighted(images, grid.max(axis=(1, 2)), patch, nearest), grid)

    def image_scores(self, features: Tensor) -> NDArray[np.float32]:
        images = features.flatten(1, 2)
        found = worst_patches(self.search, images)
        return self._reweighted(images, found.distance.cpu().numpy(), found.patch, found.nearest)

    def _reweighted(
        self, images: Tensor, distances: NDArray[np.float32], patch: Tensor, nearest: Tensor
    ) -> NDArray[np.float32]:
        """Scores of images from their farthest patches: the number, distance and nearest vector of each, (n,)."""
        # With m alone in the bank there is nothing to say about density.
        if self.reweight < 2 or len(self.bank) < 2:
            return distances
        farthest = images[torch.arange(len(images)), patch]
        return (distances * self._weights(farthest, nearest)).astype(np.float32)

    def _weights(self, patches: Tensor, nearest: Tensor) -> NDArray[np.float64]:
        """Equation 7: 1 - exp d(patch, m) / sum over m' of exp d(patch, m'), m' the b bank vectors nearest to m.

        m itself is the first of its own neighbours.
        """
        around = self.search.around(nearest, self.reweight)
        differences = self.bank.vectors[around] - patches.cpu().numpy()[:, None]
        distances = np.linalg.norm(differences, axis=2).astype(np.float64)
        shares = np.exp(distances - distances.max(axis=1, keepdims=True))
        return 1 - shares[:, 0] / shares.sum(axis=1)
