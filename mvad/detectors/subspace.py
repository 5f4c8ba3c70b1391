"""Subspace: Lendering et al., Training-Free Few-Shot Anomaly Detection via Subspace Modeling, arXiv 2602.23013.

A mean and a covariance are all that is learnt, so memory is bounded however many images there are, and parts of the
images can be looked at by different processes: counts, means and scatter matrices add up (Chan, Golub, LeVeque,
Algorithms for computing the sample variance, The American Statistician 1983).
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass
from typer import Option

from mvad.detectors.base import Aggregate, Detector, Extendable, Scores, Shardable
from mvad.detectors.state import ArraySpec, State
from mvad.search.aggregation import top_count, top_mean

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from typing_extensions import Self

PATCHES_PER_CHUNK = 4096  # whose float64 copies are in memory together
ROUNDING = 1e-26  # of squares, relative to them: variance below it is that of rounded means


class Moments(NamedTuple):
    """What a subspace is computed from: statistics of some patches, in float64."""

    n_patches: int
    mean: NDArray[np.float64]  # (c,)
    scatter: NDArray[np.float64]  # (c, c): the sum of the outer products of what differs from the mean

    def merge(self, other: Moments) -> Moments:
        """The moments of these and other patches together."""
        count, shift = self.n_patches + other.n_patches, other.mean - self.mean
        mean = self.mean + shift * (other.n_patches / count)
        between = np.outer(shift, shift) * (self.n_patches * other.n_patches / count)
        return Moments(count, mean, self.scatter + other.scatter + between)


def moments_of(patches: Tensor) -> Moments:
    """The moments of (n, c) patches, at least one."""
    import torch

    parts = []
    for chunk in patches.split(PATCHES_PER_CHUNK):
        rows = chunk.to(torch.float64)
        mean = rows.mean(dim=0)
        rows = rows - mean
        parts.append(Moments(len(rows), mean.cpu().numpy(), (rows.T @ rows).cpu().numpy()))
    return functools.reduce(Moments.merge, parts)


def principal_components(moments: Moments, variance: float) -> NDArray[np.float64]:
    """The fewest orthonormal directions that hold this share of the variance, (k, c), the strongest first.

    At least one direction is left out, or everything would lie in the subspace. If there is no variance, or one channel
    alone, the only row is zero.
    """
    import torch

    from mvad.runtime.tensors import as_tensor

    values, vectors = torch.linalg.eigh(as_tensor(moments.scatter))
    strengths = values.flip(0).clamp_min(0).numpy()
    width, total = len(strengths), strengths.sum()
    if width == 1 or total <= ROUNDING * moments.n_patches * (moments.mean @ moments.mean):
        return np.zeros((1, width))
    held = np.cumsum(strengths) / total
    count = min(int(np.searchsorted(held, variance)) + 1, width - 1)
    return np.ascontiguousarray(vectors.flip(1).T[:count].numpy())


class Subspace(Extendable, Shardable, Detector):
    """Principal components of good patches; a patch is as abnormal as it is far from their subspace, squared."""

    method: ClassVar[str] = "subspace"
    feature: ClassVar[str] = "patches"
    one_core: ClassVar[bool] = True

    @dataclass(frozen=True, kw_only=True)
    class Params(Detector.Params):
        """Subspace"""

        variance: Annotated[
            float, Field(gt=0, lt=1), Option(help="Share of the variance of good patches that the subspace holds.")
        ] = 0.99
        aggregate: Aggregate = "top-1%"

    params: Params
    origins: FoldStates | None = None
    _moments: Moments | None = None
    _mean: Tensor | None = None
    _components: Tensor | None = None

    @classmethod
    def array_specs(cls, settings: dict[str, Any], shape: Sequence[int] | None) -> dict[str, ArraySpec]:
        width = None if shape is None else shape[-1]
        return {
            "mean": ArraySpec("float64", (width,)),
            "scatter": ArraySpec("float64", (width, width)),
            "components": ArraySpec("float64", (None, width)),
        }

    @classmethod
    def check_state(cls, state: State, shape: Sequence[int] | None = None) -> None:
        super().check_state(state, shape)
        if state.settings["count"] < 1:
            raise ValueError("it has learnt from no patch")
        widths = {state.arrays["mean"].shape[0], *state.arrays["scatter"].shape, state.arrays["components"].shape[1]}
        if len(widths) > 1:
            raise ValueError("mean, scatter and components are of different widths")

    def restore(self, state: State, device: str | torch.device) -> None:
        arrays = state.arrays
        self._moments = Moments(state.settings["count"], arrays["mean"], arrays["scatter"])
        self._take(arrays["components"], device)

    @property
    def settings(self) -> dict[str, Any]:
        """``count`` is the number of patches learnt from."""
        count = 0 if self._moments is None else self._moments.n_patches
        return {**asdict(self.params), "seed": self.seed, "count": count}

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """``mean`` (c,) and ``scatter`` (c, c) as of `Moments`, and ``components`` (k, c); all float64."""
        moments, components = self.moments, self._require_fitted(self._components)
        return {"mean": moments.mean, "scatter": moments.scatter, "components": components.cpu().numpy()}

    @property
    def moments(self) -> Moments:
        return self._require_fitted(self._moments)

    def _take(self, components: NDArray[np.float64], device: str | torch.device) -> None:
        from mvad.runtime.tensors import as_tensor

        self._mean, self._components = as_tensor(self.moments.mean, device), as_tensor(components, device)

    def _fit_moments(self, moments: Moments, device: str | torch.device) -> Self:
        self._moments = moments
        self._take(principal_components(moments, self.params.variance), device)
        return self

    def fit(self, features: Tensor) -> Self:
        """Learn the subspace of the patches of good images, (n, height, width, channels) float32."""
        return self._fit_moments(moments_of(features.flatten(0, 2)), features.device)

    def extend(self, features: Tensor) -> Self:
        """Add the moments of more images: the result is that of a fit to all, but for rounding in float64."""
        return self._fit_moments(self.moments.merge(moments_of(features.flatten(0, 2))), features.device)

    def summarise(self, features: Tensor, share: float) -> Moments:
        """The moments of a shard; all of its patches count, whatever the share."""
        return moments_of(features.flatten(0, 2))

    def fit_shards(
        self,
        shards: Iterable[Moments],
        n_patches: int,
        device: str | torch.device = "cpu",
        folds: NDArray[np.int64] | None = None,
    ) -> Self:
        """Merge the moments of shards, one by one; with ``folds`` also of all folds but one each, for `without`."""
        sums: dict[int, Moments] = {}
        for number, shard in enumerate(shards):
            fold = 0 if folds is None else int(folds[number])
            sums[fold] = sums[fold].merge(shard) if fold in sums else shard
        if folds is not None:
            states = {
                fold: self._fit_moments(_merged({other: sums[other] for other in sums if other != fold}), device).state
                for fold in sums
                if len(sums) > 1
            }
            self.origins = FoldStates(folds, states)
        return self._fit_moments(_merged(sums), device)

    def without(self, origins: FoldStates, left_out: Collection[int], device: str | torch.device = "cpu") -> Subspace:
        """The detector of all images but those of one fold."""
        (fold,) = set(origins.folds[list(left_out)].tolist())
        return Subspace.from_state(origins.states[fold], device)

    def score(self, features: Tensor) -> Scores:
        grid = np.stack([self._residuals(patches) for patches in features.flatten(1, 2)])
        count = self.top_count(grid.shape[1])
        image = grid.max(axis=1) if count is None else np.array([top_mean(one, count) for one in grid], np.float32)
        return Scores(image, grid.reshape(features.shape[:-1]))

    def top_count(self, n_patches: int) -> int | None:
        return top_count(self.params.aggregate, n_patches)

    def _residuals(self, patches: Tensor) -> NDArray[np.float32]:
        """Squared distances of (n, c) patches to the subspace: (n,) float32.

        By Pythagoras: the squared length less that of the projection. In float64 the difference, which is a share of
        1 - ``variance`` or so, loses nothing that float32 would show.
        """
        import torch

        mean, components = self._require_fitted(self._mean), self._require_fitted(self._components)
        parts = []
        for chunk in patches.split(PATCHES_PER_CHUNK):
            rows = chunk.to(torch.float64) - mean
            inside = (rows @ components.T).square_().sum(dim=1)
            parts.append((rows.square_().sum(dim=1) - inside).clamp_min_(0))
        return torch.cat(parts).float().cpu().numpy()


class FoldStates(NamedTuple):
    """What was learnt without each fold of the shards of a fit."""

    folds: NDArray[np.int64]  # (n_shards,)
    states: dict[int, State]  # by the fold that is left out


def _merged(moments: Mapping[int, Moments]) -> Moments:
    """All moments merged in the order of their numbers."""
    return functools.reduce(Moments.merge, (moments[number] for number in sorted(moments)))
