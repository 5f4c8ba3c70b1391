"""One night that is being scored: its run, its models, the actors that hold them, and what was noticed so far."""

from __future__ import annotations

import datetime
import time
from collections import defaultdict
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from mvad import calibration, scoring, storage
from mvad.console import Reporter
from mvad.data.manifest import Manifest, require_categories
from mvad.data.tables import SCHEMA
from mvad.model_store import ensure_outside_models, find_models, load_networks, models_for
from mvad.options import WatchOptions
from mvad.results.nights import night_folder
from mvad.results.printed import print_night
from mvad.results.result import Result
from mvad.results.run_record import Run
from mvad.results.store import list_parts, read_scores
from mvad.scoring.jobs import NO_MODEL
from mvad.scoring.score import BackboneGroup
from mvad.storage.text import shown_name
from mvad.watching.warm import WarmPool

PROCESS_ENDED = "scoring failed: the process that scores it ended each time"  # error of an image


class Outcome(NamedTuple):
    """What became of a batch."""

    n_images: int
    n_flagged: int
    failed: set[str]  # image ids of error rows


class Night:
    """The night of a day: `mvad nightly` of the same images begins the same run, goes on with it, or finds it done.

    ``root`` (of the images), ``models`` and ``out`` are URIs. UsageError as from `mvad score`.
    """

    def __init__(
        self, day: datetime.date, root: str, models: str, out: str, options: WatchOptions, report: Reporter
    ) -> None:
        self.day, self.options, self.report = day, options, report
        self.images = Manifest(root, SCHEMA.empty_table())  # as they were listed last
        folder = night_folder(out, day)
        ensure_outside_models(folder, models)
        fitted = find_models(models, options.method)
        known = [*fitted, *fitted.errors]
        require_categories([*(options.categories or ()), *options.threshold_categories], known, models)
        categories = [options.category] if options.category else options.categories or known
        self.models, self.networks = load_networks(
            models_for(categories, fitted), options.weights, options.memory_budget
        )
        self.run = Run.of_models(folder, self.images, self.models, options)
        self.run.night, self.run.keeps_coming, self.run.drift_fails = day, True, True
        self.run.expected = options.expected_categories(fitted)
        for name, _ in list_parts(folder) if len(self.run.rows) else ():
            self.run.categories[name]  # a defaultdict: now it is evaluated
        for warning in [*self.models.warnings, *self.run.set_aside]:
            report.warn(warning)
        self._has_begun = self.run.is_unfinished
        self._jobs = scoring.scoring_jobs(self.models.values(), self.run, options, self.models.errors)
        self._usable_jobs = self._jobs
        self._pools: list[tuple[BackboneGroup, WarmPool]] = []
        self._scores: dict[str, dict[str, float]] = defaultdict(dict)  # by category and image id
        self._warned: set[str] = set()  # categories that have drifted or have no model, and files that are left out

    def prepare(self) -> None:
        """Prepare the networks ahead of time; the outcome is cached."""
        scoring.prepare_networks(self.models.values(), self.networks, self.options)

    def warm_up(self) -> None:
        """Start the actors, and wait until they can score; Ray must run."""
        groups, self._usable_jobs = scoring.backbone_groups(
            self._jobs, [self.run], self.networks, self.options, self.report
        )
        self._pools = [(group, WarmPool(group, self.report.warn)) for group in groups if len(group.usable)]
        for _, pool in self._pools:
            pool.wait()

    def resume(self, images: pa.Table) -> pa.Table:
        """The images that have no current row from earlier runs of the night, as `mvad nightly` finds them."""
        left = self.run.without_current_row(images)
        if len(self.run.rows):
            rows = read_scores(self.run.folder, ["image_id", "category", "score"])
            for row in rows.filter(pc.is_valid(rows["score"])).to_pylist():
                self._scores[row["category"]][row["image_id"]] = row["score"]
        return left

    def relist(self, images: Manifest) -> None:
        """Note what lies in the folder now, and warn of files that have no place in it."""
        if images.ignore != self.images.ignore:
            for text in scoring.ignore_remarks(self.models, images.ignore):
                self._warn_once(text, text)
        self.images = images
        self.run.relist(images)
        for row in images.left_out.select(["image_id", "error"]).to_pylist():
            self._warn_once(row["image_id"], f"{row['image_id']!r} is left out: {row['error']}")

    def score(self, images: pa.Table, *, again: bool) -> Outcome:
        """Score images and write their rows; ``again`` says that some may have rows already, which are replaced."""
        if not self._has_begun:
            self.run.record()
            self._has_begun = True
        started = time.monotonic()
        scored = [(part, *pool.score(part)) for group, pool in self._pools if len(part := group.images_of(images))]
        seconds = (time.monotonic() - started) / len(images)
        if again:
            self.run.recount()
            self.run.forget(images["image_id"].combine_chunks())
        tables = []
        for part, scores, lost in scored:
            self.run.write_unscored(lost, dict.fromkeys(lost["image_id"].to_pylist(), PROCESS_ENDED))
            for number, rows in scoring.write_rows(part, scores, self._jobs):
                self.run.n_rows += len(rows)
                self.run.add_seconds(self._jobs[number].category, seconds * len(rows))
                tables.append(rows.select(["image_id", "category", "status", "score", "is_anomaly"]))
        scoring.write_images_without_model(images, self._usable_jobs, self.run)
        self._look_at_categories(images, tables)
        return _outcome(images, tables)

    def _look_at_categories(self, images: pa.Table, tables: list[pa.Table]) -> None:
        """Have the categories of images evaluated, and warn once of those that have drifted or cannot be scored."""
        jobs = {job.category: job for job in self._usable_jobs}
        for table in tables:
            category = table["category"][0].as_py()
            rows = table.filter(pc.is_valid(table["score"]))
            self._scores[category] |= zip(rows["image_id"].to_pylist(), rows["score"].to_pylist(), strict=True)
        for name in pc.unique(images["category"]).to_pylist():
            self.run.categories[name]  # a defaultdict: now it is evaluated
            if name not in jobs:
                reason = self.run.failures.get(name, f"{NO_MODEL} in {storage.readable(self.models.folder)}")
                self._warn_once(name, f"{shown_name(name)}: {reason}; its images become error rows")
                continue
            good = jobs[name].rule.calibration
            drift = None if good is None else calibration.measure_drift(list(self._scores[name].values()), good)
            if drift is not None and drift.drifted:
                self._warn_once(name, calibration.drift_warning(name, drift))

    def _warn_once(self, name: str, text: str) -> None:
        if name not in self._warned:
            self._warned.add(name)
            self.report.warn(text)

    def finish(self) -> Result:
        """Evaluate the night as `mvad nightly` does, and print what it needs; also of a night that was interrupted."""
        if not self._has_begun:
            return self.run.nothing_to_do(self.report, print_night) if self.run.is_done else Result()
        self.run.recount()
        self.run.write_left_out(self.images)
        if not self.run.n_rows:
            return Result()
        result = self.run.finish(self.run.n_rows, self.report.stages)
        return self.run.show(result, self.report, print_night)

    def close(self) -> None:
        """End the actors."""
        for _, pool in self._pools:
            pool.close()
        self._pools = []


def _outcome(images: pa.Table, tables: list[pa.Table]) -> Outcome:
    rows = pa.concat_tables(tables) if tables else None
    failed = set(images["image_id"].to_pylist())
    if rows is None:
        return Outcome(len(images), 0, failed)
    failed -= set(rows.filter(pc.equal(rows["status"], "ok"))["image_id"].to_pylist())
    return Outcome(len(images), pc.sum(rows["is_anomaly"]).as_py() or 0, failed)
