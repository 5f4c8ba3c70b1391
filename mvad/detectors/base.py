"""What every detector offers, in the manners of scikit-learn and PyOD: higher scores are more abnormal."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mvad.features.backbone_spec import NO_BACKBONE, BackboneSpec
from mvad.options import FitOptions
from mvad.search.coreset import ShardCoreset


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
    """What fitting leaves: JSON values, arrays, how many seconds it took, and calibration scores if it gives them."""

    settings: dict[str, Any]
    arrays: dict[str, NDArray[Any]]
    seconds: float
    loo_scores: NDArray[np.float32] | None = None


class Detector(ABC):
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
        Whether fitting trains a network: such methods fit one category a task, in parallel, not on the driver, and
        their arrays are saved as one ``.safetensors`` file.
    transfers
        Whether fitting begins from what `pretrain` learnt from the other categories; such a method is trained.
    extends
        Whether a fitted detector can learn from more images without the old ones, by `extend`.
    merges
        Whether it can be fitted shard by shard, by `condense` and `fit_shards`, where memory does not hold all
        features.
    needs_transformer
        Whether the backbone must be a Vision Transformer.
    default_rule
        The rule that sets the threshold unless told otherwise, one of `calibration.RULES`.
    scores_by_loo
        Whether fitting leaves ``loo_scores``: those of the good images, each as if it had not been among them. For
        other methods they are found by fitting to the rest, fold by fold.
    """

    method: ClassVar[str]
    feature: ClassVar[str]
    default_backbone: ClassVar[str] = "resnet50"
    trained: ClassVar[bool] = False
    transfers: ClassVar[bool] = False
    extends: ClassVar[bool] = False
    merges: ClassVar[bool] = False
    needs_transformer: ClassVar[bool] = False
    default_rule: ClassVar[str] = "conformal"
    scores_by_loo: ClassVar[bool] = False
    loo_scores: NDArray[np.float32] | None = None

    @classmethod
    def can_use(cls, backbone: BackboneSpec) -> bool:
        """Whether a backbone that was asked for is of use to this method."""
        return cls.default_backbone != NO_BACKBONE and not (cls.needs_transformer and backbone.patch == 1)

    @classmethod
    @abstractmethod
    def from_options(cls, options: FitOptions) -> Detector:
        """A detector that is not fitted yet."""

    @classmethod
    @abstractmethod
    def from_state(
        cls, settings: dict[str, Any], arrays: dict[str, NDArray[Any]], device: str | torch.device = "cpu"
    ) -> Detector:
        """A fitted detector; ``arrays`` may be read-only and shared between processes."""

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What is not arrays, as JSON values."""

    @property
    @abstractmethod
    def arrays(self) -> dict[str, NDArray[Any]]:
        """What is learnt."""

    @abstractmethod
    def fit(self, features: Tensor) -> Detector:
        """Learn from good images: features of its kind. Returns the detector itself.

        Each image is followed by its variants, if there are any: ``options.copies`` rows an image.
        """

    @abstractmethod
    def score(self, features: Tensor) -> Scores:
        """Score a batch of images: features of its kind, on the detector's device."""

    def image_scores(self, features: Tensor) -> NDArray[np.float32]:
        """The image scores that `score` gives, (n,) float32; methods that find them sooner without the grid do so."""
        return self.score(features).image

    def extend(self, features: Tensor) -> Detector:
        """Learn from more good images, on top of what it has learnt; of methods that can."""
        raise NotImplementedError(f"{self.method} cannot learn more without the old images")

    def subsample(self, features: Tensor, share: float) -> ShardCoreset:
        """Keep a share of what a shard of the good images offers, the part that stands for the rest best."""
        raise NotImplementedError(f"{self.method} cannot be fitted shard by shard")

    def fit_shards(self, shards: Sequence[ShardCoreset], size: int, device: str = "cpu") -> Detector:
        """Fit to what was kept of all shards, in their order; what is learnt holds ``size`` vectors."""
        raise NotImplementedError(f"{self.method} cannot be fitted shard by shard")

    def pretrain(self, others: Sequence[Tensor]) -> Detector:
        """Learn from good images of other categories, before `start_from` and `fit`; of methods that transfer."""
        raise NotImplementedError(f"{self.method} does not transfer")

    def start_from(self, settings: dict[str, Any], arrays: dict[str, NDArray[Any]], device: str) -> None:
        """Take over the state that `pretrain` left; of methods that transfer."""
        raise NotImplementedError(f"{self.method} does not transfer")
