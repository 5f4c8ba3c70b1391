"""What a person sees: one calm line a stage at a terminal, plain lines in a job's log, tables at the end."""

from __future__ import annotations

import datetime
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from mvad.runtime.telemetry import log, peak_memory

LOG_EVERY = 30.0  # seconds
SHOWN_ERRORS = 5
WIDTH = 100
CATEGORIES_ACROSS = 6  # columns of a comparison's table


def as_document(found: Any) -> str:
    """What a command returns as JSON text; numbers that are not finite, of which JSON knows none, are null."""
    return json.dumps(_plain(found), indent=2, ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if hasattr(value, "document"):
        return _plain(value.document())
    if hasattr(value, "_asdict"):
        return _plain(value._asdict())
    if isinstance(value, Mapping):
        return {str(name): _plain(own) for name, own in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(own) for own in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Reporter:
    """Progress to standard error, results to standard output; nothing but warnings if ``quiet``.

    Attributes
    ----------
    stages
        What each stage that has ended did: images, seconds, ``first_seconds`` until the first of them was done,
        ``bytes_read`` (of files that could be decoded), ``peak_memory``, the most resident memory in bytes of the
        driver so far and of any one actor; ``actors``, and ``actors_replaced``, how many that gave results had been
        started for others that were lost; ``tasks_retried``, how often tasks that decode or write began anew.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self._err = Console(stderr=True, highlight=False, soft_wrap=True)
        self.stages: dict[str, dict[str, Any]] = {}
        self._out = Console(highlight=False, width=WIDTH if not sys.stdout.isatty() else None)

    def line(self, text: str) -> None:
        if not self.quiet:
            self._err.print(escape(text))

    def warn(self, text: str) -> None:
        self._err.print(f"warning: {escape(text)}")

    def print(self, text: str) -> None:
        if not self.quiet:
            self._out.print(escape(text), soft_wrap=True)

    def table(self, table: Table) -> None:
        if not self.quiet:
            self._out.print(table)

    @contextmanager
    def stage(self, name: str, total: int, unit: str = "images") -> Iterator[Stage]:
        """Show a stage of ``total`` images, or other units, while it lasts, and leave one line of what it did."""
        stage = Stage(self, name, total, unit)
        bar = self._bar(unit) if self._err.is_terminal and not self.quiet else None
        if bar is None:
            yield stage
        else:
            with bar:
                stage.show_on(bar)
                yield stage
        seconds = stage.seconds
        self.line(f"{name:<9}{stage.done:>8,} {unit} in {seconds:.1f} s  ({stage.done / max(seconds, 1e-9):.1f}/s)")
        self.stages[name] = {
            unit: stage.done,
            "seconds": round(seconds, 3),
            "first_seconds": round(stage.first_seconds, 3),
            "bytes_read": stage.bytes_read,
            "peak_memory": {"driver": peak_memory(), "actor": stage.actor_memory},
            "actors": stage.actors,
            "actors_replaced": stage.actors_replaced,
            "tasks_retried": stage.retries,
        }
        log("stage", stage=name, **self.stages[name])

    def _bar(self, unit: str) -> Progress:
        return Progress(
            TextColumn("{task.description:<9}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._err,
            transient=True,
        )

    def errors(self, errors: Sequence[dict[str, str]], where: str = "scores/ (status = 'error')") -> None:
        """Name the first few unreadable files and count the rest; ``where`` they all are."""
        if not errors:
            return
        self.warn(f"{len(errors):,} file{'s' if len(errors) > 1 else ''} could not be used:")
        for entry in errors[:SHOWN_ERRORS]:
            self.warn(f"  {entry['image_id']!r}: {entry['error']}")
        if len(errors) > SHOWN_ERRORS:
            self.warn(f"  and {len(errors) - SHOWN_ERRORS:,} more, all in {where}")

    def summary(self, rows: Sequence[dict[str, Any]]) -> None:
        """Print the summary table."""
        if self.quiet:
            return
        shown = [("image_auroc", "AUROC"), ("image_ap", "AP"), ("image_f1_max", "F1 max")]
        if any(row.get("pixel_auroc") is not None for row in rows):
            shown += [("pixel_auroc", "pixel AUROC"), ("pixel_aupro", "AUPRO")]
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("category", overflow="fold")
        for header in ("train", "good", "defect", "error", *(title for _, title in shown), "fit s", "img/s"):
            table.add_column(header, justify="right", no_wrap=True)
        notes = [row for row in rows if row.get("note")]
        for row in rows:
            counts = [f"{row[name]:,}" if row.get(name) is not None else "-" for name in _COUNTS]
            values = [_number(row.get(name), 3) for name, _ in shown]
            times = [_number(row.get(name), 1) for name in ("fit_seconds", "images_per_second")]
            table.add_row(escape(row["category"]), *counts, *values, *times, end_section=row is rows[-2:][0])
        self._out.print(table)
        for row in notes:
            self.print(f"{row['category']}: {row['note']}")

    def models(self, rows: Sequence[dict[str, Any]]) -> None:
        """Print a list of models."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        for header in ("method", "category", "backbone"):
            table.add_column(header, overflow="fold")
        for header in ("pixels", "train", "calibration", "updates", "MB", "id"):
            table.add_column(header, justify="right", no_wrap=True)
        for row in rows:
            if row["damage"]:
                table.add_row(escape(row["method"]), escape(row["category"]), "damaged")
                continue
            counts = [str(row["crop"]), *(f"{row[name]:,}" for name in ("n_train", "n_calibration", "updates"))]
            names = [escape(row[name]) for name in ("method", "category", "backbone")]
            table.add_row(*names, *counts, f"{row['bytes'] / 1e6:.1f}", row["model_id"][:12])
        if not self.quiet:
            self._out.print(table)
        for row in rows:
            if row["damage"]:
                self.warn(row["damage"])

    def false_alarms(self, rows: Sequence[dict[str, Any]]) -> None:
        """Print achieved false-alarm rates."""
        if self.quiet:
            return
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("category", overflow="fold")
        for header in ("rule", "asked", "calibration", "promised", "achieved", "95 % interval", "splits", "expected"):
            table.add_column(header, justify="right", no_wrap=True)
        for row in rows:
            promised = f"{row['expected']:.2%}" if "expected" in row else "-"
            expected = f"{row['expected_low']:.1%} to {row['expected_high']:.1%}" if "expected" in row else "-"
            ends = f"{row['low']:.2%} to {row['high']:.2%}"
            found = f"{row['smallest']:.1%} to {row['largest']:.1%}"
            cells = [row["rule"], f"{row['rate']:.2%}", f"{row['n']:,}", promised, f"{row['mean']:.2%}", ends, found]
            table.add_row(escape(row["category"]), *cells, expected)
        self._out.print(table)

    def update(self, rows: Sequence[dict[str, Any]]) -> None:
        """Print what an update has changed."""
        if self.quiet:
            return
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("category", overflow="fold")
        for header in ("images", "new", "reference", "median before", "after", "AUROC before", "after"):
            table.add_column(header, justify="right", no_wrap=True)
        for row in rows:
            counts = [f"{row.get(name) or 0:,}" for name in ("n_before", "n_new", "n_reference")]
            names = ("median_before", "median_after", "image_auroc_before", "image_auroc_after")
            table.add_row(escape(row["category"]), *counts, *(_number(row.get(name), 3) for name in names))
        self._out.print(table)
        for row in rows:
            if row.get("note"):
                self.warn(f"{row['category']}: {row['note']}")

    def comparison(self, rows: Sequence[dict[str, Any]], categories: Sequence[str], mean: str) -> None:
        """Print the table of a comparison: a line a method and number of shots, a column a category."""
        if self.quiet:
            return
        lines: dict[tuple[str, int | None], dict[str, dict[str, Any]]] = {}
        for row in rows:
            lines.setdefault((row["method"], row["shots"]), {})[row["category"]] = row
        few = any(shots is not None for _, shots in lines)
        for start in range(0, len(categories), CATEGORIES_ACROSS):
            shown = categories[start : start + CATEGORIES_ACROSS]
            last = start + CATEGORIES_ACROSS >= len(categories)
            table = Table(box=None, pad_edge=False, header_style="bold")
            table.add_column("method", no_wrap=True)
            ends = [mean, "pixel", "fit s", "score s", "MB"] if last else []
            for header in [*["shots"] * few, *shown, *ends]:
                table.add_column(header, justify="right", overflow="fold")
            for (method, shots), cells in lines.items():
                whole = cells[mean]
                line = [escape(method)] + [str(shots or "all")] * few
                line += [_number(cells[name]["image_auroc"], 3, "failed") for name in shown]
                if last:
                    line += [_number(whole["image_auroc"], 3), _number(whole["pixel_auroc"], 3)]
                    line += [_number(whole[name], 0) for name in ("fit_seconds", "score_seconds")]
                    line += [_number(whole["model_bytes"] and whole["model_bytes"] / 1e6, 1)]
                table.add_row(*line)
            self._out.print(table)
        self.print("image AUROC of each category and their mean, mean pixel AUROC; seconds and megabytes of all")
        reasons: dict[tuple[str, str], list[str]] = {}
        for row in rows:
            if row["image_auroc"] is None and row["note"] and row["category"] != mean:
                reasons.setdefault((row["method"], row["note"]), []).append(row["category"])
        for (method, note), where in reasons.items():
            named = "" if set(where) == set(categories) else f" on {', '.join(dict.fromkeys(where))}"
            self.print(f"{method} failed{named}: {note}")


class Stage:
    """One stage of a run as it goes: a moving bar at a terminal, a line every so often in a log."""

    def __init__(self, report: Reporter, name: str, total: int, unit: str = "images") -> None:
        self.report, self.name, self.total, self.unit, self.done = report, name, total, unit, 0
        self.bytes_read = self.retries = self.actor_memory = self.actors = 0
        self.first_seconds = 0.0
        self._seen: set[str] = set()
        self._started = self._logged = time.monotonic()
        self._bar: Progress | None = None
        self._task = TaskID(0)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    @property
    def actors_replaced(self) -> int:
        """Of those that have given results, how many there are beyond those that were asked for."""
        return max(0, len(self._seen) - self.actors)

    def show_on(self, bar: Progress) -> None:
        self._bar, self._task = bar, bar.add_task(self.name, total=self.total)

    def expect(self, count: int) -> None:
        """So much more is to be done."""
        self.total += count
        if self._bar is not None:
            self._bar.update(self._task, total=self.total)

    def advance(
        self, count: int, bytes_read: int = 0, retries: int = 0, actor_memory: int = 0, actor: str = ""
    ) -> None:
        """So much more is done; with the bytes read and tasks retried for it, and the actor's peak memory and name."""
        self.first_seconds = self.first_seconds or self.seconds
        self.done += count
        self._seen |= {actor} - {""}
        self.bytes_read += bytes_read
        self.retries += retries
        self.actor_memory = max(self.actor_memory, actor_memory)
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done)
        elif time.monotonic() - self._logged > LOG_EVERY:
            self._logged = time.monotonic()
            rate = self.done / self.seconds
            left = datetime.timedelta(seconds=round((self.total - self.done) / rate)) if rate else "?"
            self.report.line(f"{self.name:<9}{self.done:>8,} of {self.total:,} {self.unit}  {rate:.1f}/s, {left} left")

    def busy_with(self, text: str, *, passing: bool = False) -> None:
        """Work that moves no image forward for a while; ``passing``: one of many, a log need not have them all."""
        if self._bar is not None:
            self._bar.update(self._task, description=f"{self.name} ({text})")
        elif not passing or time.monotonic() - self._logged > LOG_EVERY:
            self._logged = time.monotonic()
            self.report.line(f"{self.name:<9}{text}")


_COUNTS = ("n_train", "n_good", "n_defect", "n_error")


def _number(value: float | None, digits: int, missing: str = "-") -> str:
    return missing if value is None else f"{value:.{digits}f}"
