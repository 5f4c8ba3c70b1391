"""Pick a few of many."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def evenly_spaced(count: int, most: int) -> NDArray[np.int64]:
    """Return at most ``most`` of the numbers below ``count``, evenly spaced, with the first and the last."""
    return np.linspace(0, count - 1, min(most, count)).round().astype(np.int64)
