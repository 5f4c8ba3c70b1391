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
import itertools
import math
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
from numpy.typing import NDArray

from mvad import calibration, results, storage
from mvad.console import Reporter, Stage
from mvad.data.few_shot import TrainingSet
from mvad.data.image_size import ImageSize
from mvad.data.images import Batch
from mvad.data.listing import Listing
from mvad.data.manifest import Manifest, read_manifest
from mvad.detectors import Detector, find_method
from mvad.errors import UsageError
from mvad.features.backbone_spec import NO_BACKBONE, BackboneSpec
from mvad.features.backbones import describe
from mvad.features.extractor import feature_shapes, prepare
from mvad.features.weights import Network
from mvad.fitting.by_category import group_by_category
from mvad.fitting.fitter import Entry, Fitted, Fitter
from mvad.fitting.sharding import Shards, most_images, thin
from mvad.memory import block_rows
from mvad.model_store import ModelInfo, find_models, read_calibration
from mvad.options import CommonOptions, FitOptions, ModelOptions, RunOptions, ScoreOptions
from mvad.pipeline.actors import Extractor, Scorer, decode_task
from mvad.results import DecisionRule, Destination, WriteResults, write_rows
from mvad.results.run_record import EXIT_DONE, Result, RunRecord, exit_code
from mvad.results.summary import summarise
from mvad.runtime.session import ActorPool, actor_pool, ray_session
from mvad.runtime.watchdog import watch_nodes
from mvad.scoring import resume
from mvad.scoring.model_sharing import Broadcast
from mvad.scoring.resume import KeptRows

BLOCK_ROWS = 256  # at most, of a decoding task and of a result file
BLOCK_ROWS_LEAST = 8
BLOCKS_A_THREAD = 8  # at least, of an actor
RAMP_SHARE = 8  # of the images at most travel in the smaller blocks at either end
FEATURE_BLOCK_BYTES = 32 << 20  # that travel together to the driver, which holds several such blocks on the way
LEAST_CALIBRATION = 2  # scores that can set a threshold


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
    spec = resolve_backbone(chosen)
    manifest = checked_for_fit(read_manifest(data, chosen), find_method(chosen.method))
    images = manifest.split("test")
    if not len(images):
        raise UsageError(f"no test images under {storage.readable(manifest.root)}; to fit models alone use mvad fit.")
    results.check_free(target, replace=chosen.new_run)
    network = Network.load(spec, chosen.weights)
    chosen.budget.after_weights(network.nbytes)  # too little is said before earlier results are gone
    results.clear(target)
    record = RunRecord("run", target, manifest, chosen)
    announce(manifest, report)
    with ray_session(chosen.address, chosen.actors, report.line):
        with record.timed("fit"):
            fitted = _fit(manifest, network, storage.join(target, "models"), chosen, report)
        record.add_failures(fitted.failures)
        unreadable = fitted.unreadable(manifest)
        write_error_rows(unreadable, fitted.errors, record)
        with record.timed("score"):
            score_entries([images], {"": fitted.models}, {spec: network}, chosen, {"": record}, report)
    result = record.finish(len(manifest.table), n_rows=len(images) + len(unreadable), stages=report.stages)
    return record.show(result, report)


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
    spec, method = resolve_backbone(chosen), chosen.method
    manifest = checked_for_fit(read_manifest(data, chosen), find_method(method))
    present = storage.list_folder(storage.join(folder, method))
    clash = [name for name in manifest.categories if storage.folder_name(name) in present]
    if clash and not chosen.new_run:
        raise UsageError(
            f"{storage.readable(folder)} has a {method} model of {clash[0]!r} already; add --new-run to replace it."
        )
    network = Network.load(spec, chosen.weights)
    started = time.monotonic()
    with ray_session(chosen.address, chosen.actors, report.line):
        fitted = _fit(manifest, network, folder, chosen, report)
    errors = [
        {
            **{key: row[key] for key in ("image_id", "category", "split")},
            "error": fitted.errors[row["image_id"]],
        }
        for row in fitted.unreadable(manifest).to_pylist()
    ]
    report.errors(errors)
    report.print(f"{len(fitted.models)} models in {storage.readable(folder)}")
    code = exit_code(chosen, len(errors), len(manifest.split("train")))
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
        raise UsageError(f"the models lie inside {storage.readable(target)}; give --out another folder.")
    found = find_models(folder, chosen.method)
    listing = Listing(data, chosen)
    if listing.ended and not listing.n_test:
        raise UsageError(f"no test images under {storage.readable(listing.root)}.")
    wanted = {name: found[name] for name in listing.categories if name in found}
    if not wanted:
        asked = ", ".join(listing.categories[:5])
        raise UsageError(f"{models} has no model for {asked}; it has models for: {', '.join(sorted(found))}.")
    own = resume.identity(wanted, chosen)
    earlier = None if chosen.new_run else resume.earlier_run(target, own)
    if earlier is None:
        results.check_free(target, replace=chosen.new_run)
    networks = load_networks(wanted, chosen.weights)
    for network in networks.values():
        chosen.budget.after_weights(network.nbytes)
    kept = None
    if earlier is None:
        results.clear(target)
    else:
        kept = KeptRows(target, wanted, chosen)
    portions = _to_score(listing, kept, report)
    first = next(portions, None)
    before = earlier or {}
    if first is None and before.get("status") == "done" and before.get("exit_code") == EXIT_DONE:
        storage.write(storage.join(target, "_SUCCESS"), b"")  # in case the run was ended just before
        report.print(f"nothing new: every image has its row in {storage.readable(target)}")
        return Result(summary=results.read_summary(target), errors=results.read_errors(target))
    record = RunRecord("score", target, listing, chosen, identity=own, earlier=earlier)
    n_scored = 0
    with record.timed("score"):
        if first is not None:
            every = itertools.chain([first], portions)
            with ray_session(chosen.address, chosen.actors, report.line):
                n_scored = score_entries(every, {"": wanted}, networks, chosen, {"": record}, report)
    record.note_listing(listing)
    n_kept = kept.count if kept is not None else 0
    result = record.finish(listing.n_test, n_rows=n_scored + n_kept, stages=report.stages)
    return record.show(result, report)


