"""What alarms say of a night: as a document for programs, and as text for people."""

from __future__ import annotations

import datetime
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mvad import storage
from mvad.console import Reporter
from mvad.results.printed import NO_IMAGES, STATES, Row, most_anomalous, print_night, state
from mvad.results.result import EXIT_TOO_MANY_ERRORS
from mvad.storage.text import one_printable_line, shown_name
from mvad.version import VERSION

FORMAT = 1  # of the document; it changes if a key goes or means something else
MAX_CATEGORIES = 1000  # in a document: those that need somebody come first if there are more
MAX_ERRORS = 20
MAX_TEXT = 500  # characters of an error or a note
MAX_NAMES, MAX_NAME = 3, 40  # categories of one state in a subject, and characters of each


@dataclass(frozen=True)
class Night:
    """How a night went.

    Attributes
    ----------
    out
        URI of its results.
    rows, facts
        Rows of the summary, one per category, and what ``run.json`` says of the categories; empty if it failed.
    missing
        Categories that were expected and have no image.
    errors
        Unreadable files: image_id, category, split, error.
    failure
        Why it ended before its verdicts were there; None if it did not.
    """

    date: datetime.date
    run_id: str
    exit_code: int
    out: str
    rows: Sequence[Row] = ()
    facts: Mapping[str, Row] = field(default_factory=dict)
    missing: Sequence[str] = ()
    errors: Sequence[Mapping[str, Any]] = ()
    failure: str | None = None

    @property
    def states(self) -> dict[str, str]:
        """The printed state of each category, in the order of the table."""
        return {row["category"]: state(row) for row in self.rows} | dict.fromkeys(self.missing, NO_IMAGES)


def document(night: Night) -> dict[str, Any]:
    """The document that programs get, as plain values of bounded size."""
    categories = verdicts(night)
    if len(categories) > MAX_CATEGORIES:
        categories.sort(key=lambda verdict: -STATES.index(verdict["state"]))
    worst = [
        {name: image[name] for name in ("image_id", "category", "score", "p_value", "threshold", "verdict")}
        for image in most_anomalous(night.rows, night.facts)
    ]
    errors = [
        {"image_id": error["image_id"], "category": error["category"], "error": error["error"][:MAX_TEXT]}
        for error in night.errors[:MAX_ERRORS]
    ]
    return {
        "format": FORMAT,
        "mvad": VERSION,
        "night": night.date.isoformat(),
        "run_id": night.run_id,
        "exit_code": night.exit_code,
        "failure": night.failure,
        "results": storage.readable(night.out),
        "n_categories": len(categories),
        "categories": categories[:MAX_CATEGORIES],
        "worst": worst,
        "n_errors": len(night.errors),
        "errors": errors,
    }


def verdicts(night: Night) -> list[dict[str, Any]]:
    """What is said of each category: `_VERDICT`."""
    nothing = {**dict.fromkeys(_VERDICT), "state": NO_IMAGES, "images": 0}
    return [_verdict(row) for row in night.rows] + [nothing | {"category": name} for name in night.missing]


_VERDICT = ("category", "state", "images", "flagged", "uncertain", "errors", "drift", "note")


def _verdict(row: Row) -> dict[str, Any]:
    drift = None
    if row["drifted"] is not None:
        names = {"drifted": "drifted", "median_shift": "drift_median_shift", "p_value": "drift_p_value"}
        drift = {name: row[column] for name, column in names.items()}
    decided = row["n_scored"] and row["threshold"] is not None
    values = (
        *(row["category"], state(row), row["n_scored"] + row["n_error"], row["n_flagged"] if decided else None),
        *(row["n_uncertain"], row["n_error"], drift, (row["note"] or "")[:MAX_TEXT] if not row["n_scored"] else None),
    )
    return dict(zip(_VERDICT, values, strict=True))


def subject(night: Night) -> str:
    """The night in one line, such as "mvad: night of 2026-11-23: LOOK (weave), DRIFT (plate)"."""
    if night.failure is not None:
        return f"mvad: night of {night.date}: FAILED"
    parts = []
    for word in STATES[1:]:
        names = [name for name, state in night.states.items() if state == word]
        if names:
            shown = [one_printable_line(shown_name(name))[:MAX_NAME] for name in names[:MAX_NAMES]]
            more = [f"{len(names) - MAX_NAMES:,} more"] if len(names) > MAX_NAMES else []
            parts.append(f"{word} ({', '.join([*shown, *more])})")
    if night.exit_code == EXIT_TOO_MANY_ERRORS:
        parts.append("too many errors")
    return f"mvad: night of {night.date}: {', '.join(parts) or STATES[0]}"


def text(night: Night) -> str:
    """The night as it is printed, in lines."""
    lines = io.StringIO()
    report = Reporter(out=lines)
    report.result(f"night of {night.date}: exit code {night.exit_code}")
    if night.failure is not None:
        report.result(f"It failed: {night.failure}")
    else:
        print_night(report, night.rows, night.facts, night.out, night.missing)
    for error in night.errors[:MAX_ERRORS]:
        report.result(f"error: {error['image_id']!r}: {error['error'][:MAX_TEXT]}")
    if len(night.errors) > MAX_ERRORS:
        report.result(f"and {len(night.errors) - MAX_ERRORS:,} more files that could not be used")
    report.result(f"results in {storage.readable(night.out)}")
    return lines.getvalue()
