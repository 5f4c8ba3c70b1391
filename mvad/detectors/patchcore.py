"""PatchCore: Roth et al., Towards Total Recall in Industrial Anomaly Detection, arXiv 2106.08265."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass
from typer import Option

from mvad.detectors.base import Aggregate, Detector, Extendable, Scores, Shardable
from mvad.detectors.state import ArraySpec, State
from mvad.search.aggregation import MAX, top_count, top_mean

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from typing_extensions import Self

    from mvad.search.coreset import ShardCoreset
    from mvad.search.exact_search import ExactSearch
    from mvad.search.memory_bank import MemoryBank
    from mvad.search.patch_space import PatchSpace
    from mvad.search.whitening import PatchSums

LATER_SETTINGS = ("max_vectors", "aggregate", "distance", "whitening")  # which models of earlier versions lack
MEAN, MATRIX = "whitening_mean", "whitening_matrix"  # arrays of models that whiten
WHITENING = {MEAN, MATRIX}
MIN_WHITENING = 1e-6  # a smaller one would leave nothing but rounding of features that hardly vary


def _check_whitening(value: float) -> float:
    if 0 < value < MIN_WHITENING:
        raise ValueError(f"give 0 for no whitening, or at least {MIN_WHITENING:g}")
    return value


class PatchCore(Extendable, Shardable, Detector):
    """A memory bank of good patches; a patch is as abnormal as it is far from the bank.

    Its ``coverage`` is the covering radius of the bank in the projected space: the largest distance of a training patch
    to it; an upper bound after `fit_shards`, or if that whitens, the distance of the patches that the shards kept.
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
        aggregate: Aggregate = MAX
        distance: Annotated[
            Literal["euclidean", "cosine"], Option(help="How patches are compared; cosine: 1 - cosine similarity.")
        ] = "euclidean"
        whitening: Annotated[
            float,
            Field(ge=0, le=1e6, allow_inf_nan=False),
            AfterValidator(_check_whitening),
            Option(
                help="Whiten features by the covariance of the training patches, of which this share of the mean "
                "eigenvalue is added to each (such as 0.01); 0: no whitening."
            ),
        ] = 0.0

    params: Params
    coverage: float = 0.0
    _bank: MemoryBank | None = None
    _space: PatchSpace | None = None
    _search: ExactSearch | None = None

    @classmethod
    def check_state(cls, state: State, shape: Sequence[int] | None = None) -> None:
        defaults = {name: value for name, value in cls().settings.items() if name in LATER_SETTINGS}
        super().check_state(state._replace(settings={**defaults, **state.settings}), shape)
        width = state.arrays["bank"].shape[1]
        if any(length != width for name in WHITENING & state.arrays.keys() for length in state.arrays[name].shape):
            raise ValueError(f"bank has {width} features, and the whitening others")

    @classmethod
    def array_specs(cls, settings: dict[str, Any], shape: Sequence[int] | None) -> dict[str, ArraySpec]:
        width = None if shape is None else shape[-1]
        whitening = {MEAN: ArraySpec("float64", (width,)), MATRIX: ArraySpec("float64", (width, width))}
        return {"bank": ArraySpec("float32", (None, width)), **(whitening if settings["whitening"] else {})}

    def restore(self, state: State, device: str | torch.device) -> None:
        from mvad.search.patch_space import PatchSpace
        from mvad.search.whitening import Whitening

        self.coverage = state.settings["coverage"]
        whitening = Whitening(state.arrays[MEAN], state.arrays[MATRIX], device) if self.params.whitening else None
        self._space = PatchSpace(self.params.distance, whitening)
        self._fill_bank(state.arrays["bank"], device)

    @property
    def settings(self) -> dict[str, Any]:
        return {**asdict(self.params), "seed": self.seed, "coverage": self.coverage}

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """``bank``: the patches chosen, (m, channels) float32, in the order that greedy k-centre chose them.

        They are whitened and of length 1 if patches are compared so. With whitening also ``whitening_mean``,
        (channels,), and ``whitening_matrix``, (channels, channels), float64.
        """
        whitening = self.space.whitening
        return {"bank": self.bank.vectors} | (
            {} if whitening is None else {MEAN: whitening.mean, MATRIX: whitening.matrix}
        )

    @property
    def bank(self) -> MemoryBank:
        return self._require_fitted(self._bank)

    @property
    def space(self) -> PatchSpace:
        """The space of the bank, in which patches are compared."""
        return self._require_fitted(self._space)

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
        from mvad.search.whitening import patch_sums

        patches = features.flatten(0, 2)
        self._learn_space([patch_sums(patches)] if self.params.whitening else [], patches.device)
        self._fit_patches(patches, bank_size(self.params, len(patches)), self.space)
        return self

    def _learn_space(self, sums: Sequence[PatchSums], device: str | torch.device) -> None:
        from mvad.search.patch_space import PatchSpace
        from mvad.search.whitening import Whitening

        whitening = Whitening.learn(sums, self.params.whitening, device) if self.params.whitening else None
        self._space = PatchSpace(self.params.distance, whitening)

    def _fit_patches(self, patches: Tensor, size: int, space: PatchSpace) -> NDArray[np.int64]:
        """Fill the bank with ``size`` of some patches, which are not in the space yet; which they are."""
        indices, self.coverage = self._choose(patches, size, space)
        self._fill_bank(space(_rows(patches, indices)).cpu().numpy(), patches.device)
        return indices

    def _choose(self, patches: Tensor, size: int, space: PatchSpace) -> tuple[NDArray[np.int64], float]:
        """The indices of a coreset, and its covering radius."""
        from mvad.search.coreset import greedy_coreset, random_projection

        return greedy_coreset(random_projection(patches, self.params.projection, self.seed, space), size)

    def summarise(self, features: Tensor, share: float) -> ShardCoreset:
        """Choose patches as `fit` does, but by their own Euclidean distance if they will be whitened."""
        from mvad.search.coreset import ShardCoreset
        from mvad.search.patch_space import PatchSpace
        from mvad.search.whitening import patch_sums

        patches, whitens = features.flatten(0, 2), self.params.whitening > 0
        space = PatchSpace("euclidean" if whitens else self.params.distance)
        indices, radius = self._choose(patches, max(1, math.ceil(share * len(patches))), space)
        return ShardCoreset(_rows(patches, indices).cpu().numpy(), radius, patch_sums(patches) if whitens else None)

    def fit_shards(
        self,
        shards: Iterable[ShardCoreset],
        n_patches: int,
        device: str | torch.device = "cpu",
        folds: NDArray[np.int64] | None = None,
    ) -> Self:
        """Fill the bank from the union of the shards' coresets; ``origins`` are the shards of its vectors, (m,)."""
        from mvad.runtime.tensors import as_tensor

        vectors, radii, sums = [], [], None
        for shard in shards:
            vectors.append(shard.vectors)
            radii.append(shard.radius)
            if shard.sums is not None:
                sums = shard.sums if sums is None else sums.plus(shard.sums)
        union, size = np.concatenate(vectors), bank_size(self.params, n_patches)
        self._learn_space([] if sums is None else [sums], device)
        indices = self._fit_patches(as_tensor(union, device), size, self.space)
        self.origins = np.repeat(np.arange(len(vectors)), [*map(len, vectors)])[indices]
        if not self.params.whitening:  # else the shards' radii are of another space
            self.coverage += max(radii)
        if len(union) < size:
            self.shortfall = f"the bank holds {len(union):,} patches, not {size:,}"
        return self

    def without(
        self, origins: NDArray[np.int64], left_out: Collection[int], device: str | torch.device = "cpu"
    ) -> PatchCore:
        others = PatchCore(seed=self.seed, **asdict(self.params))
        others._space = self.space
        is_left_out = np.isin(origins, list(left_out))
        others._fill_bank(np.ascontiguousarray(self.bank.vectors[~is_left_out]), device)
        return others

    def extend(self, features: Tensor) -> Self:
        """Choose a new coreset from the bank and the patches of more images; it grows by `coreset_ratio` of those.

        The whitening stays as it is.
        """
        import torch

        from mvad.search.patch_space import PatchSpace

        patches = self.space(features.flatten(0, 2))
        size = min(len(self.bank) + bank_size(self.params, len(patches)), max(len(self.bank), self.params.max_vectors))
        self._fit_patches(torch.cat([self.bank.tensor, patches]), size, PatchSpace())
        return self

    def score(self, features: Tensor) -> Scores:
        import torch

        images = self.space(features.flatten(1, 2))
        distances, nearest = zip(*(self.search.nearest(patches) for patches in images), strict=True)
        by_image = np.stack([image.cpu().numpy() for image in distances])
        grid = self.space.scores(by_image).reshape(features.shape[:-1])
        count = self.top_count(images.shape[1])
        if count is not None:
            return Scores(np.array([top_mean(scores, count) for scores in grid], np.float32), grid)
        worst = torch.from_numpy(by_image.argmax(axis=1)).to(images.device)
        nearest_to_worst = torch.stack([indices[patch] for indices, patch in zip(nearest, worst, strict=True)])
        return Scores(self._reweighted(images, grid.max(axis=(1, 2)), worst, nearest_to_worst), grid)

    def top_count(self, n_patches: int) -> int | None:
        return top_count(self.params.aggregate, n_patches)

    def bounded(self, features: Tensor, at_least: float = -np.inf, n_patches: int | None = None) -> Scores:
        from mvad.search.worst_patch import worst_patches

        images = self.space(features.flatten(1, 2))
        count = self.top_count(images.shape[1] if n_patches is None else n_patches)
        worst = worst_patches(self.search, images, self.space.distance(at_least), count or 1)
        grid = self.space.scores(worst.bounds.cpu().numpy()).reshape(features.shape[:-1])
        if count is not None:
            is_known = np.isfinite(worst.largest[:, -1].cpu().numpy())
            image = [
                top_mean(scores, count) if known else -np.inf for scores, known in zip(grid, is_known, strict=True)
            ]
            return Scores(np.array(image, np.float32), grid)
        distances = worst.distance.cpu().numpy()
        (found,) = np.nonzero(np.isfinite(distances))
        scores = np.where(np.isfinite(distances), self.space.scores(distances), distances)
        if len(found):
            scores[found] = self._reweighted(images[found], scores[found], worst.patch[found], worst.nearest[found])
        return Scores(scores, grid)

    def settle(self, features: Tensor, bounds: NDArray[np.float32], needed: NDArray[np.bool_]) -> NDArray[np.float32]:
        import torch

        grid, where = bounds.copy(), torch.from_numpy(needed).to(features.device)
        if needed.any():
            grid[needed] = self.space.scores(self.search.nearest(self.space(features[where]))[0].cpu().numpy())
        return grid

    def patch_scores(self, features: Tensor, needed: NDArray[np.bool_]) -> NDArray[np.float32]:
        return self.settle(features, np.zeros(needed.shape, np.float32), needed)[needed]

    def _reweighted(
        self, images: Tensor, scores: NDArray[np.float32], patch: Tensor, nearest: Tensor
    ) -> NDArray[np.float32]:
        """Compute image scores from the score, index and nearest vector m of each image's worst patch: (n,) each.

        Equation 7: the score times 1 - exp d(patch, m) / sum over m' of exp d(patch, m'), m' the b bank vectors nearest
        to m, d the distance that scores are. It lowers the score where the bank is dense around m, which is the first
        of its own neighbours.
        """
        # A bank of one vector says nothing about density.
        if self.params.reweight < 2 or len(self.bank) < 2:
            return scores
        neighbours = self.search.bank_neighbours(nearest, self.params.reweight)
        worst = images[range(len(images)), patch].cpu().numpy()
        distances = np.linalg.norm(self.bank.vectors[neighbours] - worst[:, None], axis=2)
        to_neighbours = self.space.scores(distances).astype(np.float64)
        shares = np.exp(to_neighbours - to_neighbours.max(axis=1, keepdims=True))
        return (scores * (1 - shares[:, 0] / shares.sum(axis=1))).astype(np.float32)


def _rows(patches: Tensor, indices: NDArray[np.int64]) -> Tensor:
    import torch

    return patches[torch.from_numpy(indices).to(patches.device)]


def bank_size(options: Any, n_patches: int) -> int:
    """How many of so many patches a memory bank keeps; ``options`` have ``coreset_ratio`` and ``max_vectors``."""
    return max(1, min(round(options.coreset_ratio * n_patches), options.max_vectors))