def _to_score(listing: Listing, kept: KeptRows | None, report: Reporter) -> Iterator[pa.Table]:
    """The portions of a listing without the images that have rows, those that are empty left out."""
    for images in listing:
        if listing.ended:
            announce(listing, report)
        else:
            where = storage.readable(listing.root)
            report.line(f"{listing.n_images:,} images so far in {where}, and the listing goes on")
        if kept is not None:
            asked, images = len(images), kept.without(images)
            report.line(f"{asked - len(images):,} rows are there already, {len(images):,} images are left")
        if len(images):
            yield images


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
        raise UsageError(f"the run in {storage.readable(target)} has not ended; wait for it or run it again.")
    summary = results.write_summary(target, summarise(target, content))
    Reporter(quiet).summary(summary)
    return Result(summary=summary)


def load_networks(models: Mapping[str, ModelInfo], weights: str | None) -> dict[BackboneSpec, Network]:
    """The networks that models need, by backbone.

    Raises
    ------
    UsageError
        The weights cannot be had, or are not those that a model was fitted with.
    """
    networks = {spec: Network.load(spec, weights) for spec in {model.backbone for model in models.values()}}
    for model in models.values():
        if model.weights_sha256 != networks[model.backbone].sha256:
            raise UsageError(
                f"the model of {model.category!r} was fitted with other weights of {model.backbone.name} than those at "
                "hand; give the same ones with --weights, or fit it again."
            )
    return networks


def announce(found: Manifest | Listing, report: Reporter) -> None:
    """Say what was found under DATA."""
    where = storage.readable(found.root)
    report.line(f"{found.n_images:,} images of {len(found.categories)} categories in {where}")
    if found.ignored:
        report.warn(f"{found.ignored:,} image files lie where the layout has no place for them; they are left out")


def resolve_backbone(options: FitOptions) -> BackboneSpec:
    """The backbone of a fit, and a check that method, backbone and image size go together."""
    method = find_method(options.method)
    spec = describe(options.backbone or method.default_backbone)
    spec.check_size(options.size)
    if method.needs_transformer and spec.patch == 1:
        raise UsageError(f"--method {method.method} needs a Vision Transformer, and {spec.name} is none; see knn.")
    return spec


def checked_for_fit(manifest: Manifest, method: type[Detector] | None = None) -> Manifest:
    """The manifest, if every category has training images, and enough categories for the method.

    Raises
    ------
    UsageError
        It has not; the message says what is missing.
    """
    where = storage.readable(manifest.root)
    trained = set(manifest.split("train")["category"].to_pylist())
    without = [name for name in manifest.categories if name not in trained]
    if not trained:
        raise UsageError(f"no train/good images under {where}; a model is learnt from them.")
    if without:
        raise UsageError(
            f"category {without[0]!r} under {where} has no train/good images; add some, or leave it out "
            "with --categories."
        )
    if method is not None and method.transfers and len(manifest.categories) < 2:
        raise UsageError(
            f"--method {method.method} learns from other categories first, and {where} has one alone; "
            "add some, or choose another method."
        )
    return manifest


