"""What a detector gives images that it has not learnt from, and the same as one row of numbers per image."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mvad.anomaly_maps.sampled import MAX_SAMPLED_PATCHES

HELD_OUT_COLUMNS = 2 + MAX_SAMPLED_PATCHES

Values = NDArray[np.float32]


class HeldOut(NamedTuple):
    """What a detector gives images that it has not learnt from."""

    scores: Values  # (n,)
    map_peaks: Values | None  # (n,): largest values of their anomaly maps, of methods that localise
    seconds: float = 0.0
    patches: Values | None = None  # (n, patches): scores of the `sampled_patches`, of methods that localise

    @classmethod
    def of(cls, columns: Values, seconds: float = 0.0) -> "HeldOut":
        """From the `columns` of the same images."""
        scores, peaks, patches = split_columns(columns)
        return cls(scores, peaks, seconds, patches)

    @property
    def columns(self) -> Values:
        """Scores, peaks and patches, NaN where there are none: (n, `HELD_OUT_COLUMNS`)."""
        columns = np.full((len(self.scores), HELD_OUT_COLUMNS), np.nan, np.float32)
        columns[:, 0] = self.scores
        if self.map_peaks is not None:
            columns[:, 1] = self.map_peaks
        if self.patches is not None:
            columns[:, 2 : 2 + self.patches.shape[1]] = self.patches
        return columns


def split_columns(columns: Values) -> tuple[Values, Values | None, Values | None]:
    """Scores, peaks and patches of `HeldOut.columns`, (n, columns); None where images have none."""
    scores, peaks, patches = columns[:, 0], columns[:, 1], columns[:, 2:]
    patches = patches[:, ~np.isnan(patches).any(axis=0)]
    return (
        np.ascontiguousarray(scores),
        None if np.isnan(peaks).any() else np.ascontiguousarray(peaks),
        np.ascontiguousarray(patches) if patches.size else None,
    )
