"""What a person sees: one calm line a stage at a terminal, plain lines in a job's log, tables at the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

LOG_EVERY = 30.0  # seconds
SHOWN_ERRORS = 5
WIDTH = 100


class Reporter:
    """Progress to standard error, results to standard output; nothing but warnings if ``quiet``."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self._err = Console(stderr=True, highlight=False, soft_wrap=True)
        self._out = Console(highlight=False, width=WIDTH if not sys.stdout.isatty() else None)

    def line(self, text: str) -> None:
        if not self.quiet:
            self._err.print(escape(text))

    def warn(self, text: str) -> None:
        self._err.print(f"warning: {escape(text)}")

    def print(self, text: str) -> None:
        if not self.quiet:
            self._out.print(escape(text), soft_wrap=True)

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show a stage of ``total`` images; the function given tells how many more are done."""
        started = time.monotonic()
        done, logged = 0, started

        def advance(count: int) -> None:
            nonlocal done, logged
            done += count
            if bar is not None:
                bar.update(task, completed=done)
            elif time.monotonic() - logged > LOG_EVERY:
                logged = time.monotonic()
                self.line(f"{name:<9}{done:>8,} of {total:,} images  {done / (logged - started):.1f}/s")

        bar = self._bar() if self._err.is_terminal and not self.quiet else None
        if bar is None:
            yield advance
        else:
            with bar:
                task = bar.add_task(name, total=total)
                yield advance
        seconds = time.monotonic() - started
        self.line(f"{name:<9}{done:>8,} images in {seconds:.1f} s  ({done / max(seconds, 1e-9):.1f}/s)")

    def _bar(self) -> Progress:
        return Progress(
            TextColumn("{task.description:<9}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("images"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._err,
            transient=True,
        )

    def errors(self, errors: Sequence[dict[str, str]]) -> None:
        """Name the first few unreadable files and count the rest."""
        if not errors:
            return
        self.warn(f"{len(errors):,} file{'s' if len(errors) > 1 else ''} could not be used:")
        for entry in errors[:SHOWN_ERRORS]:
            self.warn(f"  {entry['image_id']!r}: {entry['error']}")
        if len(errors) > SHOWN_ERRORS:
            self.warn(f"  and {len(errors) - SHOWN_ERRORS:,} more, all in scores/ (status = 'error')")

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


_COUNTS = ("n_train", "n_good", "n_defect", "n_error")


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
