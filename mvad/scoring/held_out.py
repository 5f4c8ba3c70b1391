"""What a detector gives images that it has not learnt from, and the same as one row of numbers per image."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mvad.anomaly_maps.localise import map_peak
from mvad.anomaly_maps.sampled import MAX_SAMPLED_PATCHES, sampled_patches
from mvad.data.image_size import ImageSize
from mvad.detectors import Detector
from mvad.detectors.levels import Levels
from mvad.features.kinds import split_levels

if TYPE_CHECKING:
    from torch import Tensor

OF_WHOLE = slice(2, 4)  # columns of the score and the peak of images as a whole
HELD_OUT_COLUMNS = OF_WHOLE.stop + MAX_SAMPLED_PATCHES

Values = NDArray[np.float32]


class HeldOut(NamedTuple):
    """What a detector gives images that it has not learnt from."""

    scores: Values  # (n,)
    map_peaks: Values | None  # (n,): largest values of their anomaly maps, of methods that localise
    seconds: float = 0.0
    patches: Values | None = None  # (n, patches): scores of the `sampled_patches`, of methods that localise
    whole: Values | None = None  # (n, 2): scores and peaks as a whole, of `Levels` without units; others are of windows

    @classmethod
    def of(cls, columns: Values, seconds: float = 0.0) -> HeldOut:
        """From the `columns` of the same images."""
        scores, peaks, patches = split_columns(columns)
        whole = columns[:, OF_WHOLE]
        return cls(scores, peaks, seconds, patches, None if np.isnan(whole).any() else whole)

    @property
    def columns(self) -> Values:
        """Scores, peaks, both of the whole, and patches, NaN where there are none: (n, `HELD_OUT_COLUMNS`)."""
        columns = np.full((len(self.scores), HELD_OUT_COLUMNS), np.nan, np.float32)
        columns[:, 0] = self.scores
        if self.map_peaks is not None:
            columns[:, 1] = self.map_peaks
        if self.patches is not None:
            columns[:, OF_WHOLE.stop : OF_WHOLE.stop + self.patches.shape[1]] = self.patches
        if self.whole is not None:
            columns[:, OF_WHOLE] = self.whole
        return columns


def split_columns(columns: Values) -> tuple[Values, Values | None, Values | None]:
    """Scores, peaks and patches of `HeldOut.columns`, (n, columns); None where images have none."""
    scores, peaks, patches = columns[:, 0], columns[:, 1], columns[:, OF_WHOLE.stop :]
    patches = patches[:, ~np.isnan(patches).any(axis=0)]
    return (
        np.ascontiguousarray(scores),
        None if np.isnan(peaks).any() else np.ascontiguousarray(peaks),
        np.ascontiguousarray(patches) if patches.size else None,
    )


def held_out_scores(detector: Detector, images: Tensor, size: ImageSize | None) -> HeldOut:
    """Score features of images; without the ``size`` of the input no maps."""
    if isinstance(detector, Levels):
        tiles, whole = split_levels(images)
        of_tiles = held_out_scores(detector.tiles, tiles, size)
        return at_both_levels(detector, of_tiles, whole, size)
    found = detector.bounded(images)
    if size is None or found.grid is None:
        return HeldOut(found.image, None)
    peaks = [
        map_peak(functools.partial(detector.settle, features), bounds, size)
        for features, bounds in zip(images, found.grid, strict=True)
    ]
    needed = sampled_patches(size, found.grid.shape[1:])
    patches = [detector.patch_scores(features, needed) for features in images]
    return HeldOut(found.image, np.array(peaks, np.float32), patches=np.array(patches, np.float32))


def at_both_levels(detector: Levels, of_tiles: HeldOut, whole: Tensor, size: ImageSize | None) -> HeldOut:
    """Add what images score as a whole: combined if the detector has units of the levels, else as ``whole``."""
    of_whole = held_out_scores(detector.whole, whole, None if size is None else size.whole_level)
    peaks = np.full(len(of_whole.scores), np.nan, np.float32) if of_whole.map_peaks is None else of_whole.map_peaks
    if detector.good_scores is None:
        return of_tiles._replace(whole=np.stack([of_whole.scores, peaks], axis=1))
    scores = detector.combined(of_tiles.scores, of_whole.scores)
    if of_tiles.map_peaks is not None:
        peaks = np.maximum(of_tiles.map_peaks, detector.whole_grid(peaks))
        return of_tiles._replace(scores=scores, map_peaks=peaks)
    return of_tiles._replace(scores=scores)
