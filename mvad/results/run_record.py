"""The record of a run: what was asked, what happened, how long it took; becomes ``run.json``."""

from __future__ import annotations

import importlib.metadata
import platform
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import Any

import pyarrow.compute as pc

from mvad import __version__, calibration, results, storage
from mvad.console import Reporter
from mvad.data.listing import Listing
from mvad.data.manifest import Manifest
from mvad.model_store import ModelInfo
from mvad.options import JobOptions, ScoreOptions, as_json
from mvad.results.summary import summarise

EXIT_DONE, EXIT_TOO_MANY_ERRORS = 0, 3
LISTED_ERRORS = 1000
PACKAGES = (
    "ray",
    "torch",
    "torchvision",
    "timm",
    "faiss-cpu",
    "numpy",
    "pyarrow",
    "pillow",
    "scikit-learn",
)


@dataclass
class Result:
    """What a command did.

    Attributes
    ----------
    exit_code
        0, or 3 if more files were unreadable than ``max_errors`` allows.
    summary
        The rows of ``summary.parquet``; empty after `pipeline.fit`.
    errors
        The unreadable files: image_id, category, split and error.
    seconds
        Wall-clock seconds a stage.
    """

    exit_code: int = EXIT_DONE
    summary: list[dict[str, Any]] = field(default_factory=list)
    errors: list[dict[str, str]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """All of it as plain values, for ``--json``."""
        return {name: getattr(self, name) for name in ("exit_code", "summary", "errors", "seconds")}


def exit_code(options: JobOptions, n_errors: int, n_images: int) -> int:
    """That of a command which met so many unreadable files among those it was asked for."""
    return EXIT_TOO_MANY_ERRORS if n_errors > options.allowed_errors(n_images) else EXIT_DONE


def versions() -> dict[str, str]:
    """Versions of what the scores depend on."""
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"mvad": __version__, "python": platform.python_version(), **packages}


