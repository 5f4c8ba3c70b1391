"""One run and its folder: what was asked, what is missing, what happened; becomes ``run.json``.

What is missing is found by an anti-join of the listing with the ids in OUT. Ray Data's own checkpointing (beta in Ray
2.60) was tested and rejected. It filters nothing if a data set is not read from files, so a resumed run doubles its
rows. It keeps a record of its own next to the rows, which can disagree with them. On two processors its filter actor
once left a resumed run without progress. The ids in OUT are the rows themselves.
"""

from __future__ import annotations

import time
import uuid
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import date, datetime, timezone
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from mvad import calibration, storage
from mvad.calibration import UNKNOWN_PRODUCT, DecisionRule
from mvad.console import Reporter, plural
from mvad.data.listing import Listing, wait_until_settled
from mvad.data.manifest import Manifest
from mvad.errors import UsageError
from mvad.model_store import ModelInfo
from mvad.options import DECISION, MixedOptions, RunOptions, ScoreOptions, as_json, run_identity
from mvad.results import store
from mvad.results.printed import PrintTable, print_summary
from mvad.results.result import EXIT_DONE, EXIT_TOO_MANY_ERRORS, MAX_LISTED_ERRORS, Result, exit_code
from mvad.results.schema import RowOrigin
from mvad.results.summary import evaluate
from mvad.results.verdicts import rule_facts
from mvad.runtime.versions import versions

if TYPE_CHECKING:
    from mvad.features.weights import Network

UNKNOWN_NOTE = "images that fit no category"
IDENTITY = ("maps", "max_pixels", *DECISION)  # options that all rows share


