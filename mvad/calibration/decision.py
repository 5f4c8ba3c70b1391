"""What decides whether an image is flagged."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class DecisionRule(NamedTuple):
    """The model that scores a category, and the threshold that its calibration scores give.

    A model without calibration has neither threshold nor calibration scores, and its images get no verdict.

    Attributes
    ----------
    model_id
        None if the category has no model.
    calibration
        (n,) calibration scores.
    rule
        One of ``RULES``.
    threshold
        The score above which an image is flagged.
    guarantee
        What the threshold guarantees, as a sentence.
    too_few
        Whether there are too few calibration scores for the requested false-alarm rate.
    """

    model_id: str | None = None
    calibration: NDArray[np.float32] | None = None
    rule: str | None = None
    threshold: float | None = None
    guarantee: str | None = None
    too_few: bool = False
