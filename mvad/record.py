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

from mvad import __version__, results, storage
from mvad.console import Reporter
from mvad.manifest import Manifest
from mvad.models import ModelInfo
from mvad.options import CommonOptions, as_json
from mvad.summary import summarise

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


def versions() -> dict[str, str]:
    """Versions of what the scores depend on."""
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"mvad": __version__, "python": platform.python_version(), **packages}


class RunRecord:
    """Collects the facts of one run that writes to ``out`` (a URI)."""

    def __init__(self, command: str, out: str, manifest: Manifest, options: CommonOptions) -> None:
        now = datetime.now(timezone.utc)
        self.run_id = f"{now:%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:8]}"
        self.out, self.options = out, options
        self.seconds: dict[str, float] = {}
        self.categories: dict[str, dict[str, Any]] = defaultdict(dict)
        self._started = time.monotonic()
        self._content = {
            "run_id": self.run_id,
            "command": command,
            "status": "running",
            "started": now.isoformat(timespec="seconds"),
            "data": storage.display(manifest.root),
            "options": as_json(options),
            "versions": versions(),
            "ignored_files": manifest.ignored,
        }
        for name in manifest.categories:
            self.categories[name] = {}
        results.write_json(storage.join(out, "run.json"), self._content)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.monotonic() - started

    def add_model(self, model: ModelInfo) -> None:
        """Note the model a category is scored with."""
        self.categories[model.category] |= {
            "method": model.method,
            "backbone": model.backbone.name,
            "model_id": model.model_id,
            "size": asdict(model.size),
            "n_train": model.record["n_train"],
            "n_train_error": len(model.record["errors"]),
            "fit_seconds": model.record["fit_seconds"],
            "threshold": model.threshold,
        }

    def add_failures(self, reasons: Mapping[str, str]) -> None:
        """Note why categories have no model."""
        for category, reason in reasons.items():
            self.categories[category]["note"] = reason

    def finish(self, n_images: int, n_rows: int) -> Result:
        """Evaluate, write the summary and ``run.json``, and ``_SUCCESS`` if all went well.

        Parameters
        ----------
        n_images
            Images asked for, the base of ``--max-errors`` in percent.
        n_rows
            Score rows there must be.

        Raises
        ------
        RuntimeError
            Rows are missing: OUT is not the same folder on every machine.
        """
        found = results.count_scores(self.out)
        if found != n_rows:
            raise RuntimeError(
                f"{storage.display(self.out)} holds {found:,} score rows where {n_rows:,} were written; "
                "OUT must be a place that all machines of the cluster share."
            )
        errors = results.read_errors(self.out)
        code = EXIT_TOO_MANY_ERRORS if len(errors) > self.options.allowed_errors(n_images) else EXIT_DONE
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
            "images_per_second": n_images / self.seconds["total"],
        }
        results.write_json(storage.join(self.out, "run.json"), self._content)
        if code == EXIT_DONE:
            storage.write(storage.join(self.out, "_SUCCESS"), b"")
        return Result(code, summary, errors, dict(self.seconds))

    def show(self, result: Result, report: Reporter) -> Result:
        """Print what came out, and give it back."""
        report.summary(result.summary)
        report.errors(result.errors)
        if result.exit_code == EXIT_TOO_MANY_ERRORS:
            report.warn(f"that is more than --max-errors {self.options.max_errors} allows: exit code 3")
        report.print(f"results in {storage.display(self.out)}")
        return result
