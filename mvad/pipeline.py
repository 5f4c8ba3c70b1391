"""The flow, from images on disk to a table of results.

::

    manifest -> decode -> extract -> fit -> models -> broadcast -> score -> results -> evaluate

`run` is `fit`, `score` and `evaluate` in one job. Scores depend on images, options and seed alone: every image is
decoded, extracted and scored on its own, CPU actors run one thread each, and features are put in the manifest's order
before a model is fitted, so neither the number of actors nor the size of batches nor the order of arrival can change a
score on one kind of machine. Between kinds (CPU and GPU, or processors with other vector units) rounding differs, and
with it the choice between nearly tied patches of the coreset.
"""

from __future__ import annotations

import functools
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data

from mvad import results, storage
from mvad.actors import Extractor, Scorer, fit_detector
from mvad.backbones import BackboneSpec, describe
from mvad.collect import CategoryFeatures, collect
from mvad.console import Reporter, Stage
from mvad.detectors import State, ViTKNN, find_method
from mvad.errors import UsageError
from mvad.images import Batch, decode_batch
from mvad.manifest import Manifest, read_manifest
from mvad.models import ModelInfo, find_models, read_arrays, save_model
from mvad.options import CommonOptions, FitOptions, ImageSize, RunOptions, ScoreOptions
from mvad.record import EXIT_DONE, EXIT_TOO_MANY_ERRORS, Result, RunRecord, versions
from mvad.results import ScoredBy, WriteResults
from mvad.session import Pool, actor_pool, ray_session
from mvad.summary import summarise
from mvad.weights import Weights, fingerprint, load_weights

BLOCK_ROWS = 256  # at most, of a decoding task and of a result file
BLOCK_ROWS_LEAST = 8


# ---------------------------------------------------------------------------------------------------- commands


def run(data: str, out: str, **options: Any) -> Result:
    """Fit, score and evaluate every category under DATA; options as in `options.RunOptions`.

    Raises
    ------
    UsageError
        Unusable input, an unknown name, an OUT that is in use, or weights that cannot be had.
    """
    chosen = RunOptions(**options)
    report = Reporter(chosen.quiet)
    target = storage.to_uri(out)
    spec = _backbone(chosen)
    manifest = _checked_for_fit(read_manifest(data, chosen))
    images = manifest.split("test")
    if not len(images):
        raise UsageError(f"no test images under {storage.display(manifest.root)}; to fit models alone use mvad fit.")
    results.check_free(target, replace=chosen.new_run)
    network = Network.load(spec, chosen.weights)
    results.clear(target)
    record = RunRecord("run", target, manifest, chosen, report)
    with ray_session(chosen.address):
        with record.timed("fit"):
            fitted = _fit(manifest, network, storage.join(target, "models"), chosen, report)
        for category, reason in fitted.failures.items():
            record.categories[category]["note"] = reason
        unreadable = fitted.unreadable(manifest)
        _write_error_rows(target, unreadable, fitted.errors, record)
        with record.timed("score"):
            _score(images, fitted.models, {spec: network}, chosen, record)
    return record.finish(len(manifest.table), n_rows=len(images) + len(unreadable))


def fit(data: str, models: str, **options: Any) -> Result:
    """Fit one model a category from train/good under DATA; options as in `options.FitOptions`.

    Raises
    ------
    UsageError
        As for `run`; or there are such models already.
    """
    chosen = FitOptions(**options)
    report = Reporter(chosen.quiet)
    folder = storage.to_uri(models)
    spec, method = _backbone(chosen), chosen.method
    manifest = _checked_for_fit(read_manifest(data, chosen))
    present = storage.list_folder(storage.join(folder, method))
    clash = [name for name in manifest.categories if storage.folder_name(name) in present]
    if clash and not chosen.new_run:
        raise UsageError(
            f"{storage.display(folder)} has a {method} model of {clash[0]!r} already; add --new-run to replace it."
        )
    network = Network.load(spec, chosen.weights)
    started = time.monotonic()
    with ray_session(chosen.address):
        fitted = _fit(manifest, network, folder, chosen, report)
    errors = [
        {
            **{key: row[key] for key in ("image_id", "category", "split")},
            "error": fitted.errors[row["image_id"]],
        }
        for row in fitted.unreadable(manifest).to_pylist()
    ]
    report.errors(errors)
    report.print(f"{len(fitted.models)} models in {storage.display(folder)}")
    too_many = len(errors) > chosen.allowed_errors(len(manifest.split("train")))
    code = EXIT_TOO_MANY_ERRORS if too_many else EXIT_DONE
    return Result(code, errors=errors, seconds={"fit": time.monotonic() - started})


