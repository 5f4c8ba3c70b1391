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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mvad import calibration, storage
from mvad.calibration import DecisionRule
from mvad.console import Reporter
from mvad.data.listing import Listing
from mvad.data.manifest import Manifest
from mvad.errors import UsageError
from mvad.model_store import ModelInfo
from mvad.options import DECISION, ScoreOptions, as_json
from mvad.results import store
from mvad.results.printed import PrintTable, print_summary
from mvad.results.result import EXIT_DONE, EXIT_TOO_MANY_ERRORS, MAX_LISTED_ERRORS, Result, exit_code
from mvad.results.summary import evaluate
from mvad.results.verdicts import rule_facts
from mvad.runtime.versions import versions

IDENTITY = ("maps", "max_pixels", *DECISION)  # options that all rows share


class Run:
    """A run that writes to the folder ``out`` (a URI)."""

    def __init__(self, command: str, out: str, images: Manifest | Listing, options: ScoreOptions) -> None:
        now = datetime.now(timezone.utc)
        self.run_id = f"{now:%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:8]}"
        self.out, self.options = out, options
        self.seconds: dict[str, float] = defaultdict(float)  # of wall-clock time, per stage
        # Facts for ``run.json``, by category.
        self.categories: dict[str, dict[str, Any]] = defaultdict(dict, {name: {} for name in images.categories})
        self.n_rows = 0  # that must be in OUT in the end
        self.drift_fails = False  # whether a category that has drifted is not a run well done
        self._images = images
        self._rules: dict[str, DecisionRule] = {}
        self._started = time.monotonic()
        self._done, self._failed = pa.array([], pa.string()), pa.array([], pa.string())  # image ids, of earlier runs
        self._earlier: dict[str, Any] = {}
        self._new_categories = set(images.categories)
        self._content: dict[str, Any] = {
            "run_id": self.run_id,
            "command": command,
            "status": "running",
            "started": now.isoformat(timespec="seconds"),
            "data": storage.readable(images.root),
            "options": as_json(options),
            "versions": versions(),
            "ignored_files": len(images.left_out),
        }

    @classmethod
    def open(cls, command: str, out: str, images: Manifest | Listing, options: ScoreOptions) -> Run:
        """Begin a run in an empty folder, or in place of an earlier run; UsageError if the folder is in use."""
        run = cls(command, out, images, options)
        store.ensure_writable(out, replace=options.new_run)
        store.clear(out)
        run.record()
        return run

    @classmethod
    def resume(
        cls, out: str, images: Manifest | Listing, models: Mapping[str, ModelInfo], options: ScoreOptions
    ) -> Run:
        """Begin a run that scores with these models, or go on with one that an earlier run has begun.

        UsageError if the folder holds something else, or rows of other models or options.
        """
        run = cls("score", out, images, options)
        identity: dict[str, Any] = {name: getattr(options, name) for name in IDENTITY}
        identity["models"] = {name: model.model_id for name, model in sorted(models.items())}
        earlier = None if options.new_run else resumable_run(out, identity)
        if earlier is None:
            store.ensure_writable(out, replace=options.new_run)
            store.clear(out)
        else:
            run._take_over(earlier)
            identity["models"] = earlier["identity"]["models"] | identity["models"]
        run._content["identity"] = identity
        return run

    def _take_over(self, earlier: dict[str, Any]) -> None:
        self._earlier, status = earlier, store.drop_duplicates(self.out)
        is_done = pc.equal(status["status"], "ok")
        self._done, self._failed = (status.filter(rows)["image_id"] for rows in (is_done, pc.invert(is_done)))
        facts = {name: earlier.get(name) for name in ("run_id", "status", "started", "seconds", "n_rows")}
        self._content["earlier_runs"] = [*earlier.get("earlier_runs", []), facts]
        categories = earlier.get("categories", {})
        self.categories |= categories
        self._new_categories -= categories.keys()
        self.n_rows = len(status)

    def record(self) -> None:
        """Write ``run.json``: the run has begun."""
        store.write_json(storage.join(self.out, "run.json"), self._content)

    def missing(self, images: Listing, report: Reporter) -> Iterator[pa.Table]:
        """The images that have no row yet, or one that names an error: those are scored again.

        A file that could not be read may have been half written, or on a disk that was away. Rows of images that are
        not listed any more stay.
        """
        for portion in images:
            if images.ended:
                report.image_count(images)
            else:
                report.info(f"{images.n_images:,} images so far; still listing {storage.readable(images.root)}")
            if self._earlier:
                n_listed = len(portion)
                portion = portion.filter(pc.invert(pc.is_in(portion["image_id"], self._done)))
                failed = self._failed.filter(pc.is_in(self._failed, portion["image_id"]))
                store.drop_rows(self.out, failed.to_pylist())
                self.n_rows -= len(failed)
                report.info(f"{n_listed - len(portion):,} rows are there already, {len(portion):,} images are left")
            if len(portion):
                yield portion

    @property
    def is_done(self) -> bool:
        """Whether an earlier run has ended well, so that nothing is left to do if nothing is missing."""
        return self._earlier.get("status") == "done" and self._earlier.get("exit_code") == EXIT_DONE

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
        self.categories[model.category] |= {
            "method": model.method,
            "backbone": model.backbone.name,
            "model_id": model.model_id,
            "model": storage.readable(model.uri),
            "size": asdict(model.size),
            "n_train": model.record["n_train"],
            "n_train_error": len(model.record["errors"]),
            "fit_seconds": model.record["fit_seconds"],
            "n_calibration": 0 if rule.calibration is None else len(rule.calibration),
            **rule_facts(rule),
        }

    def add_training(self, failures: Mapping[str, str], errors: Mapping[str, str], train: pa.Table) -> None:
        """Note why categories have no model, and write rows for the training images that could not be used.

        ``failures`` is by category, ``errors`` by image id; ``train`` has the manifest's rows of the training images.
        """
        for category, reason in failures.items():
            self.categories[category]["note"] = reason
        unusable = train.filter(pc.is_in(train["image_id"], pa.array(list(errors), pa.string())))
        self.write_errors(unusable, errors)

    def nothing_to_do(self, report: Reporter, print_table: PrintTable = print_summary) -> Result:
        """The result of an earlier run that has ended, and of which nothing is missing."""
        self.mark_done()  # in case that run was ended just before
        report.result(f"Nothing to do: {storage.readable(self.out)} already has a row for every image.")
        result = Result(summary=store.read_summary(self.out), errors=store.read_errors(self.out))
        print_table(report, result.summary, self.categories, self.out)
        return result

    def add_seconds(self, category: str, seconds: float) -> None:
        """Add to the seconds that actors have spent scoring a category."""
        facts = self.categories[category]
        facts["score_seconds"] = facts.get("score_seconds", 0.0) + seconds

    def write_errors(self, images: pa.Table, reasons: Mapping[str, str]) -> None:
        """Write rows for images that never reached an actor, or did so in training."""
        store.write_error_rows(self.out, images, reasons, self.run_id)
        self.n_rows += len(images)

    def left_out(self, images: Manifest | Listing) -> pa.Table:
        """The images that are left out and have no row yet, with the reason as ``error``."""
        rows = images.left_out
        for known in (self._done, self._failed):
            rows = rows.filter(pc.invert(pc.is_in(rows["image_id"], known)))
        return rows

    def write_left_out(self, images: Manifest | Listing) -> None:
        """Write error rows for images that are left out."""
        rows = self.left_out(images)
        for category in pc.unique(rows["category"]).to_pylist():
            self.categories[category]  # a defaultdict: now it is evaluated
        self.write_errors(rows, dict(zip(rows["image_id"].to_pylist(), rows["error"].to_pylist(), strict=True)))

    def finish(self, n_images: int, stages: Mapping[str, Any]) -> Result:
        """Evaluate, write the summary and ``run.json``, and ``_SUCCESS`` if all went well.

        ``n_images`` were asked for, the base of ``--max-errors`` in percent; ``stages`` is `Reporter.stages`.
        RuntimeError if rows are missing: OUT is not the same folder on every machine.
        """
        n_rows = len(store.drop_duplicates(self.out))
        if n_rows != self.n_rows:
            raise RuntimeError(
                f"{storage.readable(self.out)} holds {n_rows:,} score rows where {self.n_rows:,} were written; "
                "OUT must be a place that all machines of the cluster share."
            )
        for name in self._new_categories - {*self._images.categories}:  # folders that turned out to hold no images
            self.categories.pop(name, None)
            self._rules.pop(name, None)
        with self.timed("evaluate"):
            rows, errors = evaluate(self.out, self.categories, self._rules, self.options.fdr)
            summary = store.write_summary(self.out, rows)
        drifted = [row["category"] for row in rows if row.get("drifted")] if self.drift_fails else []
        code = exit_code(self.options, len(errors), n_images, drifted=drifted)
        self.seconds["total"] = time.monotonic() - self._started
        self._content |= {
            "categories": dict(self.categories),
            "status": "done",
            "exit_code": code,
            "n_rows": n_rows,
            "n_errors": len(errors),
            "errors": errors[:MAX_LISTED_ERRORS],
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
            "stages": dict(stages),
            "images_per_second": n_images / self.seconds["total"],
            "ignored_files": len(self._images.left_out),
        }
        self.record()
        if code == EXIT_DONE:
            self.mark_done()
        return Result(code, summary, errors, dict(self.seconds))

    def mark_done(self) -> None:
        """Write ``_SUCCESS``."""
        storage.write(storage.join(self.out, "_SUCCESS"), b"")

    def show(self, result: Result, report: Reporter, print_table: PrintTable = print_summary) -> Result:
        """Print the result, and return it."""
        print_table(report, result.summary, self.categories, self.out)
        for text in self._warnings():
            report.warn(text)
        report.errors(result.errors)
        if result.exit_code == EXIT_TOO_MANY_ERRORS:
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
            if rule.too_few and rule.calibration is not None:
                few[len(rule.calibration)].append(name)
        rate = self.options.false_alarm_rate
        return warnings + [calibration.too_few_warning(names, n, rate) for n, names in few.items()]


def resumable_run(out: str, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """``run.json`` of the score run in OUT (a URI) that may be resumed; None if OUT is empty.

    ``identity`` is what all rows of the run have in common: options, and models by category. It may have models of more
    categories. UsageError if OUT holds something else, or rows of other models or options.
    """
    if not storage.list_folder(out):
        return None
    store.ensure_writable(out, replace=True)  # refuses files that are not results
    content, folder = store.read_run(out), storage.readable(out)
    store.ensure_decided(content, out)
    theirs = content.get("identity")
    if content.get("command") != "score" or theirs is None:
        store.ensure_writable(out, replace=False)
        return None
    advice = "choose another --out, or --new-run to replace its rows."
    for name in IDENTITY:
        if theirs.get(name) != identity[name]:
            option = f"--{name.replace('_', '-')} {theirs.get(name)}, not {identity[name]}"
            raise UsageError(f"{folder} was begun with {option}; {advice}")
    for category, model_id in identity["models"].items():
        if theirs["models"].get(category, model_id) != model_id:
            raise UsageError(f"{folder} was begun with another model of {category!r}; {advice}")
    return content
