"""What a person sees: one line per stage at a terminal, plain lines in a job's log, tables at the end."""

from __future__ import annotations

import datetime
import functools
import json
import math
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
from rich import progress
from rich.cells import cell_len, chop_cells
from rich.console import Console, ConsoleOptions
from rich.measure import Measurement
from rich.table import Table

from mvad import storage
from mvad.data.description import describe_left_out, describe_others
from mvad.runtime.telemetry import log, peak_memory
from mvad.storage.text import one_printable_line, printable_json, shown_name

if TYPE_CHECKING:
    from mvad.data.listing import Listing
    from mvad.data.manifest import Manifest
    from mvad.runtime.stage_totals import StageTotals

AS_IT_IS: dict[str, Any] = {"highlight": False, "markup": False, "emoji": False}  # ``[b]`` and ``:OK:`` may be names
INDENT = "  "
LOG_INTERVAL_S = 30.0
MAX_SHOWN_ERRORS = 5
WIDTH = 100  # columns of text, if standard output is not a terminal


def as_document(result: Any) -> str:
    """What a command returns as JSON text; numbers that are not finite, of which JSON knows none, are null."""
    return printable_json(json.dumps(_plain(result), indent=2, ensure_ascii=False, allow_nan=False))


def _plain(value: Any) -> Any:
    if hasattr(value, "document"):
        return _plain(value.document())
    if hasattr(value, "_asdict"):
        return _plain(value._asdict())
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value


