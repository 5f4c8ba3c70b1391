"""What a fitted detector computes, as PyTorch modules of plain operators that ONNX has.

Each takes the features of one image and gives its score and, if the method localises, the scores of its patches. Scores
are those of `mvad.detectors`; see there for how they are defined.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mvad.detectors import KNN, VAE, Autoencoder, Detector, PatchCore, Subspace, TrainedDetector
from mvad.errors import UsageError
from mvad.features.kinds import PLACE_WIDTH
from mvad.search.layer_banks import split_layers
from mvad.search.patch_space import PatchSpace, grid_places

CANDIDATES = 8  # vectors of a bank whose distance to a patch is computed from the differences
SPARE_NEIGHBOURS = 64  # candidates more than there are neighbours that re-weight


def scoring_module(detector: Detector) -> nn.Module:
    """The module of a fitted detector; UsageError if its method has none."""
    for kind, module in MODULES.items():
        if isinstance(detector, kind):
            return module(detector).eval()
    raise UsageError(f"models of the method {detector.method} cannot be exported to ONNX; there is no module for it.")


class PatchModule(nn.Module):
    """Scores an image from what is found of each of its patches, whether they come all at once or window by window."""

    def patches(self, rows: Tensor) -> tuple[Tensor, ...]:
        """What is found of (n, channels) patches: (n, ...) each."""
        raise NotImplementedError

    def image(self, found: tuple[Tensor, ...], shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The score of an image, and the scores of its patches, in ``shape``, from what is found of them, by row."""
        raise NotImplementedError

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self.image(self.patches(features[0].flatten(0, 1)), (features.shape[1], features.shape[2]))


class _Space(nn.Module):
    """Brings (n, d) float32 patches into the space of a memory bank: `PatchSpace`."""

    mean: Tensor
    matrix: Tensor

    def __init__(self, space: PatchSpace) -> None:
        super().__init__()
        self.is_cosine, self.whitens = space.is_cosine, space.whitening is not None
        self.place_scale = space.place_scale
        if space.whitening is not None:
            self.register_buffer("mean", torch.tensor(space.whitening.mean))
            self.register_buffer("matrix", torch.tensor(space.whitening.matrix))

    def forward(self, patches: Tensor) -> Tensor:
        if not self.is_cosine and not self.whitens and not self.place_scale:
            return patches
        width = patches.shape[1] - (PLACE_WIDTH if self.place_scale else 0)
        values = patches[:, :width].double()
        if self.whitens:
            values = (values - self.mean) @ self.matrix
        if self.is_cosine:
            lengths = values.square().sum(dim=1, keepdim=True).sqrt()
            values = values / lengths.clamp_min(torch.finfo(torch.float64).tiny)
        brought = values.float()
        return torch.cat([brought, patches[:, width:] * self.place_scale], dim=1) if self.place_scale else brought

    def scores(self, distances: Tensor) -> Tensor:
        """Patch scores, float32, of Euclidean distances in the space, float32."""
        return (distances.double().square() / 2).float() if self.is_cosine else distances


