"""The space in which patches are compared: as they are, or whitened, and by Euclidean or cosine distance.

Half the squared Euclidean distance of two vectors of length 1 is 1 - cos of the angle between them. So patches of
length 1 go into the memory bank, and the search stays as it is.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mvad.search.whitening import Whitening

ROWS_PER_CHUNK = 2048


class PatchSpace:
    """Brings patches into the space of a memory bank, and distances there to patch scores.

    Parameters
    ----------
    distance
        ``euclidean``, or ``cosine``: then scores are 1 - cos. A patch of zeros stays one; its score to others is 1/2.
    whitening
        By which patches are whitened first, if at all.
    """

    def __init__(self, distance: str = "euclidean", whitening: Whitening | None = None) -> None:
        self.is_cosine, self.whitening = distance == "cosine", whitening

    def __call__(self, patches: Tensor) -> Tensor:
        """Bring patches, (..., d) float32, into the space: each the same, whichever the others are."""
        if not self.is_cosine and self.whitening is None:
            return patches
        rows = patches.reshape(-1, patches.shape[-1])
        brought = torch.empty_like(rows)
        for part, out in zip(rows.split(ROWS_PER_CHUNK), brought.split(ROWS_PER_CHUNK), strict=True):
            values = part.double() if self.whitening is None else self.whitening(part)
            if self.is_cosine:
                lengths = values.square().sum(dim=1, keepdim=True).sqrt_()
                values = values / lengths.clamp_min_(torch.finfo(torch.float64).tiny)
            out.copy_(values)
        return brought.view(patches.shape)

    def scores(self, distances: NDArray[np.float32]) -> NDArray[np.float32]:
        """Patch scores of Euclidean distances in the space."""
        return (np.square(distances, dtype=np.float64) / 2).astype(np.float32) if self.is_cosine else distances

    def distance(self, score: float) -> float:
        """The Euclidean distance of a patch score."""
        return float(np.sqrt(2 * score)) if self.is_cosine and score > 0 else score
