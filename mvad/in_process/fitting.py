"""Fit a model to the images of one category in this process, as a job does."""

from __future__ import annotations

import functools
import os
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mvad import storage
from mvad.calibration import suspects_warning
from mvad.data.augmentation import allowed_flips
from mvad.data.image_size import ImageSize
from mvad.data.images import crop_centre, read_ignore, vary_resized
from mvad.data.sampling import evenly_spaced, variant_seeds
from mvad.detectors import Pretrained, State, find_method
from mvad.errors import ImageError, UsageError, one_line
from mvad.features.extractor import FeatureExtractor
from mvad.features.kinds import GRIDS
from mvad.features.specs import ExtractorSpec, feature_shapes, prepare
from mvad.features.weights import Network
from mvad.fitting.by_category import CategoryFeatures
from mvad.fitting.category_fit import CategoryFit, steps_of
from mvad.fitting.jobs import FitJob, FitOutcome, load_network, with_recipe
from mvad.fitting.scheduler import PRIOR_IMAGES
from mvad.fitting.sharding import max_images
from mvad.fitting.tasks import pretrain_detector
from mvad.in_process.inputs import ImageLike, Reading, largest_sample, name_of, read_resized, sides_of
from mvad.in_process.workers import Workers
from mvad.model_store import FittedModel
from mvad.options import EstimatorOptions
from mvad.pipeline.bit_depths import depth_of
from mvad.pipeline.image_sizes import input_size
from mvad.pipeline.measuring import MAX_MEASURED_IMAGES
from mvad.runtime.threads import compute_device, usable_cores
from mvad.search.fingerprints import fingerprints


class Fitted(NamedTuple):
    """A model, the network that it needs, and why some of the images could not be used, by name."""

    model: FittedModel
    network: Network
    errors: dict[str, str]


def fit_images(
    images: Sequence[ImageLike],
    category: str,
    options: EstimatorOptions,
    others: Mapping[str, Sequence[ImageLike]],
) -> Fitted:
    """Fit to good images of one category, and calibrate.

    ``others`` are good images of other categories, for methods that learn from those first. UsageError if nothing can
    be learnt from the images, or memory does not hold their features; a warning if some cannot be used, may not be
    good, or are too few for the threshold.
    """
    if issubclass(find_method(options.method), Pretrained) and not others:
        raise UsageError(f"{options.method} learns from other products first; give good images of some with others.")
    options = with_recipe(options, say=lambda text: None)
    network = load_network(options)
    job = _measured(FitJob(category, options, network, models=""), images, others)
    workers = Workers(1 if compute_device() != "cpu" else usable_cores())
    try:
        extraction = _Extraction.of(job, workers)
        features = extraction.category(category, images)
        prior = None
        if issubclass(job.method, Pretrained):
            samples = [extraction.sample(name, others[name]) for name in sorted(others)]
            prior = workers.map(functools.partial(pretrain_detector, options), [samples])[0]
        (fit,) = workers.map(lambda one: _fit(job, one, prior), [features])
    finally:
        workers.close()
    _warn(fit)
    return Fitted(fit.model(), network, fit.outcome.errors)


def fit_with(spec: ExtractorSpec, job: FitJob, images: Mapping[str, ImageLike]) -> Fitted:
    """Fit to good images by name, and calibrate, with an extractor of features of one's own, on CPUs.

    The size of the input and the bit depth are those of the job, whose method learns from one category alone. Errors
    as for `fit_images`, but without its warnings.
    """
    assert job.size is not None
    job = replace(job, feature_shape=_shape_with_room(job, job.size, len(images)))
    workers = Workers(usable_cores())
    try:
        features = _Extraction.of(job, workers, spec).category(job.category, [*images.values()], [*images])
        (fit,) = workers.map(lambda one: _fit(job, one, None), [features])
    finally:
        workers.close()
    return Fitted(fit.model(), job.network, fit.outcome.errors)


def _measured(job: FitJob, images: Sequence[ImageLike], others: Mapping[str, Sequence[ImageLike]]) -> FitJob:
    """The job, with what is measured of the images before it begins: the size of the input and the bit depth."""
    options, reading = job.options, Reading(job.options.max_pixels, first_page=job.options.first_page)
    windows = job.method.feature in GRIDS
    groups = [images, *(others[name] for name in sorted(others))]
    seen = [[one[number] for number in evenly_spaced(len(one), MAX_MEASURED_IMAGES)] for one in groups]
    sides = [found for group in seen for image in group if (found := sides_of(image, reading)) is not None]
    depth = int(options.bit_depth) if options.bit_depth != "auto" else None
    if depth is None:
        depth = depth_of(largest_sample(image, reading) for image in seen[0])
    spec = job.network.spec
    size = input_size(sides if options.keeps_shape else [], options, spec, windows=windows, category=job.category)
    ignore = None if options.ignore is None else read_ignore(storage.to_uri(options.ignore))
    size = replace(size, ignore=ignore)
    shape = _shape_with_room(job, size, len(images))
    return replace(job.seen_at(size), bit_depth=depth, feature_shape=shape)


