"""What every detector offers, in the manners of scikit-learn and PyOD: higher scores are more abnormal."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mvad.options import FitOptions


class Scores(NamedTuple):
    """Scores of a batch of images.

    Attributes
    ----------
    image : (n,) float32
        One anomaly score an image, unbounded.
    grid : (n, height, width) float32, or None
        One anomaly score a patch, of methods that localise.
    """

    image: NDArray[np.float32]
    grid: NDArray[np.float32] | None


class State(NamedTuple):
    """What fitting leaves: JSON values, arrays, and how many seconds it took."""

    settings: dict[str, Any]
    arrays: dict[str, NDArray[Any]]
    seconds: float


class Detector(Protocol):
    """A method: fitted on the features of good images of one category, it scores features of others.

    Its state is `settings` (JSON values) and `arrays`, nothing else.

    Attributes
    ----------
    method
        Its name on the command line.
    feature
        The kind of features it wants, one of `features.KINDS`.
    default_backbone
        The backbone it takes unless told otherwise.
    trained
        Whether fitting trains a network: such methods fit one category a task, in parallel, not on the driver.
    threshold
        A score above it is an anomaly; None where the method does not set one.
    """

    method: ClassVar[str]
    feature: ClassVar[str]
    default_backbone: ClassVar[str]
    trained: ClassVar[bool]
    threshold: float | None

    @classmethod
    def from_options(cls, options: FitOptions) -> Detector:
        """A detector that is not fitted yet."""

    @classmethod
    def from_state(
        cls, settings: dict[str, Any], arrays: dict[str, NDArray[Any]], device: str | torch.device = "cpu"
    ) -> Detector:
        """A fitted detector; ``arrays`` may be read-only and shared between processes."""

    @property
    def settings(self) -> dict[str, Any]: ...

    @property
    def arrays(self) -> dict[str, NDArray[Any]]: ...

    def fit(self, features: Tensor) -> Detector:
        """Learn from good images: features of its kind. Returns the detector itself."""

    def score(self, features: Tensor) -> Scores:
        """Score a batch of images: features of its kind, on the detector's device."""
