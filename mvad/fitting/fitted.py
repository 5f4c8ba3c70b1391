"""Models that an earlier, interrupted fit has left: those of the same options and images are kept."""

import functools
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from mvad import storage
from mvad.detectors import Pretrained
from mvad.errors import ModelError, UsageError
from mvad.fitting.jobs import FitJob, digest
from mvad.model_store import ModelInfo, ensure_whole, stored_model
from mvad.options import fit_identity

CONTENT = ("image_id", "file_size", "file_mtime")  # what tells images apart without reading them


def content_digest(images: pa.Table) -> str:
    """SHA-256 of the names, sizes and times of images, in their order."""
    columns = [images["image_id"], *(pc.cast(images[name], pa.int64()) for name in CONTENT[1:])]
    return digest(json.dumps(row) for row in zip(*(column.to_pylist() for column in columns), strict=True))


def identify(jobs: Iterable[FitJob], train: pa.Table) -> list[FitJob]:
    """The jobs, each with a digest of what its model depends on: options, weights and training images."""
    digests = {
        category: content_digest(train.filter(pc.equal(train["category"], category)))
        for category in pc.unique(train["category"]).to_pylist()
    }
    identified = []
    for job in jobs:
        learns_from = digests.values() if issubclass(job.method, Pretrained) else [digests.get(job.category, "")]
        options = json.dumps(fit_identity(job.options), sort_keys=True)
        parts = [job.method.method, job.network.spec.name, job.network.sha256, options, job.category, *learns_from]
        parts += [] if job.ignore is None else [job.ignore]
        identified.append(replace(job, fit_id=digest(parts)))
    return identified


class Kept(NamedTuple):
    """Of identified jobs, by number: models that they have already, and what is wrong with others that are there."""

    models: dict[int, ModelInfo]
    errors: dict[int, ModelError]


def kept_models(jobs: Sequence[FitJob]) -> Kept:
    """The whole models of the same options and images that identified jobs have already.

    Methods that learn from other categories first need the images of all: they are fitted to all of them or none.
    """
    found = {number: one for number, one in enumerate(storage.parallel_map(_whole, jobs)) if one is not None}
    errors = {number: one for number, one in found.items() if isinstance(one, ModelError)}
    kept = {number: one for number, one in found.items() if isinstance(one, ModelInfo)}
    numbers: dict[tuple[str, str], list[int]] = defaultdict(list)
    for number, job in enumerate(jobs):
        if issubclass(job.method, Pretrained):
            numbers[job.models, job.options.method].append(number)
    for group in numbers.values():
        if not kept.keys() >= {*group}:
            kept = {number: model for number, model in kept.items() if number not in group}
    return Kept(kept, errors)


def ensure_no_other_models(jobs: Sequence[FitJob], train: pa.Table) -> None:
    """Make sure that no job has a whole model of other options or images; else UsageError."""
    jobs = identify(jobs, train)
    for job, model in zip(jobs, storage.parallel_map(functools.partial(_whole, same=False), jobs), strict=True):
        if isinstance(model, ModelInfo):
            raise UsageError(
                f"{storage.readable(job.models)} has a {job.options.method} model of {job.category!r} already, of "
                "other images or options; add --new-run to replace it."
            )


def _whole(job: FitJob, same: bool = True) -> ModelInfo | ModelError | None:
    """The whole model of a job's place, if it is one of the same fit, or of another; or what is wrong with it."""
    try:
        model = stored_model(job.models, job.options.method, job.category)
        if model is None or (model.record.get("fit_id") == job.fit_id) != same:
            return None
        ensure_whole(model)
    except ModelError as error:
        return error
    return model