def _shape_with_room(job: FitJob, size: ImageSize, n_images: int) -> tuple[int, ...]:
    """The shape of one image's features; UsageError if memory does not hold those of all images."""
    options, kind = job.options, job.method.feature
    shapes = feature_shapes([kind], job.network.spec, size)
    most = max_images(shapes, options, options.memory_budget.after_weights(job.network.nbytes))
    if n_images > most:
        raise UsageError(
            f"the features of {n_images:,} images do not fit into memory_limit, which holds {most:,}; raise it, or "
            "use mvad fit, which builds memory banks piece by piece."
        )
    return shapes[kind]


@dataclass(frozen=True)
class _Extraction:
    """Features of images for a job."""

    job: FitJob
    size: ImageSize
    extract: FeatureExtractor
    reading: Reading
    workers: Workers

    @classmethod
    def of(cls, job: FitJob, workers: Workers, spec: ExtractorSpec | None = None) -> _Extraction:
        assert job.size is not None
        options, device = job.options, compute_device() if spec is None else "cpu"
        if spec is None:
            spec = prepare([job.method.feature], job.network, job.size, options.engine, device != "cpu")
        reading = Reading(options.max_pixels, job.bit_depth, options.first_page)
        return cls(job, job.size, spec.load(device), reading, workers)

    def category(
        self, category: str, images: Sequence[ImageLike], names: Sequence[str] | None = None
    ) -> CategoryFeatures:
        """The features of all images, each followed by its variants, as jobs put them together."""
        names = [*names] if names else _unique([name_of(image, number) for number, image in enumerate(images, 1)])
        n_rows, kind = self.job.options.rows_per_image, self.job.method.feature
        assert self.job.feature_shape is not None
        features = np.empty((len(images), n_rows, *self.job.feature_shape), np.float32)
        found = self.workers.map(lambda one: self._extract(*one), zip(images, names, features, strict=True))
        errors = {name: one for name, one in zip(names, found, strict=True) if isinstance(one, str)}
        prints = [one for one in found if not isinstance(one, str)]
        usable = np.array([not isinstance(one, str) for one in found], bool)
        rows = features if usable.all() else features[usable]
        return CategoryFeatures(
            category,
            {kind: rows.reshape(-1, *self.job.feature_shape)},
            np.repeat(np.array(names, object)[usable], n_rows),
            np.tile(np.arange(n_rows), int(usable.sum())),
            names,
            errors,
            fingerprints=np.concatenate(prints) if prints else None,
        )

    def sample(self, category: str, images: Sequence[ImageLike]) -> NDArray[np.float32]:
        """Features of some images of another category, evenly spaced."""
        found = self.category(category, images)
        originals = found.rows_of(found.all_image_ids)
        features = found.features[self.job.method.feature]
        return features[originals[evenly_spaced(len(originals), PRIOR_IMAGES)]]

    def _extract(self, image: ImageLike, name: str, rows: NDArray[np.float32]) -> NDArray[np.uint8] | str:
        """Fill the rows of an image and its variants; returns their fingerprints, or why the image cannot be used."""
        options, kind = self.job.options, self.job.method.feature
        try:
            resized, *sides = read_resized(image, self.size, self.reading)
        except ImageError as error:
            return one_line(error)
        variants = [resized]
        if len(rows) > 1:
            flips = allowed_flips(resized) if options.augmentation.looks_at_flips else options.augmentation.flips
            variants += [
                vary_resized(resized, self.size, options.augmentation, seed, flips, *sides)
                for seed in variant_seeds(name, options.seed, len(rows) - 1)
            ]
        pixels = np.stack([np.asarray(crop_centre(variant, self.size)) for variant in variants])
        for number, one in enumerate(pixels):
            rows[number] = self.extract(one[None])[kind][0].cpu().numpy()
        return fingerprints(pixels)


def _unique(names: Sequence[str]) -> list[str]:
    """The names, with a number behind those that came before."""
    counts: dict[str, int] = {}
    found = []
    for name in names:
        counts[name] = counts.get(name, 0) + 1
        found.append(name if counts[name] == 1 else f"{name} ({counts[name]})")
    return found


def _fit(job: FitJob, category: CategoryFeatures, prior: State | None) -> CategoryFit:
    started = time.perf_counter()
    fit = CategoryFit.of(FitOutcome(job), category)
    if not fit.n_images:
        reasons = "".join(f"; the first: {name} {reason}" for name, reason in list(fit.outcome.errors.items())[:1])
        raise UsageError(f"none of the {len(category.all_image_ids):,} images is usable{reasons}.")
    features = category.features[job.method.feature]
    share = usable_cores() / (os.cpu_count() or 1)
    again = True
    while again:
        for step in steps_of(fit, prior, share):
            step.take(step.function(job.options, features, *step.arguments, **step.keywords))
        again = fit.settle()
    fit.seconds = time.perf_counter() - started
    return fit


def _warn(fit: CategoryFit) -> None:
    """Warn of images that could not be used, or may not be good."""
    errors, job = fit.outcome.errors, fit.outcome.job
    if errors:
        name, reason = next(iter(errors.items()))
        warnings.warn(
            f"{len(errors):,} of {len(fit.all_image_ids):,} images cannot be used; the first: {name} {reason}",
            stacklevel=5,
        )
    n_images = fit.n_images + sum(one["dropped"] for one in fit.suspects)
    suspects = suspects_warning(job.category, fit.suspects, fit.n_examined, n_images)
    if suspects is not None:
        warnings.warn(suspects, stacklevel=5)
