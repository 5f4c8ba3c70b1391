"""Fit jobs: one model each, the network they share, and what became of them."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mvad import storage
from mvad.data.image_size import TILES, ImageSize
from mvad.data.images import FULL_DEPTH, read_ignore
from mvad.data.manifest import Manifest, ignore_uris
from mvad.detectors import Detector, LeaveOneOut, Pretrained, find_method
from mvad.errors import UsageError
from mvad.features.backbone_spec import NEIGHBOURHOOD, BackboneSpec
from mvad.features.known import describe
from mvad.features.recipes import recipe
from mvad.features.specs import prepare
from mvad.features.weights import Network
from mvad.model_store import ModelInfo
from mvad.options import FitOptions, MethodOptions, recipe_defaults

Chosen = TypeVar("Chosen", bound=MethodOptions)


@dataclass(frozen=True)
class FitJob:
    """One model to fit: a method, on one category; it goes to the folder ``models`` (a URI)."""

    category: str
    options: FitOptions
    network: Network
    models: str
    fit_id: str = ""  # see `fitted.identify`
    ignore: str | None = None  # `ImageSize.ignore`
    size: ImageSize | None = None  # of the model's input, once it is known
    bit_depth: int = FULL_DEPTH  # of images whose files do not state it
    feature_shape: tuple[int, ...] | None = None  # of one image's features, once it is known
    patch_step: int = 1  # of the patches of an image, every so many in each direction are learnt from

    @property
    def method(self) -> type[Detector]:
        return find_method(self.options.method)

    def seen_at(self, size: ImageSize) -> FitJob:
        """The job with the size of its input; without windows, there is nothing to see an image as a whole next to."""
        options = self.options if size.whole is not None else replace(self.options, tile_levels=TILES)
        return replace(self, size=size, options=options)

    @property
    def title(self) -> str:
        shots = "" if self.options.shots is None else f" {self.options.shots} shots"
        return f"{self.category}: {self.options.method}{shots}"


@dataclass
class FitOutcome:
    """What became of a job."""

    job: FitJob
    model: ModelInfo | None = None
    failure: str | None = None  # why there is no model
    errors: dict[str, str] = field(default_factory=dict)  # why training images could not be used, by image id
    note: str | None = None  # what else a user should know


def with_recipe(options: Chosen, say: Callable[[str], None]) -> Chosen:
    """The options of a fit, where those that depend on the backbone and are not given have their values.

    These are of the recipe of the backbone (`features.recipes`), which is said aloud if it has a title, or else the
    general defaults. UsageError if there is no such backbone, or the values do not go together.
    """
    spec = describe(options.backbone or find_method(options.method).default_backbone)
    free = {field.name for field in fields(options) if getattr(options, field.name) is None}
    found = recipe(spec)
    advised = {name: value for name, value in found.values.items() if name in free} if found else {}
    if found and found.title and advised:
        texts = ", ".join(f"{name.replace('_', '-')} {_shown(value)}" for name, value in advised.items())
        say(f"{spec.name}: {texts}, {found.title}, where not given otherwise")
    defaults = {name: value for name, value in recipe_defaults(options.method).items() if name in free}
    return replace(options, **defaults | advised)


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def resolve_backbone(options: MethodOptions) -> BackboneSpec:
    """The backbone of a fit; UsageError if method, backbone and image size do not go together."""
    method = find_method(options.method)
    name, neighbourhood = options.backbone or method.default_backbone, options.neighbourhood or NEIGHBOURHOOD
    spec = describe(name, options.layers, neighbourhood, norm=bool(options.norm))
    spec.check_size(options.size_for(1, 1, spec.cell))
    if method.needs_transformer and spec.patch == 1:
        raise UsageError(f"--method {method.method} needs a Vision Transformer, and {spec.name} is not; see knn.")
    return spec


def load_network(options: MethodOptions) -> Network:
    """The backbone of a fit with its weights; UsageError if it cannot be had or memory cannot hold it."""
    network = Network.load(resolve_backbone(options), options.weights)
    options.memory_budget.after_weights(network.nbytes)
    return network


def read_ignores(manifest: Manifest, options: MethodOptions) -> dict[str, str]:
    """What is ignored of the images of each category, as `ImageSize.ignore`: by ``--ignore``, or masks beside images.

    UsageError if a mask cannot be used.
    """
    if options.ignore is not None:
        return dict.fromkeys(manifest.categories, read_ignore(storage.to_uri(options.ignore)))
    read = functools.cache(read_ignore)  # categories may share a mask
    return {name: read(uri) for name, uri in ignore_uris(manifest.ignore, manifest.categories).items()}


def fit_jobs(manifest: Manifest, network: Network, models: str, options: FitOptions) -> list[FitJob]:
    """One job per category.

    UsageError if the method learns from other categories first, and there are none, or what to ignore differs; or if a
    mask of that cannot be used.
    """
    categories, ignores = manifest.categories, read_ignores(manifest, options)
    if issubclass(find_method(options.method), Pretrained) and ignores and options.ignore is None:
        raise UsageError(
            f"--method {options.method} learns from other categories first, which must ignore the same: remove "
            f"ignore.png from the folders, or give one for all with --ignore."
        )
    if issubclass(find_method(options.method), Pretrained) and len(categories) < 2:
        raise UsageError(
            f"--method {options.method} learns from other categories first, and there is one alone; add some, or "
            "choose another method."
        )
    return [FitJob(category, options, network, models, ignore=ignores.get(category)) for category in categories]


def prepare_network(jobs: Sequence[FitJob]) -> None:
    """Prepare the network of jobs, for square images on CPU actors, ahead of time; the outcome is cached."""
    (options, network), kinds = (jobs[0].options, jobs[0].network), sorted({job.method.feature for job in jobs})
    prepare(kinds, network, options.size_for(1, 1, network.spec.cell), options.engine)


def require_models(outcomes: Sequence[FitOutcome], train: pa.Table) -> list[ModelInfo]:
    """The models of jobs; UsageError if there is none."""
    models = [outcome.model for outcome in outcomes if outcome.model is not None]
    if not models:
        raise UsageError(f"none of the {len(train):,} training images is usable.")
    return models


def failures_and_errors(outcomes: Sequence[FitOutcome]) -> tuple[dict[str, str], dict[str, str]]:
    """Why categories have no model, by category, and why training images could not be used, by image id."""
    failures = {outcome.job.category: outcome.failure for outcome in outcomes if outcome.failure is not None}
    return failures, {name: error for outcome in outcomes for name, error in outcome.errors.items()}


def training_errors(outcomes: Sequence[FitOutcome], train: pa.Table) -> list[dict[str, str]]:
    """The training images that could not be used: image_id, category, split and error, in the manifest's order."""
    _, reasons = failures_and_errors(outcomes)
    rows = train.select(["image_id", "category", "split"]).to_pylist()
    return [{**row, "error": reasons[row["image_id"]]} for row in rows if row["image_id"] in reasons]


def groups_of_record(method: type[Detector], groups: NDArray[np.int64]) -> dict[str, list[int]]:
    """What the record of a `LeaveOneOut` model keeps for `update`: the group of each image, if some share one."""
    is_needed = issubclass(method, LeaveOneOut) and groups.max(initial=-1) + 1 < len(groups)
    return {"groups": groups.tolist()} if is_needed else {}


def digest(parts: Iterable[str]) -> str:
    """SHA-256 of the lines that say what a model was fitted to."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