class _Bank(nn.Module):
    """Nearest neighbours in a memory bank.

    The expanded form of the distance, which rounds badly where it is small, finds a few candidates. Their distances are
    computed from the differences, in double precision.
    """

    vectors: Tensor
    squared_lengths: Tensor

    def __init__(self, vectors: Any) -> None:
        super().__init__()
        self.register_buffer("vectors", torch.tensor(vectors))
        self.register_buffer("squared_lengths", self.vectors.double().square().sum(dim=1).float())

    def candidates(self, rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The (n, count) vectors that are likely the nearest of (n, d) rows: distances, float64, and indices."""
        ranks = self.squared_lengths - 2 * (rows @ self.vectors.T)
        indices = ranks.topk(min(count, len(self.vectors)), dim=1, largest=False).indices
        differences = rows[:, None].double() - self.vectors[indices].double()
        return differences.square().sum(dim=2).sqrt(), indices

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The distance of each row to its nearest vector, (n,) float32, and the index of that, the first if several."""
        distances, indices = self.candidates(rows, CANDIDATES)
        smallest = distances.amin(dim=1, keepdim=True)
        first = torch.where(distances == smallest, indices, len(self.vectors)).amin(dim=1)
        return smallest[:, 0].float(), first

    def neighbours(self, index: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Candidates for the ``count`` vectors nearest to one of the bank's own, (1,), which is the first of them.

        Returns their indices, and whether each is one: (m,) each. Of several as near, the first ones are.
        """
        distances, candidates = self.candidates(self.vectors[index], count + SPARE_NEIGHBOURS)
        indices = candidates[0]
        near = torch.where(indices == index, -1.0, distances[0])
        is_before = (near < near[:, None]) | ((near == near[:, None]) & (indices < indices[:, None]))
        return indices, is_before.long().sum(dim=1) < count


class _PatchCore(PatchModule):
    def __init__(self, detector: PatchCore) -> None:
        super().__init__()
        self.top_count, self.reweight = detector.top_count, detector.params.reweight
        self.spaces: Any = nn.ModuleList(_Space(one.space) for one in detector.layer_banks)
        self.banks: Any = nn.ModuleList(_Bank(one.bank.vectors) for one in detector.layer_banks)
        self.widths, self.units = [*detector.channels], [*detector.units]
        self.needs_places = detector.needs_places

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        if self.needs_places:
            places = grid_places(features.shape[1], features.shape[2])
            features = torch.cat([features, places[None]], dim=-1)
        return super().forward(features)

    def patches(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Distances to the nearest vectors, layer by layer; and if a score is re-weighted, also those, and the rows."""
        layers = split_layers(rows, self.widths) if self.units else [rows]
        points = [space(layer) for space, layer in zip(self.spaces, layers, strict=True)]
        found = [bank(layer) for bank, layer in zip(self.banks, points, strict=True)]
        if self.reweights:
            return *found[0], points[0]
        return tuple(distances for distances, _ in found)

    def image(self, found: tuple[Tensor, ...], shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
        scores = [space.scores(distances) for space, distances in zip(self.spaces, found, strict=False)]
        if self.units:
            means = [score.double() / unit for score, unit in zip(scores, self.units, strict=True)]
            scores = [(sum(means[1:], means[0]) / len(means)).float()]
        grid = scores[0].view(shape)
        count = self.top_count(grid.numel())
        if count is not None:
            return _top_mean(grid, count), grid
        if not self.reweights:
            return grid.max(), grid
        distances, nearest, rows = found
        return self._reweighted(rows, distances, nearest), grid

    @property
    def reweights(self) -> bool:
        """Whether the score of an image depends on the neighbours of a vector."""
        is_plain = self.top_count(1) is not None or bool(self.units)
        return not is_plain and self.reweight >= 2 and len(self.banks[0].vectors) >= 2

    def _reweighted(self, rows: Tensor, distances: Tensor, nearest: Tensor) -> Tensor:
        """`PatchCore._reweighted`: equation 7."""
        space, bank = self.spaces[0], self.banks[0]
        worst = distances.argmax(dim=0, keepdim=True)
        indices, is_neighbour = bank.neighbours(nearest[worst], self.reweight)
        differences = bank.vectors[indices].double() - rows[worst].double()
        to_neighbours = space.scores(differences.square().sum(dim=1).sqrt().float()).double()
        weights = torch.where(is_neighbour, to_neighbours, -torch.inf)
        shares = (weights - weights.max()).exp()
        own_share = torch.where(indices == nearest[worst], shares, 0.0).sum() / shares.sum()
        return (space.scores(distances.max()).double() * (1 - own_share)).float()


class _Subspace(PatchModule):
    mean: Tensor
    components: Tensor

    def __init__(self, detector: Subspace) -> None:
        super().__init__()
        self.top_count = detector.top_count
        self.register_buffer("mean", torch.tensor(detector.arrays["mean"]))
        self.register_buffer("components", torch.tensor(detector.arrays["components"]))

    def patches(self, rows: Tensor) -> tuple[Tensor, ...]:
        centred = rows.double() - self.mean
        inside = (centred @ self.components.T).square().sum(dim=1)
        return ((centred.square().sum(dim=1) - inside).clamp_min(0.0).float(),)

    def image(self, found: tuple[Tensor, ...], shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
        grid = found[0].view(shape)
        count = self.top_count(grid.numel())
        return grid.max() if count is None else _top_mean(grid, count), grid


class _KNN(nn.Module):
    bank: Tensor
    columns: Tensor

    def __init__(self, detector: KNN) -> None:
        super().__init__()
        self.neighbours = min(detector.params.neighbours, len(detector.bank))
        self.register_buffer("bank", torch.tensor(detector.bank.vectors))
        self.register_buffer("columns", torch.tensor(detector.arrays["columns"]))

    def forward(self, features: Tensor) -> tuple[Tensor]:
        distances = (self.bank - features[0][self.columns]).square().sum(dim=1).sqrt()
        return (distances.topk(self.neighbours, largest=False).values.double().mean().float(),)


class _Trained(nn.Module):
    def __init__(self, detector: TrainedDetector) -> None:
        super().__init__()
        self.network, self.is_mean = detector.network, isinstance(detector, Autoencoder)

    def grid(self, image: Tensor) -> Tensor:
        return self.network(image)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        grid = self.grid(features[0])
        return grid.double().mean().float() if self.is_mean else grid.max(), grid


class _Autoencoder(_Trained):
    def grid(self, image: Tensor) -> Tensor:
        return self.network(image[None])[0]


class _VAE(_Trained):
    noise: Tensor

    def __init__(self, detector: VAE) -> None:
        super().__init__(detector)
        self.register_buffer("noise", detector.noise())

    def grid(self, image: Tensor) -> Tensor:
        return self.network(image.flatten(0, 1), self.noise).view(image.shape[:2])


# The first that fits is taken.
MODULES: dict[Any, Any] = {
    PatchCore: _PatchCore,
    Subspace: _Subspace,
    KNN: _KNN,
    VAE: _VAE,
    Autoencoder: _Autoencoder,
    TrainedDetector: _Trained,
}


def _top_mean(grid: Tensor, count: int) -> Tensor:
    return grid.flatten().topk(min(count, grid.numel())).values.double().mean().float()