class RunRecord:
    """Collects the facts of one run that writes to ``out`` (a URI)."""

    def __init__(
        self,
        command: str,
        out: str,
        found: Manifest | Listing,
        options: ScoreOptions,
        identity: Mapping[str, Any] | None = None,
        earlier: Mapping[str, Any] | None = None,
    ) -> None:
        now = datetime.now(timezone.utc)
        self.run_id = f"{now:%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:8]}"
        self.out, self.options = out, options
        self.seconds: dict[str, float] = {}
        self.categories: dict[str, dict[str, Any]] = defaultdict(dict)
        self._judges: dict[str, results.DecisionRule] = {}
        self._started = time.monotonic()
        self._content: dict[str, Any] = {
            "run_id": self.run_id,
            "command": command,
            "status": "running",
            "started": now.isoformat(timespec="seconds"),
            "data": storage.readable(found.root),
            "options": as_json(options),
            "versions": versions(),
            "ignored_files": found.ignored,
        }
        if identity is not None:
            self._content["identity"] = identity
        if earlier is not None:
            kept = ("run_id", "status", "started", "seconds", "n_rows")
            runs = [*earlier.get("earlier_runs", []), {name: earlier.get(name) for name in kept}]
            self._content["earlier_runs"] = runs
            self._content["identity"] = {
                **self._content["identity"],
                "models": earlier["identity"]["models"] | self._content["identity"]["models"],
            }
        before = (earlier or {}).get("categories", {})
        self._new = set(found.categories) - before.keys()
        for name in self._new:
            self.categories[name] = {}
        for name, facts in before.items():
            self.categories[name] = dict(facts)
        results.write_json(storage.join(out, "run.json"), self._content)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.monotonic() - started

    def note_listing(self, listing: Listing) -> None:
        """Note what a listing has found that had not ended when the run began."""
        for name in self._new - {*listing.categories}:  # folders without images
            self.categories.pop(name, None)
            self._judges.pop(name, None)
        self._content["ignored_files"] = listing.ignored

    def add_model(self, model: ModelInfo, judge: results.DecisionRule) -> None:
        """Note the model a category is scored with."""
        self._judges[model.category] = judge
        self.categories[model.category] |= {
            "method": model.method,
            "backbone": model.backbone.name,
            "model_id": model.model_id,
            "model": storage.readable(model.uri),
            "size": asdict(model.size),
            "n_train": model.record["n_train"],
            "n_train_error": len(model.record["errors"]),
            "fit_seconds": model.record["fit_seconds"],
            "threshold": judge.threshold,
            "threshold_rule": judge.rule,
            "n_calibration": 0 if judge.calibration is None else len(judge.calibration),
            "promise": judge.guarantee,
        }

    def add_failures(self, reasons: Mapping[str, str]) -> None:
        """Note why categories have no model."""
        for category, reason in reasons.items():
            self.categories[category]["note"] = reason

    def finish(self, n_images: int, n_rows: int, stages: Mapping[str, Any]) -> Result:
        """Evaluate, write the summary and ``run.json``, and ``_SUCCESS`` if all went well.

        Parameters
        ----------
        n_images
            Images asked for, the base of ``--max-errors`` in percent.
        n_rows
            Score rows there must be.
        stages
            What each stage did, `console.Reporter.stages`.

        Raises
        ------
        RuntimeError
            Rows are missing: OUT is not the same folder on every machine.
        """
        results.repair(self.out)
        found = results.count_scores(self.out)
        if found != n_rows:
            raise RuntimeError(
                f"{storage.readable(self.out)} holds {found:,} score rows where {n_rows:,} were written; "
                "OUT must be a place that all machines of the cluster share."
            )
        errors = results.read_errors(self.out)
        code = exit_code(self.options, len(errors), n_images)
        self._compare_with_calibration()
        self._content |= {"categories": dict(self.categories)}
        with self.timed("evaluate"):
            summary = results.write_summary(self.out, summarise(self.out, self._content))
        self.seconds["total"] = time.monotonic() - self._started
        self._content |= {
            "status": "done",
            "exit_code": code,
            "n_rows": n_rows,
            "n_errors": len(errors),
            "errors": errors[:LISTED_ERRORS],
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
            "stages": dict(stages),
            "images_per_second": n_images / self.seconds["total"],
        }
        results.write_json(storage.join(self.out, "run.json"), self._content)
        if code == EXIT_DONE:
            storage.write(storage.join(self.out, "_SUCCESS"), b"")
        return Result(code, summary, errors, dict(self.seconds))

    def _warnings(self) -> list[str]:
        """What a person should know before believing the verdicts."""
        warnings = [facts["warning"] for facts in self.categories.values() if facts.get("warning")]
        few = [name for name in sorted(self._judges) if self._judges[name].too_few]
        if few:
            others = f"; the same goes for {len(few) - 1} more" if len(few) > 1 else ""
            warnings.append(f"{few[0]}: {self._judges[few[0]].guarantee}{others}")
        return warnings

    def _compare_with_calibration(self) -> None:
        """Decide on each category as a whole if that was asked for, and note how its scores have moved."""
        judges = {name: judge.calibration for name, judge in self._judges.items() if judge.calibration is not None}
        if self.options.fdr is not None:
            for category in judges:
                results.control_fdr(self.out, category, self.options.fdr)
        for category, rows in results.read_by_category(self.out, [*judges], ["split", "label", "score", "status"]):
            rows = rows.filter(pc.and_(pc.equal(rows["split"], "test"), pc.equal(rows["status"], "ok")))
            good = rows.filter(pc.not_equal(pc.fill_null(rows["label"], 0), 1))
            drift = calibration.measure_drift(good["score"].to_numpy(), judges[category])
            facts = self.categories[category]
            facts["drift"] = None if drift is None else {**drift._asdict(), "moved": drift.drifted}
            facts["warning"] = calibration.drift_warning(category, drift) if drift and drift.drifted else None

    def show(self, result: Result, report: Reporter) -> Result:
        """Print what came out, and give it back."""
        report.summary(result.summary)
        for text in self._warnings():
            report.warn(text)
        report.errors(result.errors)
        if result.exit_code == EXIT_TOO_MANY_ERRORS:
            report.warn(f"that is more than --max-errors {self.options.max_errors} allows: exit code 3")
        report.print(f"results in {storage.readable(self.out)}")
        return result
