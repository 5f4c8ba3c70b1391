"""PatchCore: Roth et al., Towards Total Recall in Industrial Anomaly Detection, arXiv 2106.08265."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass
from typer import Option

from mvad.data.image_size import TILES, WHOLE_AND_TILES
from mvad.detectors.base import Aggregate, Detector, Extendable, Nearest, Scores, Shardable
from mvad.detectors.state import ArraySpec, State
from mvad.features.kinds import PLACE_WIDTH
from mvad.search.aggregation import MAX, top_count, top_mean

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from typing_extensions import Self

    from mvad.search.coreset import PatchStatistics, ShardCoreset
    from mvad.search.exact_search import ExactSearch
    from mvad.search.layer_banks import LayerSearch, LayerSpaces
    from mvad.search.memory_bank import MemoryBank
    from mvad.search.patch_space import PatchSpace

# Settings that models of earlier versions lack.
LATER_SETTINGS = (
    *("max_vectors", "banks", "aggregate", "distance", "whitening", "position_weight"),
    *("channels", "units", "place_scales"),
)
BANK, MEAN, MATRIX = "bank", "whitening_mean", "whitening_matrix"  # arrays; with a number if there are several banks
LAYERS = "layers"
WHOLE = "whole"  # setting of models of two levels, see `levels`: the settings of that of whole images
MIN_WHITENING = 1e-6  # a smaller one would leave nothing but rounding of features that hardly vary


def _check_whitening(value: float) -> float:
    if 0 < value < MIN_WHITENING:
        raise ValueError(f"give 0 for no whitening, or at least {MIN_WHITENING:g}")
    return value


class LayerBank(NamedTuple):
    """A memory bank of patches of one layer of the network, or of all layers joined."""

    space: PatchSpace  # in which patches are compared
    bank: MemoryBank
    radius: float  # covering radius: the largest distance of a training patch to the bank, see `PatchCore.coverage`


class PatchCore(Extendable, Shardable, Detector):
    """A memory bank of good patches; a patch is as abnormal as it is far from the bank.

    With ``banks="layers"`` there is one for each layer, see `search.layer_banks`, and ``channels`` are needed.

    Its ``coverage`` is the covering radius of the bank in the projected space: the largest distance of a training patch
    to it; an upper bound after `fit_shards`, or if that whitens or weighs places, the distance of the patches that the
    shards kept. Of several banks, it is the score of a patch that is as far as the covering radius from each.
    """

    method: ClassVar[str] = "patchcore"
    feature: ClassVar[str] = "patches"
    leaves_out_rows: ClassVar[bool] = True
    has_bank: ClassVar[bool] = True
    has_levels: ClassVar[bool] = True

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
        banks: Annotated[
            Literal["joint", "layers"],
            Option(
                help="One memory bank of all layers joined, or one for each of the layers, whose distances are "
                "averaged; then image scores are not re-weighted."
            ),
        ] = "joint"
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
        position_weight: Annotated[
            float,
            Field(ge=0, le=1e6, allow_inf_nan=False),
            Option(
                help="How much the place of a patch in the image counts: at 1, a longer side away is as far as patches "
                "are from their mean, on average; 0: not at all."
            ),
        ] = 0.0

    params: Params
    coverage: float = 0.0
    units: Sequence[float] = ()  # of the layers' distances, if each has a bank
    _banks: Sequence[LayerBank] | None = None
    _search: ExactSearch | LayerSearch | None = None

    @property
    def tells_layers_apart(self) -> bool:
        return self.params.banks == LAYERS

    @classmethod
    def from_options(cls, options: Any, copies: int = 1) -> Self:
        if cls is PatchCore and getattr(options, "tile_levels", TILES) == WHOLE_AND_TILES:
            from mvad.detectors.levels import Levels

            return cast("Self", Levels.from_options(options, copies))
        return super().from_options(options, copies)

    @classmethod
    def from_state(cls, state: State, device: str | torch.device = "cpu") -> Self:
        if cls is PatchCore and WHOLE in state.settings:
            from mvad.detectors.levels import Levels

            return cast("Self", Levels.from_state(state, device))
        return super().from_state(state, device)

    @classmethod
    def check_state(cls, state: State, shape: Sequence[int] | None = None) -> None:
        if cls is PatchCore and WHOLE in state.settings:
            from mvad.detectors.levels import Levels

            Levels.check_state(state, shape)
            return
        defaults = {name: value for name, value in cls().settings.items() if name in LATER_SETTINGS}
        state = state._replace(settings={**defaults, **state.settings})
        _check_layers(state.settings, shape)
        super().check_state(state, shape)
        for suffix in _suffixes(state.settings["channels"]):
            width = state.arrays[BANK + suffix].shape[1] - _place_width(state.settings["position_weight"])
            whitening = [state.arrays[name + suffix] for name in (MEAN, MATRIX) if name + suffix in state.arrays]
            if any(length != width for array in whitening for length in array.shape):
                raise ValueError(f"{BANK + suffix} has {width} features, and the whitening others")

    @classmethod
    def array_specs(cls, settings: dict[str, Any], shape: Sequence[int] | None) -> dict[str, ArraySpec]:
        widths = settings["channels"] or [None if shape is None else shape[-1]]
        specs = {}
        for suffix, width in zip(_suffixes(settings["channels"]), widths, strict=True):
            with_place = width if width is None else width + _place_width(settings["position_weight"])
            specs[BANK + suffix] = ArraySpec("float32", (None, with_place))
            if settings["whitening"]:
                specs[MEAN + suffix] = ArraySpec("float64", (width,))
                specs[MATRIX + suffix] = ArraySpec("float64", (width, width))
        return specs

    def restore(self, state: State, device: str | torch.device) -> None:
        from mvad.search.memory_bank import MemoryBank
        from mvad.search.patch_space import PatchSpace
        from mvad.search.whitening import Whitening

        arrays, banks = state.arrays, []
        scales = state.settings.get("place_scales") or [0.0] * max(1, len(self.channels))
        for suffix, scale in zip(_suffixes(self.channels), scales, strict=True):
            whitens = self.params.whitening > 0
            whitening = Whitening(arrays[MEAN + suffix], arrays[MATRIX + suffix], device) if whitens else None
            space = PatchSpace(self.params.distance, whitening, scale)
            banks.append(LayerBank(space, MemoryBank(arrays[BANK + suffix], device), 0.0))
        self._fill(banks, state.settings.get("units", ()))
        self.coverage = state.settings["coverage"]

    @property
    def settings(self) -> dict[str, Any]:
        scales = [one.space.place_scale for one in self._banks or ()] if self.needs_places else []
        own = {"channels": [*self.channels], "units": [*self.units], "seed": self.seed, "coverage": self.coverage}
        return {**asdict(self.params), **own, "place_scales": scales}

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """``bank``: the patches chosen, (m, channels) float32, in the order that greedy k-centre chose them.

        They are whitened and of length 1 if patches are compared so, and end with their places, scaled, if those count.
        With whitening also ``whitening_mean``, (channels,), and ``whitening_matrix``, (channels, channels), float64. If
        there are several banks, all names end with ``_1``, ``_2`` and so on.
        """
        arrays: dict[str, NDArray[Any]] = {}
        for suffix, (space, bank, _) in zip(_suffixes(self.channels), self.layer_banks, strict=True):
            arrays[BANK + suffix] = bank.vectors
            if space.whitening is not None:
                arrays |= {MEAN + suffix: space.whitening.mean, MATRIX + suffix: space.whitening.matrix}
        return arrays

    @property
    def layer_banks(self) -> Sequence[LayerBank]:
        """The memory banks: one, or one for each layer, shallow to deep."""
        return self._require_fitted(self._banks)

    @property
    def bank(self) -> MemoryBank:
        """The memory bank of the layers joined."""
        (joint,) = self.layer_banks
        return joint.bank

    @property
    def space(self) -> PatchSpace | LayerSpaces:
        """The space of the bank, in which patches are compared."""
        from mvad.search.layer_banks import LayerSpaces

        spaces = [one.space for one in self.layer_banks]
        return LayerSpaces(spaces, self.channels) if self.units else spaces[0]

    @property
    def search(self) -> ExactSearch | LayerSearch:
        """An exact search of the bank, prepared when it is first used."""
        if self._search is None:
            from mvad.search.exact_search import ExactSearch
            from mvad.search.layer_banks import LayerSearch

            searches, spaces = zip(*((ExactSearch(one.bank), one.space) for one in self.layer_banks), strict=True)
            self._search = LayerSearch(searches, spaces, self.units) if self.units else searches[0]
        return self._search

    def _fill(self, banks: Sequence[LayerBank], units: Sequence[float] | None = None) -> None:
        """Take over banks, and the units of their layers or new ones."""
        from mvad.search.layer_banks import layer_unit

        self._banks, self._search, self.units = banks, None, units or ()
        if self.tells_layers_apart and units is None:
            self.units = [layer_unit(one.bank, one.space) for one in banks]
        if not self.units:
            self.coverage = banks[0].radius
            return
        radii = [one.space.scores(np.array(one.radius)) for one in banks]
        self.coverage = float(np.mean(np.divide(radii, self.units)))

    def _by_layer(self, features: Tensor) -> Iterator[Tensor]:
        """The patches of images, (n, height, width, channels), with the features of each layer, or of all of them."""
        from mvad.search.layer_banks import split_layers

        patches = self._with_places(features).flatten(0, 2)
        if not self.tells_layers_apart:
            yield patches
            return
        self.channels = self.channels or (features.shape[-1],)
        for layer in split_layers(patches, self.channels):
            yield layer.contiguous()

    @property
    def needs_places(self) -> bool:
        return self.params.position_weight > 0

    def placed(self, features: Tensor, places: Tensor) -> Tensor:
        import torch

        return torch.cat([features, places.to(features.device).expand(*features.shape[:-1], -1)], dim=-1)

    def _with_places(self, features: Tensor) -> Tensor:
        """Features of images, (n, height, width, channels), with places if they count, and are not there yet."""
        from mvad.search.patch_space import grid_places

        if not self.needs_places:
            return features
        if self._banks is not None:
            width = sum(one.bank.vectors.shape[1] - PLACE_WIDTH for one in self._banks)
            if features.shape[-1] == width + PLACE_WIDTH:
                return features
        return self.placed(features, grid_places(*features.shape[1:3]))

    def _brought(self, features: Tensor) -> Tensor:
        """Patches of images in the space of the banks: (n, patches, channels)."""
        return self.space(self._with_places(features).flatten(1, 2))

    def fit(self, features: Tensor) -> Self:
        """Fill the bank with a coreset of the patches of good images, (n, height, width, channels) float32.

        ``origins`` are the images of its vectors, (m,), for each bank.
        """
        banks, chosen, self.origins = [], [], []
        for patches in self._by_layer(features):
            space = self._learn_space([self._statistics(patches)], patches.device)
            bank, indices = self._choose_bank(patches, bank_size(self.params, len(patches)), space)
            banks.append(bank)
            chosen.append(indices)
            self.origins.append(indices // math.prod(features.shape[1:3]))
        self._fill(banks)
        self.chosen = np.concatenate(chosen)
        return self

    def _statistics(self, patches: Tensor) -> PatchStatistics:
        """What the space is learnt from, of patches of one layer that have their places, if those count."""
        from mvad.search.coreset import PatchStatistics
        from mvad.search.patch_space import PatchSpace, Spread
        from mvad.search.whitening import patch_sums

        features = patches[:, : patches.shape[1] - _place_width(self.params.position_weight)]
        sums = patch_sums(features) if self.params.whitening else None
        spread = Spread.measure(features, PatchSpace(self._plain_distance)) if self.needs_places else None
        return PatchStatistics(sums, spread)

    @property
    def _plain_distance(self) -> str:
        """The distance by which patches are compared that are not whitened yet."""
        return "euclidean" if self.params.whitening else self.params.distance

    def _learn_space(self, statistics: Sequence[PatchStatistics], device: str | torch.device) -> PatchSpace:
        """The space in which patches are compared, of which these are the statistics, set by set.

        Whitened features have a variance of about 1 each, or all together if patches are brought to length 1.
        """
        from mvad.search.patch_space import PatchSpace, distance_from_mean
        from mvad.search.whitening import Whitening

        sums = [one.sums for one in statistics if one.sums is not None]
        whitening = Whitening.learn(sums, self.params.whitening, device) if sums else None
        spreads = [one.spread for one in statistics if one.spread is not None]
        if whitening is None:
            distance = distance_from_mean(spreads) if spreads else 0.0
        else:
            distance = 1.0 if self.params.distance == "cosine" else math.sqrt(len(whitening.mean))
        return PatchSpace(self.params.distance, whitening, self.params.position_weight * distance)

    def _choose_bank(
        self, patches: Tensor, size: int, space: PatchSpace, *, is_brought: bool = False
    ) -> tuple[LayerBank, NDArray[np.int64]]:
        """A bank of ``size`` of some patches of a layer, and which they are; they may be in its space already."""
        from mvad.search.memory_bank import MemoryBank
        from mvad.search.patch_space import PatchSpace

        bring = PatchSpace() if is_brought else space
        indices, radius = self._choose(patches, size, bring)
        vectors = bring(_rows(patches, indices)).cpu().numpy()
        return LayerBank(space, MemoryBank(vectors, patches.device), radius), indices

    def _choose(self, patches: Tensor, size: int, space: PatchSpace) -> tuple[NDArray[np.int64], float]:
        """The indices of a coreset, and its covering radius."""
        from mvad.search.coreset import greedy_coreset, random_projection

        return greedy_coreset(random_projection(patches, self.params.projection, self.seed, space), size)

    def summarise(self, features: Tensor, share: float) -> list[ShardCoreset]:
        """Choose patches as `fit` does, for each bank, but by their own Euclidean distance if they will be whitened."""
        from mvad.search.coreset import ShardCoreset
        from mvad.search.patch_space import PatchSpace, distance_from_mean

        coresets = []
        for patches in self._by_layer(features):
            found = self._statistics(patches)
            scale = self.params.position_weight * distance_from_mean([found.spread]) if found.spread else 0.0
            space = PatchSpace(self._plain_distance, place_scale=scale)
            indices, radius = self._choose(patches, max(1, math.ceil(share * len(patches))), space)
            vectors = _rows(patches, indices).cpu().numpy()
            coresets.append(ShardCoreset(vectors, indices, len(patches), radius, found))
        return coresets

    def fit_shards(
        self,
        shards: Iterable[list[ShardCoreset]],
        n_patches: int,
        device: str | torch.device = "cpu",
        folds: NDArray[np.int64] | None = None,
    ) -> Self:
        """Fill each bank from the union of the shards' coresets.

        ``origins`` are the shards of its vectors, (m,), for each bank; ``chosen`` counts the patches of all shards.
        """
        banks, chosen, self.origins = [], [], []
        for coresets in zip(*shards, strict=True):
            bank, indices = self._fit_union(coresets, bank_size(self.params, n_patches), device)
            origins = np.repeat(np.arange(len(coresets)), [len(one.vectors) for one in coresets])[indices]
            firsts = np.cumsum([0, *(one.n_patches for one in coresets)])[origins]
            banks.append(bank)
            chosen.append(firsts + np.concatenate([one.chosen for one in coresets])[indices])
            self.origins.append(origins)
        if self.tells_layers_apart:
            places = _place_width(self.params.position_weight)
            self.channels = tuple(one.bank.vectors.shape[1] - places for one in banks)
        self._fill(banks)
        self.chosen = np.concatenate(chosen)
        return self

    def _fit_union(
        self, coresets: Sequence[ShardCoreset], size: int, device: str | torch.device
    ) -> tuple[LayerBank, NDArray[np.int64]]:
        """A bank of the coresets of one layer, and the numbers of its vectors among those of all coresets."""
        from mvad.runtime.tensors import as_tensor

        space = self._learn_space([one.statistics for one in coresets], device)
        union = np.concatenate([one.vectors for one in coresets])
        bank, indices = self._choose_bank(as_tensor(union, device), size, space)
        if not self.params.whitening and not self.needs_places:  # else the shards' radii are of another space
            bank = bank._replace(radius=bank.radius + max(one.radius for one in coresets))
        if len(union) < size:
            self.shortfall = f"the bank holds {len(union):,} patches, not {size:,}"
        return bank, indices

    def without(
        self,
        origins: Sequence[NDArray[np.int64]],
        left_out: Collection[int],
        device: str | torch.device = "cpu",
    ) -> PatchCore:
        """A detector that shares the bank, but finds none of what was left out there."""
        from mvad.search.layer_banks import LayerSearch

        others = copy.copy(self)
        masks = [np.isin(origin, list(left_out)) for origin in origins]
        search = self.search
        others._search = search.without(masks) if isinstance(search, LayerSearch) else search.without(masks[0])
        return others

    def extend(self, features: Tensor) -> Self:
        """Choose a new coreset from the bank and the patches of more images; it grows by `coreset_ratio` of those.

        The whitening stays as it is, and so do the units of layers. ``origins`` are the images of the vectors, (m,),
        for each bank; -1 of those that were there before.
        """
        import torch

        banks, chosen, n_earlier, self.origins = [], [], 0, []
        for one, layer in zip(self.layer_banks, self._by_layer(features), strict=True):
            patches, n_before = one.space(layer), len(one.bank)
            size = min(n_before + bank_size(self.params, len(patches)), max(n_before, self.params.max_vectors))
            both = torch.cat([one.bank.tensor, patches])
            bank, indices = self._choose_bank(both, size, one.space, is_brought=True)
            banks.append(bank)
            images = (indices - n_before) // math.prod(features.shape[1:3])
            self.origins.append(np.where(indices < n_before, -1, images))
            chosen.append(np.where(indices < n_before, -1 - n_earlier - indices, indices - n_before))
            n_earlier += n_before
        self._fill(banks, self.units)
        self.chosen = np.concatenate(chosen)
        return self

    def score(self, features: Tensor) -> Scores:
        import torch

        images = self._brought(features)
        distances, nearest = zip(*(self.search.nearest(patches) for patches in images), strict=True)
        by_image = np.stack([image.cpu().numpy() for image in distances])
        grid = self.space.scores(by_image).reshape(features.shape[:-1])
        count = self.top_count(images.shape[1])
        if count is not None:
            return Scores(np.array([top_mean(scores, count) for scores in grid], np.float32), grid)
        worst = torch.from_numpy(by_image.argmax(axis=1)).to(images.device)
        nearest_to_worst = torch.stack([indices[patch] for indices, patch in zip(nearest, worst, strict=True)])
        return Scores(self._reweighted(images, grid.max(axis=(1, 2)), worst, nearest_to_worst), grid)

    def nearest(self, features: Tensor) -> Nearest:
        """The patch that scores highest, and its nearest vector; of several banks, in the layer that decides most."""
        (patches,) = self._brought(features)
        distances, found = self.search.nearest(patches)
        patch = int(distances.cpu().numpy().argmax())
        vectors = found[patch].reshape(-1).cpu().numpy()
        layers = patches[patch].split([one.bank.vectors.shape[1] for one in self.layer_banks])
        shares = []
        for one, layer, vector, unit in zip(self.layer_banks, layers, vectors, self.units or (1.0,), strict=True):
            distance = np.linalg.norm(layer.cpu().numpy() - one.bank.vectors[vector])
            shares.append(float(one.space.scores(np.array(distance, np.float32))) / unit)
        bank = int(np.argmax(shares))
        vector = sum(len(one.bank) for one in self.layer_banks[:bank]) + int(vectors[bank])
        rows, columns = features.shape[1:3]
        return Nearest(vector, patch, (rows, columns))

    def top_count(self, n_patches: int) -> int | None:
        return top_count(self.params.aggregate, n_patches)

    def bounded(
        self,
        features: Tensor,
        at_least: float = -np.inf,
        n_patches: int | None = None,
        close_from: float = -np.inf,
    ) -> Scores:
        from mvad.search.worst_patch import worst_patches

        images = self._brought(features)
        count = self.top_count(images.shape[1] if n_patches is None else n_patches)
        distance = self.space.distance
        worst = worst_patches(self.search, images, distance(at_least), count or 1, distance(close_from))
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
            rows = self.space(self._with_places(features[None])[0][where])
            grid[needed] = self.space.scores(self.search.nearest(rows)[0].cpu().numpy())
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
        from mvad.search.layer_banks import LayerSearch

        search = self.search
        # A bank of one vector says nothing about density, and several banks have several densities.
        if self.params.reweight < 2 or isinstance(search, LayerSearch) or search.n_vectors < 2:
            return scores
        neighbours = search.bank_neighbours(nearest, self.params.reweight)
        worst = images[range(len(images)), patch].cpu().numpy()
        distances = np.linalg.norm(self.bank.vectors[neighbours] - worst[:, None], axis=2)
        to_neighbours = self.space.scores(distances).astype(np.float64)
        shares = np.exp(to_neighbours - to_neighbours.max(axis=1, keepdims=True))
        return (scores * (1 - shares[:, 0] / shares.sum(axis=1))).astype(np.float32)


def _rows(patches: Tensor, indices: NDArray[np.int64]) -> Tensor:
    import torch

    return patches[torch.from_numpy(indices).to(patches.device)]


def _suffixes(channels: Sequence[int]) -> list[str]:
    """The ends of the names of the arrays of each bank: one for each layer, or a single one."""
    return [f"_{number}" for number in range(1, len(channels) + 1)] or [""]


def _check_layers(settings: dict[str, Any], shape: Sequence[int] | None) -> None:
    """Raise ValueError if the layers that settings from a file tell of are not those of such features."""
    channels, units = settings["channels"], settings["units"]
    if not isinstance(channels, list) or not all(type(count) is int and count > 0 for count in channels):
        raise ValueError("the setting channels is not a list of positive whole numbers")
    if not isinstance(units, list) or not all(type(unit) is float and 0 < unit < math.inf for unit in units):
        raise ValueError("the setting units is not a list of positive numbers")
    if len(units) != len(channels) or bool(channels) != (settings["banks"] == LAYERS):
        raise ValueError(f"it has {len(channels)} layers, units of {len(units)}, and banks of {settings['banks']}")
    scales, n_scales = settings["place_scales"], max(1, len(channels)) if settings["position_weight"] else 0
    if not isinstance(scales, list) or not all(type(scale) is float and 0 < scale < math.inf for scale in scales):
        raise ValueError("the setting place_scales is not a list of positive numbers")
    if len(scales) != n_scales:
        raise ValueError(f"it has {len(scales)} scales of places, not {n_scales}")
    if channels and shape is not None and sum(channels) != shape[-1]:
        raise ValueError(f"its layers have {sum(channels)} channels together, and features have {shape[-1]}")


def _place_width(position_weight: float) -> int:
    """How many features of a bank's vectors are their place."""
    return PLACE_WIDTH if position_weight else 0


def bank_size(options: Any, n_patches: int) -> int:
    """How many of so many patches a memory bank keeps; ``options`` have ``coreset_ratio`` and ``max_vectors``."""
    return max(1, min(round(options.coreset_ratio * n_patches), options.max_vectors))