def _fit(manifest: Manifest, network: Network, folder: str, options: FitOptions, report: Reporter) -> Fitted:
    """Fit one model a category; UsageError if there is none in the end."""
    train = manifest.split("train")
    fitted = fit_entries(train, [Entry("", options, folder, network)], options, report)[""]
    if not fitted.models:
        raise UsageError(f"none of the {len(train)} training images under {storage.readable(manifest.root)} is usable.")
    return fitted


# ------------------------------------------------------------------------------------------- manifest -> decode


def decoded_images(
    images: pa.Table, size: ImageSize, options: CommonOptions, pool: ActorPool, flips: str = "none"
) -> ray.data.Dataset:
    """A data set of decoded images: the manifest's columns, ``row``, ``pixels``, ``width``, ``height``, ``error``."""
    plain = _without_nulls(images).append_column("row", pa.array(range(len(images)), pa.int64()))
    decode = functools.partial(decode_task, size=size, max_pixels=options.max_pixels, flips=flips)
    blocks = in_blocks(plain, size.crop, pool)
    return ray.data.from_arrow(blocks).map_batches(decode, batch_size=None, **pool.task_arguments)


def in_blocks(images: pa.Table, side: int, pool: ActorPool) -> list[pa.Table]:
    """Rows of images that travel together: few at first, so that results come soon, and at the end, so that no actor
    is left with many when the others are done.
    """
    share = math.ceil(len(images) / (pool.actors * pool.threads * BLOCKS_A_THREAD))
    most = min(block_rows(side, BLOCK_ROWS), max(BLOCK_ROWS_LEAST, share))
    ramp: list[int] = []
    size = BLOCK_ROWS_LEAST
    while size < most and sum(ramp) + pool.actors * size < len(images) / RAMP_SHARE:
        ramp += [size] * pool.actors
        size *= 2
    middle = len(images) - 2 * sum(ramp)
    sizes = [*ramp, *[most] * (middle // most), *[middle % most] * (middle % most > 0), *reversed(ramp)]
    ends = np.cumsum([0, *sizes])
    return [images.slice(start, end - start).combine_chunks() for start, end in itertools.pairwise(ends.tolist())]


def _without_nulls(images: pa.Table) -> pa.Table:
    """Unknown values as -1 and "": NumPy batches have no nulls of integers, and `results.score_rows` puts them back."""
    for place, field in enumerate(images.schema):
        unknown = "" if pa.types.is_string(field.type) else -1
        images = images.set_column(place, field.name, pc.fill_null(images[field.name], unknown))
    return images


# ---------------------------------------------------------------------------------------------- extract -> fit


def fit_entries(
    train: pa.Table,
    entries: Sequence[Entry],
    options: ModelOptions,
    report: Reporter,
    keep_going: bool = False,
) -> dict[str, Fitted]:
    """Extract the features of training images once, and fit every entry to a category as soon as its last has arrived.

    Parameters
    ----------
    train
        The manifest's rows of the training images.
    entries
        Of one network; those that need no backbone may be among them.
    options
        What the entries have in common.
    keep_going
        Whether a fit that fails is a reason among the failures of its entry, or an exception.
    """
    methods = [entry.method for entry in entries]
    fits = [entry.options for entry in entries]
    network = max((entry.network for entry in entries), key=lambda network: len(network.weights))
    shapes = feature_shapes(sorted({method.feature for method in methods}), network.spec, options.size)
    budget = options.budget.after_weights(network.nbytes)
    most = min(most_images(shapes, fit, budget) for fit in fits)
    sizes = dict(zip(*np.unique(np.array(train["category"].to_pylist()), return_counts=True), strict=True))
    shards: dict[str, Shards] = {}
    if len(entries) == 1 and methods[0].merges and fits[0].copies == 1 and fits[0].shots is None:
        shape = shapes[methods[0].feature]
        shards = {
            name: Shards.plan(int(count), shape, fits[0], budget) for name, count in sizes.items() if count > most
        }
    else:
        train, thinned = thin(train, most)
        for name in thinned:
            report.warn(f"{name}: fitted to {most:,} of its {sizes[name]:,} images: --memory-limit holds no more")
    images = TrainingSet.of(train, fits, whole=any(method.transfers for method in methods))
    count = len(images.table)
    pool = actor_pool(options.actors, count)
    with report.stage("fit", count) as stage:
        fitter = Fitter(entries, images, shards, budget, pool, stage, keep_going)
        batches = extracted(images.table, shapes, network, options.size, options, pool, stage, options.flips)
        for category in group_by_category(batches, images.table, _shard_of_rows(images, shards)):
            fitter.add(category)
            del category
        fitter.finish()
    for entry, fitted in fitter.fitted.items():
        for name, reason in (fitted.failures | fitted.notes).items():
            report.warn(f"{entry or entries[0].options.method}, {name}: {reason}")
    return fitter.fitted


def _shard_of_rows(images: TrainingSet, shards: Mapping[str, Shards]) -> NDArray[np.int64]:
    """The number of each row's shard in its category."""
    parts = [
        np.arange(len(places)) // shards[name].images
        if name in shards
        else np.zeros(sum(map(len, places.values())), int)
        for name, places in images.places.items()
    ]
    return np.concatenate(parts).astype(np.int64)


def extracted(
    images: pa.Table,
    shapes: Mapping[str, Sequence[int]],
    network: Network,
    size: ImageSize,
    options: CommonOptions,
    pool: ActorPool,
    stage: Stage,
    flips: str = "none",
) -> Iterator[Batch]:
    """Batches of features of images, for `collect.collect`, counted in the progress of a stage.

    They come in the images' order, so that no more than one category or shard is incomplete at a time.

    Parameters
    ----------
    shapes
        Of an image's features, by the kinds that are wanted: `features.feature_shapes`.
    """
    package = ray.put(prepare(list(shapes), network, size, options.engine, pool.gpus))
    constructor = {"shapes": shapes, "package": package, "threads": pool.threads}
    dataset = decoded_images(images, size, options, pool, flips).map_batches(
        Extractor,
        batch_size=options.budget.after_weights(network.nbytes).batch_size(options.batch_size, shapes),
        fn_constructor_kwargs=constructor,
        **pool.arguments,
    )
    dataset.context.execution_options.preserve_order = True
    dataset.context.target_max_block_size = FEATURE_BLOCK_BYTES
    dataset.set_name(f"mvad_{stage.name}")
    stage.actors += pool.actors
    batches = dataset.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0)
    for batch in watch_nodes(batches, pool.actor_resources, stage.report.warn):
        read, retries = int(batch["bytes"].sum()), int(batch["retries"].sum())
        stage.advance(len(batch["row"]), read, retries, int(batch["memory"].max()), batch["actor"][0])
        yield batch


# ------------------------------------------------------------------------------- broadcast -> score -> results


def score_entries(
    portions: Iterable[pa.Table],
    models: Mapping[str, Mapping[str, ModelInfo]],
    networks: Mapping[BackboneSpec, Network],
    options: ScoreOptions,
    records: Mapping[str, RunRecord],
    report: Reporter,
    keep_going: bool = False,
) -> int:
    """Decode and extract every image once, and score it with the model that each entry has of its category.

    Parameters
    ----------
    portions
        The manifest's rows of the images; each portion when the one before has been scored.
    models
        By entry and category; images of a category that an entry has no model of become error rows there.
    records
        By entry: where its results go.
    keep_going
        Whether images that a model cannot score become error rows, or an exception.

    Returns
    -------
    The number of images.
    """
    pairs = [(entry, model) for entry, own in models.items() for model in own.values()]
    found = storage.parallel_map(lambda pair: decision_rule(pair[1], options), pairs)
    judges = {(entry, model.category): judge for (entry, model), judge in zip(pairs, found, strict=True)}
    groups: dict[tuple[BackboneSpec, ImageSize], dict[str, dict[str, ModelInfo]]] = defaultdict(
        lambda: defaultdict(dict)
    )
    for entry, model in pairs:
        records[entry].add_model(model, judges[entry, model.category])
        groups[_carrier(model, models), model.size][entry][model.category] = model
    scorings = [
        _Scoring(group, judges, networks[spec], size, options, records, keep_going)
        for (spec, size), group in groups.items()
    ]
    n_images = 0
    with report.stage("score", 0, unit="images" if len(models) == 1 else "scores") as stage:
        for images in portions:
            n_images += len(images)
            for entry, own in models.items():
                known = pc.is_in(images["category"], pa.array(list(own), pa.string()))
                orphans = images.filter(pc.invert(known))
                reasons = {
                    row["image_id"]: f"{resume.NO_MODEL} of category {row['category']!r}" for row in orphans.to_pylist()
                }
                write_error_rows(orphans, reasons, records[entry])
                stage.expect(len(images) - len(orphans))
            for scoring in scorings:
                scoring.score(images, stage)
    return n_images


class _Scoring:
    """The scoring of images with models that share a backbone and an image size.

    What actors need is put into Ray's object store once for all portions of images. The references are kept as long as
    this is: Ray may drop what nobody refers to.
    """

    def __init__(
        self,
        group: Mapping[str, Mapping[str, ModelInfo]],
        judges: Mapping[tuple[str, str], DecisionRule],
        network: Network,
        size: ImageSize,
        options: ScoreOptions,
        records: Mapping[str, RunRecord],
        keep_going: bool,
    ) -> None:
        self._size, self._network, self._options, self._records = size, network, options, records
        models = [(entry, model) for entry, own in group.items() for model in own.values()]
        self._categories = pa.array(sorted({model.category for _, model in models}), pa.string())
        self._kinds = sorted({find_method(model.method).feature for _, model in models})
        self._batch_size = options.budget.after_weights(network.nbytes).batch_size(
            options.batch_size, feature_shapes(self._kinds, network.spec, size)
        )
        self._destinations = {
            entry: Destination(records[entry].out, records[entry].run_id, {name: judges[entry, name] for name in own})
            for entry, own in group.items()
        }
        above = {
            (entry, model.category): _map_above(options.maps, judges[entry, model.category]) for entry, model in models
        }
        self._models = {model.model_id: model for _, model in models}
        self._constructor = {"models": {**group}, "map_above": above, "keep_going": keep_going}
        self._packages: dict[bool, ray.ObjectRef] = {}

    @functools.cached_property
    def _broadcast(self) -> Broadcast:
        return Broadcast(self._models.values())

    def _package(self, gpus: bool) -> ray.ObjectRef:
        if gpus not in self._packages:
            package = prepare(self._kinds, self._network, self._size, self._options.engine, gpus)
            self._packages[gpus] = ray.put(package)
        return self._packages[gpus]

    def score(self, images: pa.Table, stage: Stage) -> None:
        """Score those of the images that are of a category of these models."""
        chosen = images.filter(pc.is_in(images["category"], self._categories))
        if not len(chosen):
            return
        pool = actor_pool(self._options.actors, len(chosen))
        constructor = {**self._constructor, "broadcast": self._broadcast}
        constructor |= {"package": self._package(pool.gpus), "threads": pool.threads}
        receipts = (
            decoded_images(chosen, self._size, self._options, pool)
            .map_batches(Scorer, batch_size=self._batch_size, fn_constructor_kwargs=constructor, **pool.arguments)
            .map_batches(WriteResults(self._destinations), batch_size=None, **pool.task_arguments)
        )
        receipts.set_name(f"mvad_{stage.name}")
        stage.actors += pool.actors
        for receipt in watch_nodes(receipts.iter_rows(), pool.actor_resources, stage.report.warn):
            facts = self._records[receipt["entry"]].categories[receipt["category"]]
            facts["score_seconds"] = facts.get("score_seconds", 0.0) + receipt["seconds"] / pool.actors
            stage.advance(*(receipt[name] for name in ("rows", "bytes", "retries", "memory", "actor")))


def decision_rule(model: ModelInfo, options: ScoreOptions) -> DecisionRule:
    """The threshold that a model's calibration sets; without calibration scores there is none.

    Raises
    ------
    UsageError
        The calibration scores are damaged.
    """
    scores = read_calibration(model)
    if scores is None or len(scores) < LEAST_CALIBRATION:
        return DecisionRule(model.model_id)
    rule, rate = options.threshold_rule or find_method(model.method).default_rule, options.false_alarm_rate
    return DecisionRule(
        model.model_id,
        scores,
        rule,
        calibration.threshold(scores, rule, rate),
        calibration.guarantee(rule, rate, len(scores)),
        len(scores) < calibration.min_images(rule, rate),
    )


def _map_above(maps: str, judge: DecisionRule) -> float:
    """The score above which an image keeps its grid; without a threshold none is known to be anomalous."""
    if maps == "anomalous" and judge.threshold is not None:
        return judge.threshold
    return -math.inf if maps == "all" else math.inf


def _carrier(model: ModelInfo, models: Mapping[str, Mapping[str, ModelInfo]]) -> BackboneSpec:
    """The backbone of the actors that score with a model: its own, or if it needs none any that others need."""
    if model.backbone.name != NO_BACKBONE:
        return model.backbone
    others = {other.backbone for own in models.values() for other in own.values() if other.size == model.size}
    return max(others, key=lambda spec: (len(spec.stages), spec.name))


def write_error_rows(images: pa.Table, reasons: Mapping[str, str], record: RunRecord) -> None:
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
            **{name: np.zeros(count) for name in ("seconds", "bytes", "retries", "memory")},
            "actor": np.full(count, "", object),
        }
        write_rows(batch, Destination(record.out, record.run_id, {}))
