"""PatchCore at two levels of an image: its windows, and all of it squeezed, each with a memory bank of its own."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mvad.calibration import one_per_group
from mvad.detectors.base import Nearest, Scores
from mvad.detectors.levels.units import MIN_GOOD, combined_left_out, combined_scores, in_first_unit, in_ranks
from mvad.detectors.patchcore import WHOLE, PatchCore
from mvad.detectors.state import ArraySpec, State
from mvad.features.kinds import split_levels

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from typing_extensions import Self

TILES_PREFIX, WHOLE_PREFIX = "tiles_", "whole_"  # of the arrays of each level
GOOD_SCORES, GOOD_PEAKS = "good_scores", "good_peaks"


class Levels(PatchCore):
    """Two PatchCores: ``tiles`` of what the windows of images show, ``whole`` of the images as a whole.

    Features have the patches of both (`features.kinds.put_whole`). The score of an image is the larger of its scores at
    the two levels, each in ranks of the scores of good images at its level: `units`. The grid is that of the windows,
    as of ``tiles`` alone; the map of the whole image has a grid of its own, which `whole_grid` brings to the same unit.

    ``good_scores`` and ``good_peaks``, (2, n) float32, are what the ranks and the unit follow from: image scores, and
    largest values of maps, of good images at both levels, as if these had not been learnt. They are None after fitting,
    until the fit is calibrated (`with_units`), and nothing can be scored: that is a RuntimeError.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.tiles, self.whole = PatchCore(**arguments), PatchCore(**arguments)
        self.good_scores: NDArray[np.float32] | None = None
        self.good_peaks: NDArray[np.float32] | None = None

    @classmethod
    def check_state(cls, state: State, shape: Sequence[int] | None = None) -> None:
        whole = state.settings[WHOLE]
        if not isinstance(whole, dict) or WHOLE in whole:
            raise ValueError(f"the setting {WHOLE} is not that of a level")
        names = {GOOD_SCORES, GOOD_PEAKS}
        if not names <= state.arrays.keys():
            raise ValueError("it lacks the scores of good images at both levels")
        for name in sorted(names):
            ArraySpec("float32", (2, None)).check(name, state.arrays[name])
            if state.arrays[name].shape[1] < MIN_GOOD:
                raise ValueError(f"{name} is of one image alone")
        for part in _parts(state):
            PatchCore.check_state(part, shape)
            names |= {prefix + name for prefix in (TILES_PREFIX, WHOLE_PREFIX) for name in part.arrays}
        if names != state.arrays.keys():
            raise ValueError("it has arrays of no level")

    @property
    def settings(self) -> dict[str, Any]:
        return {**self.tiles.settings, WHOLE: self.whole.settings}

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """Those of both levels, ``tiles_`` and ``whole_`` before their names, and the scores of good images."""
        arrays = {TILES_PREFIX + name: array for name, array in self.tiles.arrays.items()}
        arrays |= {WHOLE_PREFIX + name: array for name, array in self.whole.arrays.items()}
        if self.good_scores is not None and self.good_peaks is not None:
            arrays |= {GOOD_SCORES: self.good_scores, GOOD_PEAKS: self.good_peaks}
        return arrays

    def restore(self, state: State, device: str | torch.device) -> None:
        self.tiles, self.whole = (PatchCore.from_state(part, device) for part in _parts(state))
        self.good_scores, self.good_peaks = state.arrays.get(GOOD_SCORES), state.arrays.get(GOOD_PEAKS)

    def _levels(self, features: Tensor) -> Iterator[tuple[PatchCore, Tensor]]:
        """Each level with its part of the features."""
        for level, part in zip((self.tiles, self.whole), split_levels(features), strict=True):
            level.channels = level.channels or tuple(self.channels)
            yield level, part

    def fit(self, features: Tensor) -> Self:
        """Fill both banks from features of good images, (n, rows, columns, channels) with the patches of both levels.

        ``origins`` are those of both banks.
        """
        for level, part in self._levels(features):
            level.fit(part)
        return self._learnt(features)

    def extend(self, features: Tensor) -> Self:
        """Extend both banks as `PatchCore.extend` does; the units of the levels stay as they are."""
        for level, part in self._levels(features):
            level.extend(part)
        return self._learnt(features)

    def _learnt(self, features: Tensor) -> Self:
        """Take over origins; ``chosen`` counts all patches of the features, those of NaN included."""
        self.origins = self.tiles.origins, self.whole.origins
        grids = [part.shape[1:3] for part in split_levels(features)]
        rows, columns = features.shape[1:3]
        chosen, n_earlier = [], 0
        for level, (level_rows, level_columns) in zip((self.tiles, self.whole), grids, strict=True):
            assert level.chosen is not None
            images, patches = np.divmod(level.chosen, level_rows * level_columns)
            down, across = np.divmod(patches, level_columns)
            top = 0 if level is self.tiles else rows - level_rows
            places = (images * rows + top + down) * columns + across
            is_old = level.chosen < 0
            chosen.append(np.where(is_old, level.chosen - n_earlier, places))
            n_earlier += int((-level.chosen[is_old]).max(initial=0))
        self.chosen = np.concatenate(chosen)
        return self

    def summarise(self, features: Tensor, share: float) -> Any:
        """A pair of what `PatchCore.summarise` gives of each level."""
        return tuple(level.summarise(part, share) for level, part in self._levels(features))

    def fit_shards(
        self,
        shards: Iterable[Any],
        n_patches: int,
        device: str | torch.device = "cpu",
        folds: NDArray[np.int64] | None = None,
    ) -> Self:
        """Fill both banks, each by the number of its own patches; ``chosen`` is not set."""
        for level, summaries in zip((self.tiles, self.whole), zip(*shards, strict=True), strict=True):
            level.fit_shards(summaries, sum(coresets[0].n_patches for coresets in summaries), device, folds)
        self.origins = self.tiles.origins, self.whole.origins
        self.shortfall = self.tiles.shortfall or self.whole.shortfall
        return self

    def without(self, origins: Any, left_out: Collection[int], device: str | torch.device = "cpu") -> Levels:
        others = copy.copy(self)
        of_tiles, of_whole = origins
        others.tiles = self.tiles.without(of_tiles, left_out, device)
        others.whole = self.whole.without(of_whole, left_out, device)
        return others

    def score(self, features: Tensor) -> Scores:
        (tiles, of_tiles), (whole, of_whole) = self._levels(features)
        found = tiles.score(of_tiles)
        return Scores(self.combined(found.image, whole.score(of_whole).image), found.grid)

    def bounded(
        self,
        features: Tensor,
        at_least: float = -np.inf,
        n_patches: int | None = None,
        close_from: float = -np.inf,
    ) -> Scores:
        """Score whole images: parts of images are for ``tiles`` alone, and ``at_least`` is in units of no level."""
        (tiles, of_tiles), (whole, of_whole) = self._levels(features)
        found = tiles.bounded(of_tiles, close_from=close_from)
        return Scores(self.combined(found.image, whole.image_scores(of_whole)), found.grid)

    def combined(self, of_tiles: NDArray[np.float32], of_whole: NDArray[np.float32]) -> NDArray[np.float32]:
        """Image scores, (n,), from those of each level: `units.combined_scores`."""
        return combined_scores(np.stack([of_tiles, of_whole]), self._require_fitted(self.good_scores))

    def whole_grid(self, grid: NDArray[np.float32]) -> NDArray[np.float32]:
        """Patch scores, or values of maps, of the image as a whole in the unit of those of the windows."""
        return in_first_unit(grid, self._require_fitted(self.good_peaks))

    def settle(self, features: Tensor, bounds: NDArray[np.float32], needed: NDArray[np.bool_]) -> NDArray[np.float32]:
        return self.tiles.settle(_of_tiles(features), bounds, needed)

    def nearest(self, features: Tensor) -> Nearest:
        """That of the level which decides the score; of the image as a whole, no place is named."""
        (tiles, of_tiles), (whole, of_whole) = self._levels(features)
        scores = tiles.image_scores(of_tiles)[0], whole.image_scores(of_whole)[0]
        good = self._require_fitted(self.good_scores)
        if in_ranks(scores[0], good[0]) >= in_ranks(scores[1], good[1]):
            return tiles.nearest(of_tiles)
        before = sum(len(one.bank) for one in tiles.layer_banks)
        return Nearest(before + whole.nearest(of_whole).vector)


