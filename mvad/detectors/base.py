"""The interface of every detector, in the style of scikit-learn and PyOD: higher scores are more abnormal.

A method is a subclass of `Detector`. What only some methods can do is a class of its own next to it, to inherit from
and to test for: `issubclass(method, Extendable)`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, ConfigDict
from pydantic.dataclasses import dataclass
from typer import Option

from mvad.detectors.state import ArraySpec, State, check_arrays, check_finite, check_settings
from mvad.features.backbone_spec import NO_BACKBONE, BackboneSpec
from mvad.search.aggregation import check_aggregate

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from typing_extensions import Self


Aggregate = Annotated[
    str,
    AfterValidator(check_aggregate),
    Option(
        help="Image score: the largest patch score (max), or the mean of the top share of them, not re-weighted (such "
        "as top-1%).",
        metavar="max|top-P%",
    ),
]


class Scores(NamedTuple):
    """Anomaly scores of a batch of images, unbounded."""

    image: NDArray[np.float32]  # (n,): one per image
    grid: NDArray[np.float32] | None  # (n, height, width): one per patch, of methods that localise


class Nearest(NamedTuple):
    """What a detector has learnt that is most like the most abnormal part of an image."""

    vector: int  # its number among those of all banks, one bank after the other
    patch: int | None = None  # the part of the image, by its number in the grid, row by row; None: all of the image
    grid: tuple[int, int] | None = None  # rows and columns


class Detector(ABC):
    """A method: fitted to features of good images of one category, it scores the features of other images.

    Parameters
    ----------
    seed
        Seed of everything that is random.
    copies
        Rows per training image in the features to fit to: the image, followed by its variants.
    channels
        Of each layer that the features are made of, needed by methods of which `tells_layers_apart` is true.
    **params
        Fields of `Params`, a class of the method's own. Each is an option on the command line; the docstring of the
        class is their title there.

    Methods of which `has_bank` is true set ``chosen`` when they learn: where each vector of their banks, one bank after
    the other, comes from, (m,) int64. It is the number of one of the patches of the features, or of a row of those of
    whole images; or of a vector that was there before `Extendable.extend`, -1 minus its number.

    Raises
    ------
    pydantic.ValidationError
        A parameter out of range or unknown.
    """

    method: ClassVar[str]  # name on the command line
    feature: ClassVar[str]  # kind of features to extract, one of `features.kinds.KINDS`
    default_backbone: ClassVar[str] = "resnet50"
    default_rule: ClassVar[str] = "conformal"  # rule that sets the threshold, one of `calibration.RULES`
    needs_transformer: ClassVar[bool] = False  # whether the backbone must be a Vision Transformer
    one_core: ClassVar[bool] = False  # whether it is fitted on one core, because more round what is learnt differently
    has_bank: ClassVar[bool] = False  # whether images are compared with good ones that were kept
    has_levels: ClassVar[bool] = False  # whether it can see windows and the whole image, with ``tile_levels``
    loo_scores: NDArray[np.float32] | None = None
    chosen: NDArray[np.int64] | None = None

    @dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
    class Params:
        """No parameters"""

    params: Params

    def __init__(self, *, seed: int = 0, copies: int = 1, channels: Sequence[int] = (), **params: Any) -> None:
        self.seed, self.copies, self.channels = seed, copies, tuple(channels)
        self.params = self.Params(**params)

    @property
    def tells_layers_apart(self) -> bool:
        """Whether fitting needs the ``channels`` of layers."""
        return False

    @classmethod
    def can_use(cls, backbone: BackboneSpec) -> bool:
        """Whether the method can use this backbone."""
        return cls.default_backbone != NO_BACKBONE and not (cls.needs_transformer and backbone.patch == 1)

    @classmethod
    def from_options(cls, options: Any, copies: int = 1) -> Self:
        """Build an unfitted detector from an object with the attribute ``seed`` and one for each field of `Params`.

        A field that is None has its default.
        """
        params = {field.name: getattr(options, field.name) for field in fields(cls.Params)}
        given = {name: value for name, value in params.items() if value is not None}
        return cls(seed=options.seed, copies=copies, **given)

    @classmethod
    def check_state(cls, state: State, shape: Sequence[int] | None = None) -> None:
        """Check a state that was read from files, before `from_state` takes it over; ValueError says what is wrong.

        ``shape`` is that of the features of one image, if it is known.
        """
        check_settings(state.settings, cls().settings, cls.Params)
        specs = cls.array_specs(state.settings, shape)
        if specs is not None:
            check_arrays(state.arrays, specs)
        for name, array in state.arrays.items() if specs is None else ():
            check_finite(name, array)

    @classmethod
    def array_specs(cls, settings: dict[str, Any], shape: Sequence[int] | None) -> dict[str, ArraySpec] | None:
        """What `arrays` are with these settings, for `check_state`; None if a method does not say."""
        return None

    @classmethod
    def from_state(cls, state: State, device: str | torch.device = "cpu") -> Self:
        """Build a fitted detector; the arrays of the state may be read-only and shared between processes."""
        arguments = {"seed", "copies", "channels", *(field.name for field in fields(cls.Params))}
        detector = cls(**{name: value for name, value in state.settings.items() if name in arguments})
        detector.restore(state, device)
        return detector

    @property
    def state(self) -> State:
        """All that was learnt, for `from_state`."""
        return State(self.settings, self.arrays, loo_scores=self.loo_scores, chosen=self.chosen)

    @property
    def settings(self) -> dict[str, Any]:
        """The part of the state that is JSON values; by default the arguments of the constructor."""
        return {**asdict(self.params), "seed": self.seed, "copies": self.copies}

    @property
    @abstractmethod
    def arrays(self) -> dict[str, NDArray[Any]]:
        """The part of the state that is arrays."""

    @abstractmethod
    def restore(self, state: State, device: str | torch.device) -> None:
        """Take over what was learnt: ``state.arrays``, and ``state.settings`` that the constructor does not take."""

    @abstractmethod
    def fit(self, features: Tensor) -> Self:
        """Learn from features of good images, ``copies`` rows per image, of the shape that `features.kinds` gives.

        Returns the detector itself.
        """

    @abstractmethod
    def score(self, features: Tensor) -> Scores:
        """Score features on the detector's device, each image by itself: the others of a batch change nothing."""

    def image_scores(self, features: Tensor) -> NDArray[np.float32]:
        """Compute the image scores that `score` gives, (n,) float32; faster in methods that can do without the grid."""
        return self.bounded(features, close_from=np.inf).image

    def top_count(self, n_patches: int) -> int | None:
        """How many of the largest patch scores of an image with so many patches have the mean that is its score.

        None if the image score is no such mean: then it is decided by the patch with the largest score.
        """
        return None

    def bounded(
        self,
        features: Tensor,
        at_least: float = -np.inf,
        n_patches: int | None = None,
        close_from: float = -np.inf,
    ) -> Scores:
        """Score features as `score` does, but with a grid of upper bounds, none above the largest score of its image.

        The patch scores that decide the image score, see `top_count`, are exact, and no bound is above all of them. If
        the features are a part of an image, ``n_patches`` is the number of its patches. Of an image of which no patch
        that decides can score ``at_least``, neither needs to be exact, and the score may be -inf. Bounds below
        ``close_from`` may be far above the scores, which takes less time. Here the grid is exact; methods for which
        bounds are cheaper override this method and `settle`.
        """
        return self.score(features)

    def settle(self, features: Tensor, bounds: NDArray[np.float32], needed: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Replace upper bounds of patch scores by exact ones where they are needed.

        All are of one image: features (height, width, channels), the others (height, width).
        """
        return bounds

    def patch_scores(self, features: Tensor, needed: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Exact scores of some patches of one image, (n,), as `score` gives them; of methods that have a grid.

        Features are (height, width, channels), and ``needed`` is (height, width).
        """
        grid = self.score(features[None]).grid
        assert grid is not None
        return grid[0][needed]

    @property
    def needs_places(self) -> bool:
        """Whether what a window shows must be told where in the image it is, by `placed`."""
        return False

    def placed(self, features: Tensor, places: Tensor) -> Tensor:
        """Features, (..., channels), that know their places in the image, (..., 2): see `patch_space.grid_places`.

        They are for `bounded`, `score`, `settle` and `patch_scores`, which otherwise take features for those of all of
        an image.
        """
        return features

    def nearest(self, features: Tensor) -> Nearest | None:
        """What is most like the part of one image that decides its score; None unless `has_bank`.

        ``features`` are a batch of that image alone.
        """
        return None

    def _require_fitted(self, learnt: Any) -> Any:
        """Return something that fitting sets; RuntimeError if it is not set yet."""
        if learnt is None:
            raise RuntimeError(f"this {type(self).__name__} is not fitted; call fit first")
        return learnt


class LeaveOneOut:
    """A method whose fitting sets ``loo_scores``: the score of each good image, as if it were not among them.

    For other methods such scores are computed fold by fold, by fitting to the other images. If ``groups`` are set
    before fitting or extending, an image is scored as if none of its group were there, and there is one score per
    group, of the image that `calibration.one_per_group` draws. They are no part of the state.
    """

    groups: NDArray[np.int64] | None = None  # (n_images,), from 0; None if each image is a group by itself


class Extendable(ABC):
    """A method that can learn from more images without the old ones."""

    @abstractmethod
    def extend(self, features: Tensor) -> Self:
        """Learn from features of more good images, in addition to what was learnt. Returns the detector itself."""


class Shardable(ABC):
    """A method that can be fitted shard by shard, where all features together do not fit into memory.

    Each shard is summarised by itself; what a summary is, only the method knows. After `fit_shards`, ``origins`` is
    what `without` needs to tell shards apart, and ``shortfall`` says what is less than the options ask for, if
    anything is, because memory limits the summaries.
    """

    # Whether `fit` and `extend` set ``origins``, too, with rows in the place of shards; what was there before has none.
    leaves_out_rows: ClassVar[bool] = False
    origins: Any = None
    shortfall: str | None = None

    @abstractmethod
    def summarise(self, features: Tensor, share: float) -> Any:
        """What the method needs of one shard of the good images; a coreset keeps the given share of the patches."""

    @abstractmethod
    def fit_shards(
        self,
        shards: Iterable[Any],
        n_patches: int,
        device: str | torch.device = "cpu",
        folds: NDArray[np.int64] | None = None,
    ) -> Self:
        """Fit to the summaries of all shards, in their order, which were made of ``n_patches`` patches.

        ``folds``, (n_shards,), are given if shards are to be left out afterwards: methods that cannot tell single
        shards apart leave out a fold as a whole. Returns the detector itself.
        """

    @abstractmethod
    def without(self, origins: Any, left_out: Collection[int], device: str | torch.device = "cpu") -> Any:
        """A detector like this one without what some shards of one fold gave, or all of that fold.

        ``left_out`` are numbers of shards in the order in which `fit_shards` got them, or after `fit`, of a method of
        which `leaves_out_rows` is true, numbers of rows. ValueError if nothing would be left.
        """


class Pretrained(ABC):
    """A method that learns from other categories before it is fitted to one: `pretrain`, then `fit`.

    Between the two, `Detector.restore` takes over the state of another detector after `pretrain`.
    """

    @abstractmethod
    def pretrain(self, others: Sequence[Tensor]) -> Self:
        """Learn from features of good images of other categories, one tensor each. Returns the detector itself."""