class Run:
    """A run whose results are for the folder ``out`` (a URI), and are written to ``folder``."""

    def __init__(
        self,
        command: str,
        out: str,
        images: Manifest | Listing,
        options: ScoreOptions,
        identity: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """Begin a run, or go on with an earlier one that has this identity in common: `store.open_folder`."""
        now = datetime.now(timezone.utc)
        self.run_id = f"{now:%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:8]}"
        self.out, self.options = out, options
        self.folder, earlier = store.open_folder(out, command, identity, new_run=options.new_run)
        self.seconds: dict[str, float] = defaultdict(float)  # of wall-clock time, per stage
        # Facts for ``run.json``, by category.
        self.categories: dict[str, dict[str, Any]] = defaultdict(dict, {name: {} for name in images.categories})
        self.failures: dict[str, str] = {}  # by category: why it has no model that can be used
        self.n_rows = 0  # that must be there in the end
        self.drift_fails = False  # whether a category that has drifted is not a run well done
        self.expected: Collection[str] = ()  # categories without an image are missing
        self.night: date | None = None  # that the rows are of
        self.is_mixed = False  # whether images are assigned to categories, so that not all with a model have some
        self.keeps_coming = False  # whether images arrive while it lasts: not all categories with a model have some
        self.missing_categories: list[str] = []
        self.failed_categories: list[str] = []
        self._images = images
        self._rules: dict[str, DecisionRule] = {}
        self._started = time.monotonic()
        self._rows = store.no_status()  # of earlier runs: `store.STATUS`
        self._earlier: dict[str, Any] = {}
        self.set_aside: list[str] = []  # damaged files of earlier runs, a line for each
        self._new_categories = set(images.categories)
        self._n_unsettled = 0
        self._published = out
        self._content: dict[str, Any] = {
            "run_id": self.run_id,
            "command": command,
            "status": "running",
            "started": now.isoformat(timespec="seconds"),
            "data": storage.readable(images.root),
            "options": as_json(options),
            "versions": versions(),
            "ignored_files": len(images.left_out),
            "identity": dict(identity),
        }
        if earlier is not None:
            self._take_over(earlier)

    @classmethod
    def of_fit(
        cls, out: str, images: Manifest, options: RunOptions, network: Network, published: str | None = None
    ) -> Run:
        """A run that fits its own models, from all images of a manifest.

        ``published`` is where its folder will be in the end, if that is not ``out``.
        """
        run = cls("run", out, images, options, run_identity(options) | {"weights_sha256": network.sha256})
        run._published = published or out
        run._drop(run._not_in(images))
        return run

    @classmethod
    def of_models(
        cls, out: str, images: Manifest | Listing, models: Mapping[str, ModelInfo], options: ScoreOptions
    ) -> Run:
        """A run that scores images, of which more may come later, with these models."""
        identity: dict[str, Any] = {name: getattr(options, name) for name in IDENTITY}
        identity["models"] = {name: model.model_id for name, model in sorted(models.items())}
        return cls("score", out, images, options, identity)

    @classmethod
    def of_mixed_dump(cls, out: str, images: Listing, models: Mapping[str, ModelInfo], options: MixedOptions) -> Run:
        """The same, where images are assigned to the categories of the models: of all of them."""
        identity: dict[str, Any] = {name: getattr(options, name) for name in (*IDENTITY, "category", "unknown_above")}
        identity |= {"categories": sorted(models), "models": {name: models[name].model_id for name in sorted(models)}}
        run = cls("score", out, images, options, identity)
        run.is_mixed = True
        return run

    def _take_over(self, earlier: dict[str, Any]) -> None:
        self.set_aside = store.set_aside_damaged(self.folder)
        self._earlier, self._rows = earlier, store.drop_duplicates(self.folder)
        facts = {name: earlier.get(name) for name in ("run_id", "status", "started", "seconds", "n_rows")}
        self._content["earlier_runs"] = [*earlier.get("earlier_runs", []), facts]
        if "models" in self._content["identity"]:
            self._content["identity"]["models"] |= earlier["identity"]["models"]
        categories = earlier.get("categories", {})
        self.categories |= categories
        self._new_categories -= categories.keys()
        self.n_rows = len(self._rows)

    def _not_in(self, images: Manifest) -> pa.Table:
        """Rows of images that have gone, or could not be used to learn from."""
        listed = pa.concat_arrays([c for t in (images.table, images.left_out) for c in t["image_id"].chunks])
        gone = pc.invert(pc.is_in(self._rows["image_id"], listed))
        return self._rows.filter(pc.or_(gone, pc.equal(self._rows["split"], "train")))

    def _drop(self, rows: pa.Table) -> None:
        """Remove rows of earlier runs."""
        store.drop_rows(self.folder, rows["image_id"].to_pylist())
        self._rows = self._rows.filter(pc.invert(pc.is_in(self._rows["image_id"], rows["image_id"].combine_chunks())))
        self.n_rows = self.n_rows - len(rows)

    def forget(self, image_ids: pa.Array) -> None:
        """Remove the rows of some images, as far as there are any from earlier runs."""
        self._drop(self._rows.filter(pc.is_in(self._rows["image_id"], image_ids)))

    @property
    def origin(self) -> RowOrigin:
        """What the rows that this run writes say of it."""
        return RowOrigin(self.run_id, self.night)

    @property
    def rows(self) -> pa.Table:
        """Rows of earlier runs that are still there: `store.STATUS`."""
        return self._rows

    def recount(self) -> None:
        """Take the rows that are there for those of earlier runs, whoever has written them; lost ones stay missed."""
        self._rows = store.drop_duplicates(self.folder)
        self.n_rows = max(self.n_rows, len(self._rows))

    def relist(self, images: Manifest) -> None:
        """Go on with a newer listing of the images."""
        self._images = images

    def record(self) -> None:
        """Write ``run.json``: the run has begun, and is not done any more if it was."""
        store.write_run(self.folder, self._content)

    def missing(self, portions: Iterable[pa.Table], report: Reporter) -> Iterator[pa.Table]:
        """The images that have no current row: the row is removed, and they are scored again.

        A row is not current if it names an error, for the file may have been half written, or on a disk that was away;
        if the file has changed since, unless ``--recheck`` is ``name``; or if it is of another model. Rows of images
        that are not listed any more stay. Files that are still being written are left for the next run.
        """
        for line in self.set_aside:
            report.warn(line)
        for portion in portions:
            if isinstance(self._images, Listing):
                if self._images.ended:
                    report.image_count(self._images)
                else:
                    text = f"{self._images.n_images:,} images so far; still listing"
                    report.info(f"{text} {storage.readable(self._images.root)}")
            n_listed = len(portion)
            if self._earlier:
                portion = self.without_current_row(portion)
                report.info(f"{n_listed - len(portion):,} rows are there already, {len(portion):,} images are left")
            portion = self._settled(portion, report)
            if len(portion):
                yield portion

    def without_current_row(self, portion: pa.Table) -> pa.Table:
        """The images that have no current row from earlier runs; rows that are not current are removed."""
        if not self._earlier:
            return portion
        rows = self._rows.take(pc.index_in(portion["image_id"], self._rows["image_id"].combine_chunks()))
        models = {name: facts.get("model_id") for name, facts in self.categories.items() if name in self._rules}
        wanted = pa.array([models.get(name) for name in portion["category"].to_pylist()], pa.string())
        is_current = pc.and_(pc.equal(rows["status"], "ok"), pc.fill_null(pc.equal(rows["model_id"], wanted), True))
        is_current = pc.fill_null(is_current, False)
        is_same = pc.and_(
            *(pc.fill_null(pc.equal(rows[name], portion[name]), True) for name in ("file_size", "file_mtime"))
        )
        others = portion.filter(pc.and_(is_current, pc.invert(is_same)))
        if self._earlier["data"] != self._content["data"] and len(others):
            raise UsageError(
                f"{storage.readable(self.out)} was begun with the images in {self._earlier['data']}, and "
                f"{others['image_id'][0].as_py()!r} in {self._content['data']} is not the same; choose another --out, "
                "or --new-run to replace its rows."
            )
        if self.options.recheck == "content":
            is_current = pc.and_(is_current, is_same)
        self._drop(rows.filter(pc.and_(pc.is_valid(rows["image_id"]), pc.invert(is_current))))
        return portion.filter(pc.invert(is_current))

    def _settled(self, portion: pa.Table, report: Reporter) -> pa.Table:
        is_settled = wait_until_settled(portion, self.options.settle)
        n_unsettled = len(portion) - (pc.sum(is_settled).as_py() or 0)
        if n_unsettled:
            self._n_unsettled += n_unsettled
            report.warn(f"{plural(n_unsettled, 'file is', 'files are')} still being written: left for the next run")
        return portion.filter(is_settled)

    @property
    def is_unfinished(self) -> bool:
        """Whether an earlier run has begun, and has not ended or not well."""
        return bool(self._earlier) and not self.is_done

    @property
    def is_done(self) -> bool:
        """Whether an earlier run has ended well, so that nothing is left to do if nothing is missing."""
        if self.set_aside:
            return False
        return self._earlier.get("status") == "done" and self._code_now() == EXIT_DONE == self._earlier.get("exit_code")

    def _code_now(self) -> int:
        """The exit code of the earlier run, by what is allowed and expected now."""
        facts = self._earlier
        drifted = [name for name, row in facts["categories"].items() if (row.get("drift") or {}).get("drifted")]
        return exit_code(
            self.options,
            facts["n_errors"],
            facts["n_rows"],
            drifted=drifted if self.drift_fails else (),
            missing=self._missing_categories(facts["categories"]),
        )

    def _missing_categories(self, categories: Collection[str]) -> list[str]:
        return sorted({*self.expected} - {*categories})

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the seconds of a block to those of a stage."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[stage] += time.monotonic() - started

    def add_model(self, model: ModelInfo, rule: DecisionRule) -> None:
        """Note the model a category is scored with."""
        self._rules[model.category] = rule
        self.categories[model.category].pop("note", None)  # of an earlier run that had no model
        self.categories[model.category] |= {
            "method": model.method,
            "backbone": model.backbone.name,
            "model_id": model.model_id,
            "model": storage.readable(model.uri).replace(
                storage.readable(self.folder), storage.readable(self._published), 1
            ),
            "size": asdict(model.size),
            "bit_depth": model.bit_depth,
            "n_train": model.record["n_train"],
            "n_train_error": len(model.record["errors"]),
            "fit_seconds": model.record["fit_seconds"],
            "n_groups": model.record.get("n_groups", model.record["n_train"]),
            "suspects": model.record.get("suspects", []),
            "n_calibration": 0 if rule.calibration is None else len(rule.calibration),
            **rule_facts(rule),
        }

    def add_failure(self, category: str, reason: str) -> None:
        """Note why a category has no model that can be used; it becomes the error of the category's images."""
        self.failures[category] = self.categories[category]["note"] = reason
        self._content["identity"].get("models", {}).pop(category, None)  # the next run may have another

    def add_training(self, failures: Mapping[str, str], errors: Mapping[str, str], train: pa.Table) -> None:
        """Note why categories have no model, and write rows for the training images that could not be used.

        ``failures`` is by category, ``errors`` by image id; ``train`` has the manifest's rows of the training images.
        """
        for category, reason in failures.items():
            self.add_failure(category, reason)
        unusable = train.filter(pc.is_in(train["image_id"], pa.array(list(errors), pa.string())))
        self.write_unscored(unusable, errors)

    def nothing_to_do(self, report: Reporter, print_table: PrintTable = print_summary) -> Result:
        """The result of an earlier run that has ended, and of which nothing is missing."""
        self.mark_done()  # in case that run was ended just before
        report.result(f"Nothing to do: {storage.readable(self.out)} already has a row for every image.")
        result = Result(summary=store.read_summary(self.out), errors=store.read_errors(self.out))
        print_table(report, result.summary, self.categories, self.out, self._earlier.get("missing_categories", ()))
        return result

    def add_seconds(self, category: str, seconds: float) -> None:
        """Add to the seconds that actors have spent scoring a category."""
        facts = self.categories[category]
        facts["score_seconds"] = facts.get("score_seconds", 0.0) + seconds

    def write_unscored(self, images: pa.Table, reasons: Mapping[str, str]) -> None:
        """Write rows for images that are not scored: an error for those whose image id has a reason."""
        store.write_unscored_rows(self.folder, images, reasons, self.origin)
        self.n_rows += len(images)

    def left_out(self, images: Manifest | Listing) -> pa.Table:
        """The images that are left out and have no row yet, with the reason as ``error``."""
        rows = images.left_out
        return rows.filter(pc.invert(pc.is_in(rows["image_id"], self._rows["image_id"].combine_chunks())))

    def write_left_out(self, images: Manifest | Listing) -> None:
        """Write error rows for images that are left out."""
        rows = self.left_out(images)
        for category in pc.unique(rows["category"]).to_pylist():
            self.categories[category]  # a defaultdict: now it is evaluated
        self.write_unscored(rows, dict(zip(rows["image_id"].to_pylist(), rows["error"].to_pylist(), strict=True)))

    def finish(self, n_images: int, stages: Mapping[str, Any]) -> Result:
        """Evaluate, write the summary and ``run.json``, and ``_SUCCESS`` if all went well.

        ``n_images`` were asked for, the base of ``--max-errors`` in percent; ``stages`` is `Reporter.stages`.
        RuntimeError if rows are missing: OUT is not the same folder on every machine.
        """
        n_rows = len(store.drop_duplicates(self.folder))
        if n_rows != self.n_rows:
            raise RuntimeError(
                f"{storage.readable(self.out)} holds {n_rows:,} score rows where {self.n_rows:,} were written; "
                "OUT must be a place that all machines of the cluster share."
            )
        empty = self._new_categories - {*self._images.categories}  # folders that turned out to hold no images
        if self.is_mixed or self.keeps_coming:
            empty = {*self.categories} - {name for name, _ in store.list_parts(self.folder)}
        if self.is_mixed:
            self.categories[UNKNOWN_PRODUCT]["note"] = UNKNOWN_NOTE
        for name in empty:
            self.categories.pop(name, None)
            self._rules.pop(name, None)
        with self.timed("evaluate"):
            rows, errors = evaluate(self.folder, self.categories, self._rules, self.options.fdr)
            summary = store.write_summary(self.folder, rows)
        self.missing_categories = self._missing_categories(self.categories)
        left_out = set(self._images.left_out["image_id"].to_pylist())
        of_images = (error for error in errors if error["image_id"] not in left_out)
        damaged = [name for name, facts in self.categories.items() if facts.get("damage")]
        self.failed_categories = sorted({*_failed_categories(rows[:-1], of_images, self.failures), *damaged})
        drifted = [row["category"] for row in rows if row.get("drifted")] if self.drift_fails else []
        code = exit_code(
            self.options,
            len(errors),
            max(n_images, n_rows),
            failed_categories=self.failed_categories,
            drifted=drifted,
            missing=self.missing_categories,
        )
        self.seconds["total"] = time.monotonic() - self._started
        self._content |= {
            "categories": dict(self.categories),
            "status": "done",
            "exit_code": code,
            "n_rows": n_rows,
            "n_errors": len(errors),
            "errors": errors[:MAX_LISTED_ERRORS],
            "failed_categories": self.failed_categories,
            "missing_categories": self.missing_categories,
            "unsettled_files": self._n_unsettled,
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
            "stages": dict(stages),
            "images_per_second": n_images / self.seconds["total"],
            "ignored_files": len(self._images.left_out),
        }
        self.record()
        if self.folder != self.out:
            store.replace_by_new(self.out)
        return Result(code, summary, errors, dict(self.seconds))

    def mark_done(self) -> None:
        """Write ``_SUCCESS``."""
        storage.write(storage.join(self.folder, "_SUCCESS"), b"")

    def show(self, result: Result, report: Reporter, print_table: PrintTable = print_summary) -> Result:
        """Print the result, and return it."""
        print_table(report, result.summary, self.categories, self.out, self.missing_categories)
        for text in self._warnings():
            report.warn(text)
        report.errors(result.errors)
        for name in self.missing_categories:
            report.warn(f"{name}: no images")
        if result.exit_code == EXIT_TOO_MANY_ERRORS:
            for name in self.failed_categories:
                report.warn(f"{name}: none of its images could be scored: exit code 3")
            if not self.failed_categories:
                report.warn(f"that is more than --max-errors {self.options.max_errors} allows: exit code 3")
        report.result(f"results in {storage.readable(self.out)}")
        return result

    def _warnings(self) -> list[str]:
        """What a person should know before believing the verdicts."""
        warnings = []
        for name, facts in self.categories.items():
            drift = facts.get("drift") or {}
            if drift.get("drifted"):
                values = {key: drift[key] for key in calibration.Drift._fields}
                warnings.append(calibration.drift_warning(name, calibration.Drift(**values)))
        few: dict[int, list[str]] = defaultdict(list)
        for name, rule in sorted(self._rules.items()):
            if rule.caveat is not None:
                warnings.append(f"{name}: {rule.caveat}")
            if rule.too_few and rule.calibration is not None:
                few[len(rule.calibration)].append(name)
        rate = self.options.false_alarm_rate
        return warnings + [calibration.too_few_warning(names, n, rate) for n, names in few.items()]


def _failed_categories(
    rows: Sequence[Mapping[str, Any]], errors: Iterable[Mapping[str, str]], failures: Collection[str]
) -> list[str]:
    """Categories without a model that can be used, and those of which no image could be scored.

    ``errors`` are without those of files that have no place in DATA: such files make no category. Nor do those that
    could not be assigned to one.
    """
    tried = {(error["category"], error["split"]) for error in errors if error["category"] != UNKNOWN_PRODUCT}
    return [
        row["category"]
        for row in rows
        if ((row["category"], "test") in tried and (not row["n_scored"] or row["category"] in failures))
        or ((row["category"], "train") in tried and row["method"] is None)
    ]