def _parts(state: State) -> tuple[State, State]:
    """The states of both levels."""
    own = {name: value for name, value in state.settings.items() if name != WHOLE}
    tiles, whole = (
        State(settings, {name[len(prefix) :]: array for name, array in state.arrays.items() if name.startswith(prefix)})
        for settings, prefix in ((own, TILES_PREFIX), (state.settings[WHOLE], WHOLE_PREFIX))
    )
    return tiles, whole


def _of_tiles(features: Tensor) -> Tensor:
    """Of one image, (rows, columns, channels), the patches of its windows; what is of windows alone as it is."""
    return split_levels(features[None])[0][0] if features[:, 0, 0].isnan().any() else features


def with_units(
    state: State, scores: NDArray[np.float32], peaks: NDArray[np.float32], groups: NDArray[np.int64], seed: int
) -> tuple[State, NDArray[np.float32], NDArray[np.float32]]:
    """Calibrate the levels of a state just fitted, by what its images scored at each level, held out.

    ``scores`` and ``peaks`` are (2, n), and ``groups``, (n,), of near duplicates, of which one image counts. Returned
    are the state with ``good_scores`` and ``good_peaks``, and the combined score and peak of each image, (n,).
    """
    numbers = np.unique(groups, return_inverse=True)[1].astype(np.int64)
    drawn = one_per_group(np.concatenate([scores, peaks]).T, numbers, seed).T
    good_scores, good_peaks = np.ascontiguousarray(drawn[:2]), np.ascontiguousarray(drawn[2:])
    found = combined_left_out(scores, peaks, numbers, good_scores, good_peaks)
    return state._replace(arrays=state.arrays | {GOOD_SCORES: good_scores, GOOD_PEAKS: good_peaks}), *found
