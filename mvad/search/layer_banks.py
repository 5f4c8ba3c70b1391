"""Patches compared layer by layer: a memory bank for each, whose distances are averaged.

Where the layers' features are joined into one vector, the layer whose features vary most decides nearly alone. Here a
patch has a nearest neighbour in each layer, and its score is the mean of its distances to them, each relative to the
unit of its layer. SuperADD and RAD average over layers too, by units of their own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mvad.search.exact_search import ExactSearch
from mvad.search.memory_bank import MemoryBank
from mvad.search.patch_space import PatchSpace

UNIT_SAMPLE = 1024


class LayerSpaces:
    """The spaces of several layers: as `PatchSpace`, for patches that are the layers' features side by side.

    ``widths`` are the channels of the layers.
    """

    def __init__(self, spaces: Sequence[PatchSpace], widths: Sequence[int]) -> None:
        self._spaces, self._widths = spaces, widths

    def __call__(self, patches: Tensor) -> Tensor:
        layers = split_layers(patches, self._widths)
        return torch.cat([space(layer) for space, layer in zip(self._spaces, layers, strict=True)], dim=-1)

    def scores(self, distances: NDArray[np.float32]) -> NDArray[np.float32]:
        """Distances by `LayerSearch` are scores."""
        return distances

    def distance(self, score: float) -> float:
        return score


class LayerSearch:
    """Exact search of the banks of several layers: as `ExactSearch`, where a distance is the mean score of the layers.

    Every method takes and gives columns of the layers side by side. Bounds of distances are means of the layers'
    bounds.

    Parameters
    ----------
    searches, spaces
        Of each layer.
    units
        The score in each layer that counts as 1.
    """

    def __init__(self, searches: Sequence[ExactSearch], spaces: Sequence[PatchSpace], units: Sequence[float]) -> None:
        self.searches, self._spaces, self._units = searches, spaces, units
        self._widths = [search.bank.vectors.shape[1] for search in searches]
        self._axes = [search.n_axes for search in searches]

    def without(self, left_out: Sequence[NDArray[np.bool_]]) -> LayerSearch:
        """The same with some vectors of each bank left out: `ExactSearch.without`."""
        searches = [search.without(vectors) for search, vectors in zip(self.searches, left_out, strict=True)]
        return LayerSearch(searches, self._spaces, self._units)

    @property
    def can_be_quick(self) -> bool:
        return all(search.can_be_quick for search in self.searches)

    def project(self, rows: Tensor) -> Tensor:
        layers = zip(self.searches, rows.split(self._widths, dim=1), strict=True)
        return torch.cat([search.project(layer) for search, layer in layers], dim=1)

    def approximate_nearest(self, projections: Tensor, *, quick: bool = False) -> Tensor:
        """The indices of a vector of each bank: (n, layers) int64."""
        layers = zip(self.searches, self._by_axes(projections), strict=True)
        return torch.stack([search.approximate_nearest(layer, quick=quick) for search, layer in layers], dim=1)

    def distances(self, rows: Tensor, indices: Tensor) -> Tensor:
        layers = zip(self.searches, self._by_width(rows), indices.unbind(1), strict=True)
        return self._mean([search.distances(layer, vectors) for search, layer, vectors in layers])

    def closer_bounds(self, rows: Tensor, projections: Tensor, bounds: Tensor) -> Tensor:
        endless = torch.full_like(bounds, torch.inf)
        layers = zip(self.searches, self._by_width(rows), self._by_axes(projections), strict=True)
        closer = [search.closer_bounds(layer, projected, endless) for search, layer, projected in layers]
        return torch.minimum(bounds, self._mean(closer))

    def nearest(
        self, rows: Tensor, projections: Tensor | None = None, upper_bounds: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The mean distance of each row, (n,) float32, and the index of its nearest vector of each bank, (n, layers).

        ``upper_bounds`` of a mean say little about the layers, and are not used.
        """
        projections = self.project(rows) if projections is None else projections
        layers = zip(self.searches, self._by_width(rows), self._by_axes(projections), strict=True)
        found = [search.nearest(layer, projected) for search, layer, projected in layers]
        distances, indices = zip(*found, strict=True)
        return self._mean(distances), torch.stack(indices, dim=1)

    def _by_width(self, rows: Tensor) -> list[Tensor]:
        return [layer.contiguous() for layer in rows.split(self._widths, dim=1)]

    def _by_axes(self, projections: Tensor) -> list[Tensor]:
        return [layer.contiguous() for layer in projections.split(self._axes, dim=1)]

    def _mean(self, distances: Sequence[Tensor]) -> Tensor:
        """The mean score of (n,) distances in each layer, which must not depend on the other rows: (n,) float32."""
        total = torch.zeros_like(distances[0], dtype=torch.float64)
        for layer, space, unit in zip(distances, self._spaces, self._units, strict=True):
            score = layer.double()
            total += (score.square() / 2 if space.is_cosine else score) / unit
        return (total / len(distances)).float()


def split_layers(patches: Tensor, widths: Sequence[int]) -> Iterator[Tensor]:
    """The features of each layer, of patches with those of all side by side; a place after them is of each layer."""
    place = patches[..., sum(widths) :]
    for layer in patches[..., : sum(widths)].split(list(widths), dim=-1):
        yield torch.cat([layer, place], dim=-1) if place.shape[-1] else layer


def layer_unit(bank: MemoryBank, space: PatchSpace) -> float:
    """The mean score of vectors of a layer's bank, compared with their nearest others: about how far good patches are.

    It is computed from at most `UNIT_SAMPLE` vectors. A bank of one vector, or of copies of one, has the unit 1.
    """
    rows = bank.rows(torch.arange(0, len(bank), math.ceil(len(bank) / UNIT_SAMPLE)))
    scores = space.scores(bank.search(rows, 2)[0][:, -1])
    return float(scores.mean(dtype=np.float64)) or 1.0