def score(data: str, models: str, out: str, **options: Any) -> Result:
    """Score the test images of DATA, or all images of an unlabelled tree; options as in `options.ScoreOptions`.

    Raises
    ------
    UsageError
        As for `run`; or there is no model for any category of DATA.
    """
    chosen = ScoreOptions(**options)
    report = Reporter(chosen.quiet)
    target, folder = storage.to_uri(out), storage.to_uri(models)
    if f"{folder}/".startswith(f"{target}/"):
        raise UsageError(f"the models lie inside {storage.display(target)}; give --out another folder.")
    found = find_models(folder, chosen.method)
    manifest = read_manifest(data, chosen)
    images = manifest.split("test")
    if not len(images):
        raise UsageError(f"no test images under {storage.display(manifest.root)}.")
    wanted = {name: found[name] for name in manifest.categories if name in found}
    if not wanted:
        asked = ", ".join(manifest.categories[:5])
        raise UsageError(f"{models} has no model for {asked}; it has models for: {', '.join(sorted(found))}.")
    results.check_free(target, replace=chosen.new_run)
    networks = {spec: Network.load(spec, chosen.weights) for spec in {model.backbone for model in wanted.values()}}
    for model in wanted.values():
        if model.weights_sha256 != networks[model.backbone].sha256:
            raise UsageError(
                f"the model of {model.category!r} was fitted with other weights of {model.backbone.name} than those at "
                "hand; give the same ones with --weights, or fit it again."
            )
    results.clear(target)
    record = RunRecord("score", target, manifest, chosen, report)
    with ray_session(chosen.address), record.timed("score"):
        _score(images, wanted, networks, chosen, record)
    return record.finish(len(images), n_rows=len(images))


def evaluate(out: str, *, quiet: bool = False) -> Result:
    """Compute the summary of the results in OUT anew, and write it there.

    Raises
    ------
    UsageError
        OUT holds no results of a run that has ended.
    """
    target = storage.to_uri(out)
    content = results.read_run(target)
    if content.get("status") != "done":
        raise UsageError(f"the run in {storage.display(target)} has not ended; wait for it or run it again.")
    summary = results.write_summary(target, summarise(target, content))
    Reporter(quiet).summary(summary)
    return Result(summary=summary)


class Network(NamedTuple):
    """A backbone with its weights, read once by the driver for all actors."""

    spec: BackboneSpec
    weights: Weights
    sha256: str

    @classmethod
    def load(cls, spec: BackboneSpec, path: str | None) -> Network:
        weights = load_weights(spec, path)
        return cls(spec, weights, fingerprint(weights))


def _backbone(options: FitOptions) -> BackboneSpec:
    """The backbone of a fit, and a check that method, backbone and image size go together."""
    method = find_method(options.method)
    spec = describe(options.backbone or method.default_backbone)
    spec.check_size(options.size)
    if method is ViTKNN and spec.patch == 1:
        raise UsageError(f"--method {method.method} needs a Vision Transformer, and {spec.name} is none; see knn.")
    return spec


def _checked_for_fit(manifest: Manifest) -> Manifest:
    where = storage.display(manifest.root)
    trained = set(manifest.split("train")["category"].to_pylist())
    without = [name for name in manifest.categories if name not in trained]
    if not trained:
        raise UsageError(f"no train/good images under {where}; a model is learnt from them.")
    if without:
        raise UsageError(
            f"category {without[0]!r} under {where} has no train/good images; add some, or leave it out "
            "with --categories."
        )
    return manifest


# ------------------------------------------------------------------------------------------- manifest -> decode


def decoded_images(images: pa.Table, size: ImageSize, options: CommonOptions, pool: Pool) -> ray.data.Dataset:
    """A data set of decoded images: the manifest's columns, ``row``, ``pixels``, ``width``, ``height``, ``error``."""
    plain = _without_nulls(images).append_column("row", pa.array(range(len(images)), pa.int64()))
    rows = min(BLOCK_ROWS, max(BLOCK_ROWS_LEAST, math.ceil(len(plain) / (pool.actors * 8))))
    blocks = [plain.slice(start, rows).combine_chunks() for start in range(0, len(plain), rows)]
    decode = functools.partial(decode_batch, size=size, max_pixels=options.max_pixels)
    return ray.data.from_arrow(blocks).map_batches(decode, batch_size=None, num_cpus=1)


def _without_nulls(images: pa.Table) -> pa.Table:
    """Unknown values as -1 and "": NumPy batches have no nulls of integers, and `results.score_rows` puts them back."""
    for place, name in enumerate(images.column_names):
        images = images.set_column(place, name, pc.fill_null(images[name], -1 if name == "label" else ""))
    return images


# ---------------------------------------------------------------------------------------------- extract -> fit


@dataclass
class Fitted:
    """Models by category, the errors of training images by id, and why a category has no model."""

    models: dict[str, ModelInfo] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def unreadable(self, manifest: Manifest) -> pa.Table:
        """The manifest's rows of the training images that could not be used."""
        train = manifest.split("train")
        return train.filter(pc.is_in(train["image_id"], pa.array(list(self.errors), pa.string())))


