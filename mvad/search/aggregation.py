"""How the scores of its patches give the score of an image: the largest one, or the mean of the top share of them."""

from __future__ import annotations

import math
import re

import numpy as np
from numpy.typing import NDArray

MAX = "max"


def check_aggregate(text: str) -> str:
    """The text itself, if it is ``max`` or such as ``top-1%``; else ValueError."""
    if text != MAX:
        _percent(text)
    return text


def top_count(aggregate: str, n_patches: int) -> int | None:
    """How many of so many patches have the mean that is the score; None for ``max``."""
    return None if aggregate == MAX else max(1, round(_percent(aggregate) * n_patches / 100))


def top_mean(patch_scores: NDArray[np.float32], count: int) -> np.float32:
    """Compute the mean of the ``count`` largest of some scores; their order changes nothing, not even the rounding."""
    return np.float32(math.fsum(largest(patch_scores, count).tolist()) / count)


def largest(patch_scores: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """The ``count`` largest of some scores, or all if they are fewer, in no order."""
    scores = patch_scores.ravel()
    return scores if len(scores) <= count else np.partition(scores, len(scores) - count)[len(scores) - count :]


def _percent(text: str) -> float:
    match = re.fullmatch(r"top-(\d+(?:\.\d+)?)%", text)
    percent = float(match[1]) if match else 0.0
    if not 0 < percent <= 100:
        raise ValueError("give max, or a share of the patches such as top-1%")
    return percent