class _Name:
    """A name in a table: where it does not fit on a line it goes on indented, and so is no line of its own."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(1 + len(INDENT), max(cell_len(self.text), 1))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[str]:
        if cell_len(self.text) <= options.max_width:
            yield self.text
        else:
            yield ("\n" + INDENT).join(chop_cells(self.text, max(1, options.max_width - len(INDENT))))


class Reporter:
    """Progress to standard error, results to ``out`` (standard output); nothing but warnings if ``quiet``.

    Attributes
    ----------
    stages
        What each stage that has ended did: images, seconds, ``first_seconds`` until the first image was done,
        ``bytes_read`` (of files that could be decoded), ``peak_memory`` (resident, in bytes, of the driver so far and
        of any one actor), ``actors``, ``actors_replaced`` (actors that worked in place of lost ones), and
        ``tasks_retried`` (how often decode and write tasks were started again).
    """

    def __init__(self, quiet: bool = False, out: TextIO | None = None) -> None:
        self.quiet = quiet
        self.stages: dict[str, dict[str, Any]] = {}
        self._err = Console(stderr=True, soft_wrap=True, **AS_IT_IS)
        is_terminal = None if out is None else False  # rich may take it for one because of FORCE_COLOR
        width = WIDTH if out or not sys.stdout.isatty() else None
        self._out = Console(file=out, width=width, force_terminal=is_terminal, **AS_IT_IS)

    def info(self, text: str) -> None:
        """Print a line of progress."""
        if not self.quiet:
            self._err.print(one_printable_line(text))

    def warn(self, text: str) -> None:
        """Print a warning, also if quiet."""
        self._err.print(f"warning: {one_printable_line(text)}")

    def result(self, text: str) -> None:
        """Print a line of the result."""
        if not self.quiet:
            self._out.print(one_printable_line(text), soft_wrap=True)

    def image_count(self, images: Manifest | Listing) -> None:
        """Say what was understood of DATA: how many images of which kinds each category has, and what is left out."""
        categories = plural(len(images.categories), "category", "categories")
        self.info(f"{plural(images.n_images, 'image')} of {categories} in {storage.readable(images.root)}")
        for line in images.tally.lines(images.remarks):
            self.info(line)
        if images.others:
            self.info(describe_others(images.others))
        if len(images.left_out):
            self.warn(f"{plural(len(images.left_out), 'file')} left out:")
            for reason in describe_left_out(images.left_out):
                self.warn(f"  {reason}")

    def table(
        self, names: Sequence[str], numbers: Sequence[str], rows: Iterable[Sequence[str]], texts: Sequence[str] = ()
    ) -> None:
        """Print a table: columns of names, which may be folded, then of numbers, which are not, then of texts."""
        if self.quiet:
            return
        table = Table(box=None, pad_edge=False, header_style="bold")
        for header in names:
            table.add_column(header, overflow="fold")
        for header in map(shown_name, numbers):  # in a comparison, the names of categories
            table.add_column(header, justify="right", no_wrap=True)
        for header in texts:
            table.add_column(header, overflow="fold")
        for row in rows:
            shown = [_Name(one_printable_line(shown_name(name))) for name in row[: len(names)]]
            table.add_row(*shown, *map(one_printable_line, row[len(names) :]))
        self._out.print(table)

    @contextmanager
    def stage(self, name: str, total: int, unit: str = "images") -> Iterator[Stage]:
        """Show a stage of ``total`` images, or other units, while it lasts, and leave one line of what it did."""
        bar = self._bar(unit) if self._err.is_terminal and not self.quiet else None
        stage = Stage(self, name, total, unit, bar)
        with nullcontext() if bar is None else bar:
            yield stage
        seconds = stage.seconds
        self.info(f"{name:<9}{stage.done:>8,} {unit} in {seconds:.1f} s  ({stage.done / max(seconds, 1e-9):.1f}/s)")
        self.stages[name] = {unit: stage.done, "seconds": round(seconds, 3)} | stage.facts()
        log("stage", stage=name, **self.stages[name])

    def _bar(self, unit: str) -> progress.Progress:
        return progress.Progress(
            progress.TextColumn("{task.description:<9}", markup=False),
            progress.BarColumn(bar_width=30),
            progress.MofNCompleteColumn(),
            progress.TextColumn(unit),
            progress.TimeElapsedColumn(),
            progress.TimeRemainingColumn(),
            console=self._err,
            transient=True,
        )

    def errors(self, errors: Sequence[dict[str, str]], place: str = "scores/ (status = 'error')") -> None:
        """Name the first few unreadable files and count the rest; ``place`` is where all are named."""
        if not errors:
            return
        self.warn(f"{plural(len(errors), 'file')} could not be used:")
        for entry in errors[:MAX_SHOWN_ERRORS]:
            self.warn(f"  {entry['image_id']!r}: {entry['error']}")
        if len(errors) > MAX_SHOWN_ERRORS:
            self.warn(f"  and {len(errors) - MAX_SHOWN_ERRORS:,} more, all in {place}")


def number(value: float | None, digits: int, missing: str = "-") -> str:
    """A number as the cell of a table."""
    return missing if value is None else f"{value:.{digits}f}"


def plural(count: int, noun: str, nouns: str | None = None) -> str:
    """A count with its noun, as "1 category" or "2 categories"."""
    return f"{count:,} {noun if count == 1 else nouns or noun + 's'}"


class Stage:
    """One stage of a run: a moving bar at a terminal, a line every so often in a log."""

    def __init__(self, report: Reporter, name: str, total: int, unit: str, bar: progress.Progress | None) -> None:
        self.report, self.name, self.total, self.unit = report, name, total, unit
        self.done = 0
        self.actors = 0  # that were asked for
        self.first_seconds = 0.0
        self._started = self._logged = time.monotonic()
        self._bar = bar
        self._task = progress.TaskID(0) if bar is None else bar.add_task(name, total=total)

    @functools.cached_property
    def totals(self) -> StageTotals:
        """What actors and tasks report of their work."""
        from mvad.runtime.stage_totals import StageTotals

        return StageTotals(self.name)

    def facts(self) -> dict[str, Any]:
        """What ``run.json`` says of the stage besides images and seconds."""
        facts: dict[str, Any] = {"first_seconds": round(self.first_seconds, 3)}
        if "totals" not in vars(self):
            return facts
        totals = self.totals.get()
        return facts | {
            "bytes_read": totals.bytes_read,
            "peak_memory": {"driver": peak_memory(), "actor": totals.actor_memory},
            "actors": self.actors,
            "actors_replaced": max(0, len(totals.actors) - self.actors),
            "tasks_retried": totals.tasks_retried,
        }

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def expect(self, count: int) -> None:
        """So many more are to be done."""
        self.total += count
        if self._bar is not None:
            self._bar.update(self._task, total=self.total)

    def advance(self, count: int) -> None:
        """So many more are done."""
        self.first_seconds = self.first_seconds or self.seconds
        self.done += count
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done)
        elif time.monotonic() - self._logged > LOG_INTERVAL_S:
            self._logged = time.monotonic()
            rate = self.done / self.seconds
            time_left = datetime.timedelta(seconds=round((self.total - self.done) / rate)) if rate else "?"
            self.report.info(
                f"{self.name:<9}{self.done:>8,} of {self.total:,} {self.unit}  {rate:.1f}/s, {time_left} left"
            )

    def busy_with(self, text: str, *, passing: bool = False) -> None:
        """Show work that completes no image for a while; if ``passing``, it is one of many and may be left out."""
        if self._bar is not None:
            self._bar.update(self._task, description=one_printable_line(f"{self.name} ({text})"))
        elif not passing or time.monotonic() - self._logged > LOG_INTERVAL_S:
            self._logged = time.monotonic()
            self.report.info(f"{self.name:<9}{text}")