def _fit(manifest: Manifest, network: Network, folder: str, options: FitOptions, report: Reporter) -> Fitted:
    """Extract the features of all training images, fit a category as soon as its last image has arrived, save it."""
    method = find_method(options.method)
    train = manifest.split("train")
    pool = actor_pool(options.actors, len(train))
    weights = ray.put(network.weights)
    dataset = decoded_images(train, options.size, options, pool).map_batches(
        Extractor,
        batch_size=options.batch_size,
        fn_constructor_kwargs={"kind": method.feature, "spec": network.spec, "weights": weights, "size": options.size},
        **pool.arguments,
    )
    fitted = Fitted()
    tasks: dict[ray.ObjectRef, CategoryFeatures] = {}

    def save(category: CategoryFeatures, state: State) -> None:
        record = {
            "n_train": len(category.features),
            "errors": [{"image_id": name, "error": reason} for name, reason in category.errors.items()],
            "training_sha256": category.digest,
            "fit_seconds": round(category.seconds / pool.actors + state.seconds, 3),
            "versions": versions(),
        }
        fitted.models[category.name] = save_model(
            folder, category.name, method, state, network.spec, network.sha256, options.size, record
        )

    with report.stage("fit", len(train)) as stage:
        for category in collect(_watched(dataset, stage), train):
            fitted.errors |= category.errors
            count = len(category.features)
            if not count:
                reason = f"no model: none of its {len(category.errors)} training images is usable"
                fitted.failures[category.name] = reason
                continue
            stage.busy_with(f"{category.name}: fitting {options.method} to {count:,} images")
            if method.trained:
                # The features move to the object store; what is kept here is a view of them.
                features = ray.put(category.features)
                category.features = ray.get(features)
                task = ray.remote(fit_detector).options(**pool.share).remote(options.method, options, features)
                tasks[task] = category
            else:
                save(category, fit_detector(options.method, options, category.features, device="cpu"))
        while tasks:
            (done,), _ = ray.wait(list(tasks), num_returns=1)
            category = tasks.pop(done)
            save(category, ray.get(done))
            stage.busy_with(f"{category.name}: fitted")
    for name, reason in fitted.failures.items():
        report.warn(f"{name}: {reason}")
    if not fitted.models:
        raise UsageError(f"none of the {len(train)} training images under {storage.display(manifest.root)} is usable.")
    return fitted


def _watched(dataset: ray.data.Dataset, stage: Stage) -> Iterator[Batch]:
    """The batches of a data set as they come, counted in the progress of a stage."""
    for batch in dataset.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0):
        stage.advance(len(batch["row"]))
        yield batch


# ------------------------------------------------------------------------------- broadcast -> score -> results


def _score(
    images: pa.Table,
    models: Mapping[str, ModelInfo],
    networks: Mapping[BackboneSpec, Network],
    options: ScoreOptions,
    record: RunRecord,
) -> None:
    """Score the images of every category that has a model; those of the others become error rows."""
    for model in models.values():
        record.add_model(model)
    known = pc.is_in(images["category"], pa.array(list(models), pa.string()))
    orphans = images.filter(pc.invert(known))
    reasons = {row["image_id"]: f"no model of category {row['category']!r}" for row in orphans.to_pylist()}
    _write_error_rows(record.out, orphans, reasons, record)
    groups: dict[tuple[BackboneSpec, ImageSize], dict[str, ModelInfo]] = defaultdict(dict)
    for name, model in models.items():
        groups[model.backbone, model.size][name] = model
    with record.report.stage("score", len(images) - len(orphans)) as stage:
        for (spec, size), group in groups.items():
            chosen = images.filter(pc.is_in(images["category"], pa.array(list(group))))
            pool = actor_pool(options.actors, len(chosen))
            # The references are kept until the end of the run: Ray may drop what nobody refers to.
            weights = ray.put(networks[spec].weights)
            arrays = {name: ray.put(read_arrays(model)) for name, model in group.items()}
            constructor = {"spec": spec, "weights": weights, "size": size}
            constructor |= {"models": group, "arrays": arrays, "maps": options.maps}
            receipts = (
                decoded_images(chosen, size, options, pool)
                .map_batches(Scorer, batch_size=options.batch_size, fn_constructor_kwargs=constructor, **pool.arguments)
                .map_batches(
                    WriteResults(
                        record.out,
                        record.run_id,
                        {name: ScoredBy(model.model_id, model.threshold) for name, model in group.items()},
                    ),
                    batch_size=None,
                    num_cpus=0.1,
                )
            )
            for receipt in receipts.iter_rows():
                facts = record.categories[receipt["category"]]
                facts["score_seconds"] = facts.get("score_seconds", 0.0) + receipt["seconds"] / pool.actors
                stage.advance(receipt["rows"])


def _write_error_rows(out: str, images: pa.Table, reasons: Mapping[str, str], record: RunRecord) -> None:
    """Rows for images that never reached an actor, or did so in training."""
    for start in range(0, len(images), BLOCK_ROWS):
        part = _without_nulls(images.slice(start, BLOCK_ROWS))
        count = len(part)
        batch: Batch = {name: part[name].to_numpy() for name in part.column_names}
        batch |= {
            "error": np.array([reasons[name] for name in batch["image_id"]], object),
            "score": np.full(count, np.nan, np.float32),
            "width": np.zeros(count, np.int32),
            "height": np.zeros(count, np.int32),
            "seconds": np.zeros(count),
        }
        WriteResults(out, record.run_id, {})(batch)
