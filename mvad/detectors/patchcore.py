"""PatchCore: Roth et al., Towards Total Recall in Industrial Anomaly Detection, arXiv 2106.08265."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass
from typer import Option

from mvad.detectors.base import Detector, Extendable, Scores, Shardable
from mvad.detectors.state import ArraySpec, State
from mvad.search.aggregation import MAX, check_aggregate, top_count, top_mean

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from typing_extensions import Self

    from mvad.search.coreset import ShardCoreset
    from mvad.search.exact_search import ExactSearch
    from mvad.search.memory_bank import MemoryBank


LATER_SETTINGS = ("max_vectors", "aggregate")  # which models of earlier versions lack


class PatchCore(Extendable, Shardable, Detector):
    """A memory bank of good patches; a patch is as abnormal as it is far from the bank.

    Its ``coverage`` is the covering radius of the bank in the projected space: the largest distance of a training patch
    to it; an upper bound after `fit_shards`.
    """

    method: ClassVar[str] = "patchcore"
    feature: ClassVar[str] = "patches"

    @dataclass(frozen=True, kw_only=True)
    class Params(Detector.Params):
        """PatchCore"""

        coreset_ratio: Annotated[  # section 3.2
            float, Field(gt=0, le=1), Option(help="Share of the training patches kept in the memory bank.")
        ] = 0.1
        max_vectors: Annotated[
            int, Field(ge=1), Option(help="Maximum number of patches in the memory bank, whatever their share.")
        ] = 30_000
        projection: Annotated[
            int,
            Field(ge=0),
            Option(help="Dimensions of the random projection in which the coreset is chosen; 0: no projection."),
        ] = 128
        reweight: Annotated[  # equation 7
            int, Field(ge=0), Option(help="Number of neighbours b that re-weight the image score; 0: no re-weighting.")
        ] = 9
        aggregate: Annotated[
            str,
            AfterValidator(check_aggregate),
            Option(
                help="Image score: the largest patch score (max), or the mean of the top share of them, not "
                "re-weighted (such as top-1%).",
                metavar="max|top-P%",
            ),
        ] = MAX

    params: Params
    coverage: float = 0.0
    _bank: MemoryBank | None = None
    _search: ExactSearch | None = None

    @classmethod
    def check_state(cls, state: State, shape: Sequence[int] | None = None) -> None:
        defaults = {name: value for name, value in cls().settings.items() if name in LATER_SETTINGS}
        super().check_state(state._replace(settings={**defaults, **state.settings}), shape)

    @classmethod
    def array_specs(cls, settings: dict[str, Any], shape: Sequence[int] | None) -> dict[str, ArraySpec]:
        return {"bank": ArraySpec("float32", (None, None if shape is None else shape[-1]))}

    def restore(self, state: State, device: str | torch.device) -> None:
        self.coverage = state.settings["coverage"]
        self._fill_bank(state.arrays["bank"], device)

    @property
    def settings(self) -> dict[str, Any]:
        return {**asdict(self.params), "seed": self.seed, "coverage": self.coverage}

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """``bank``: the patches chosen, (m, channels) float32, in the order that greedy k-centre chose them."""
        return {"bank": self.bank.vectors}

    @property
    def bank(self) -> MemoryBank:
        return self._require_fitted(self._bank)

    @property
    def search(self) -> ExactSearch:
        """An exact search of the bank, prepared when it is first used."""
        if self._search is None:
            from mvad.search.exact_search import ExactSearch

            self._search = ExactSearch(self.bank)
        return self._search

    def _fill_bank(self, vectors: NDArray[np.float32], device: str | torch.device) -> None:
        from mvad.search.memory_bank import MemoryBank

        self._bank, self._search = MemoryBank(vectors, device), None

    def fit(self, features: Tensor) -> Self:
        """Fill the bank with a coreset of the patches of good images, (n, height, width, channels) float32."""
        patches = features.flatten(0, 2)
        self._fit_patches(patches, bank_size(self.params, len(patches)))
        return self

    def _fit_patches(self, patches: Tensor, size: int) -> NDArray[np.int64]:
        """Fill the bank with ``size`` of some patches; which they are."""
        indices, self.coverage = self._choose(patches, size)
        self._fill_bank(_rows(patches, indices), patches.device)
        return indices

    def _choose(self, patches: Tensor, size: int) -> tuple[NDArray[np.int64], float]:
        """The indices of a coreset, and its covering radius."""
        from mvad.search.coreset import greedy_coreset, random_projection

        return greedy_coreset(random_projection(patches, self.params.projection, self.seed), size)

    def subsample(self, features: Tensor, share: float) -> ShardCoreset:
        from mvad.search.coreset import ShardCoreset

        patches = features.flatten(0, 2)
        indices, radius = self._choose(patches, max(1, math.ceil(share * len(patches))))
        return ShardCoreset(_rows(patches, indices), radius)

    def fit_shards(self, shards: Sequence[ShardCoreset], size: int, device: str = "cpu") -> Self:
        from mvad.runtime.tensors import as_tensor

        union = np.concatenate([shard.vectors for shard in shards])
        indices = self._fit_patches(as_tensor(union, device), size)
        self.owners = np.repeat(np.arange(len(shards)), [len(shard.vectors) for shard in shards])[indices]
        self.coverage += max(shard.radius for shard in shards)
        return self

    def without(self, left_out: NDArray[np.bool_]) -> PatchCore:
        others = PatchCore(seed=self.seed, **asdict(self.params))
        others._fill_bank(np.ascontiguousarray(self.bank.vectors[~left_out]), self.bank.device)
        return others

    def extend(self, features: Tensor) -> Self:
        """Choose a new coreset from the bank and the patches of more images; it grows by `coreset_ratio` of those."""
        import torch

        patches = features.flatten(0, 2)
        size = min(len(self.bank) + bank_size(self.params, len(patches)), max(len(self.bank), self.params.max_vectors))
        self._fit_patches(torch.cat([self.bank.tensor, patches]), size)
        return self

    def score(self, features: Tensor) -> Scores:
        import torch

        images = features.flatten(1, 2)
        distances, nearest = zip(*(self.search.nearest(patches) for patches in images), strict=True)
        grid = np.stack([image.cpu().numpy() for image in distances]).reshape(features.shape[:-1])
        count = self.top_count(images.shape[1])
        if count is not None:
            return Scores(np.array([top_mean(scores, count) for scores in grid], np.float32), grid)
        worst = torch.from_numpy(grid.reshape(len(images), -1).argmax(axis=1)).to(images.device)
        nearest_to_worst = torch.stack([indices[patch] for indices, patch in zip(nearest, worst, strict=True)])
        return Scores(self._reweighted(images, grid.max(axis=(1, 2)), worst, nearest_to_worst), grid)

    def top_count(self, n_patches: int) -> int | None:
        return top_count(self.params.aggregate, n_patches)

    def bounded(self, features: Tensor, at_least: float = -np.inf, n_patches: int | None = None) -> Scores:
        from mvad.search.worst_patch import worst_patches

        images = features.flatten(1, 2)
        count = self.top_count(images.shape[1] if n_patches is None else n_patches)
        worst = worst_patches(self.search, images, at_least, count or 1)
        grid = worst.bounds.cpu().numpy().reshape(features.shape[:-1])
        if count is not None:
            largest = worst.largest.cpu().numpy()
            return Scores(np.array([top_mean(scores, count) for scores in largest], np.float32), grid)
        scores = worst.distance.cpu().numpy()
        (found,) = np.nonzero(np.isfinite(scores))
        if len(found):
            scores[found] = self._reweighted(images[found], scores[found], worst.patch[found], worst.nearest[found])
        return Scores(scores, grid)

    def settle(self, features: Tensor, bounds: NDArray[np.float32], needed: NDArray[np.bool_]) -> NDArray[np.float32]:
        import torch

        grid, where = bounds.copy(), torch.from_numpy(needed).to(features.device)
        if needed.any():
            grid[needed] = self.search.nearest(features[where])[0].cpu().numpy()
        return grid

    def _reweighted(
        self, images: Tensor, distances: NDArray[np.float32], patch: Tensor, nearest: Tensor
    ) -> NDArray[np.float32]:
        """Compute image scores from the distance, index and nearest vector m of each image's worst patch: (n,) each.

        Equation 7: the distance times 1 - exp d(patch, m) / sum over m' of exp d(patch, m'), m' the b bank vectors
        nearest to m. It lowers the score where the bank is dense around m, which is the first of its own neighbours.
        """
        # A bank of one vector says nothing about density.
        if self.params.reweight < 2 or len(self.bank) < 2:
            return distances
        neighbours = self.search.bank_neighbours(nearest, self.params.reweight)
        worst = images[range(len(images)), patch].cpu().numpy()
        to_neighbours = np.linalg.norm(self.bank.vectors[neighbours] - worst[:, None], axis=2).astype(np.float64)
        shares = np.exp(to_neighbours - to_neighbours.max(axis=1, keepdims=True))
        return (distances * (1 - shares[:, 0] / shares.sum(axis=1))).astype(np.float32)


def _rows(patches: Tensor, indices: NDArray[np.int64]) -> NDArray[np.float32]:
    import torch

    return patches[torch.from_numpy(indices).to(patches.device)].cpu().numpy()


def bank_size(options: Any, n_patches: int) -> int:
    """How many of so many patches a memory bank keeps; ``options`` have ``coreset_ratio`` and ``max_vectors``."""
    return max(1, min(round(options.coreset_ratio * n_patches), options.max_vectors))
