"""The night's run: score a dump into a folder of its date, and say in one line a category what came of it."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

from mvad import storage
from mvad.console import Reporter
from mvad.errors import UsageError
from mvad.pipeline import flow as pipeline
from mvad.results.run_record import EXIT_DONE, Result
from mvad.results.summary import MEAN

EXIT_DRIFTED = 4


def nightly(dump: str, models: str, out: str, date: str | None = None, **options: Any) -> Result:
    """Score the images under ``dump`` into ``OUT/date=<date>``; options as in `options.ScoreOptions`.

    Run again, it takes up what is missing, as `pipeline.score` does; so a scheduler may repeat it.

    Parameters
    ----------
    date
        As 2026-11-23; default: today's.

    Returns
    -------
    A result whose exit code is that of `pipeline.score`; or, where that is 0, 4 if the scores of a category as a whole
    have moved, so that its verdicts should not be believed before somebody has looked.

    Raises
    ------
    UsageError
        As for `pipeline.score`; or the date is none.
    """
    try:
        day = datetime.date.fromisoformat(date) if date else datetime.date.today()
    except ValueError:
        raise UsageError(f"--date {date!r} is not a date such as 2026-11-23.") from None
    report = Reporter(options.get("quiet", False))
    place = storage.join(storage.to_uri(out), f"date={day.isoformat()}")
    result = pipeline.score(dump, models, place, **options)
    rows = [row for row in result.summary if row["category"] != MEAN]
    for row in rows:
        report.print(verdict(day, row))
    if result.exit_code == EXIT_DONE and any(row["drifted"] for row in rows):
        result.exit_code = EXIT_DRIFTED
    return result


def verdict(day: datetime.date, row: Mapping[str, Any]) -> str:
    """One line on a category, from its row of the summary."""
    begin = f"{day.isoformat()} {row['category']}:"
    scored, errors = row["n_scored"], f", {row['n_error']:,} unreadable" if row["n_error"] else ""
    if not scored:
        return f"{begin} NOT SCORED ({row['note']}){errors}"
    if row["threshold"] is None:
        return f"{begin} {scored:,} images scored, no verdicts (the model is not calibrated){errors}"
    flagged = f"{row['n_flagged']:,} of {scored:,} images flagged ({row['n_flagged'] / scored:.1%}){errors}"
    if row["drifted"]:
        return f"{begin} MOVED, look at camera and light first; {flagged}"
    return f"{begin} {'OK' if not row['n_flagged'] else 'LOOK'}, {flagged}"
