import datetime
from collections.abc import Mapping
from typing import Annotated, Any

from typer import Option

from mvad import storage
from mvad.commands import score as scoring
from mvad.console import Reporter, plural
from mvad.errors import UsageError
from mvad.options import Models, NightlyOptions, takes
from mvad.results.result import EXIT_DONE, EXIT_DRIFTED, Result
from mvad.results.summary import MEAN


@takes(NightlyOptions)
def nightly(
    dump: Annotated[str, Option(help="The night's folder of images; a path or a URI.")],
    models: Models,
    out: Annotated[str, Option(help="Folder of all nights' results; a path or a URI.")],
    date: Annotated[str | None, Option(help="The night's date, as 2026-11-23.", show_default="today")] = None,
    *,
    options: NightlyOptions,
) -> Result:
    """Score a night's images into OUT/date=DATE and print one line per category; safe to repeat.

    Returns
    -------
    The result of `score`; its exit code is 4 instead of 0 if the scores of a whole category have drifted, so that its
    verdicts should not be believed before somebody has looked.

    Raises
    ------
    UsageError
        As for `score`; or ``date`` is not a date.

    Examples
    --------
    >>> options = {"category": "weave", "limit": 4, "quiet": True}
    >>> mvad.nightly("sample/weave/test", "models", "nights", "2026-11-23", **options).errors
    []
    """
    try:
        day = datetime.date.fromisoformat(date) if date else datetime.date.today()
    except ValueError:
        raise UsageError(f"--date {date!r} is not a date such as 2026-11-23.") from None
    report = Reporter(options.quiet)
    target = storage.join(storage.to_uri(out), f"date={day.isoformat()}")
    result = scoring.score(dump, models, target, options=options)
    rows = [row for row in result.summary if row["category"] != MEAN]
    for row in rows:
        report.result(verdict(day, row))
    if result.exit_code == EXIT_DONE and any(row["drifted"] for row in rows):
        result.exit_code = EXIT_DRIFTED
    return result


def verdict(day: datetime.date, row: Mapping[str, Any]) -> str:
    """One line about a category, from its row of the summary."""
    start, n_scored = f"{day.isoformat()} {row['category']}:", row["n_scored"]
    errors = f", {row['n_error']:,} unreadable" if row["n_error"] else ""
    if not n_scored:
        return f"{start} NOT SCORED ({row['note']}){errors}"
    if row["threshold"] is None:
        return f"{start} {plural(n_scored, 'image')} scored, no verdicts: the model is not calibrated{errors}"
    flagged = f"{row['n_flagged']:,} of {plural(n_scored, 'image')} flagged ({row['n_flagged'] / n_scored:.1%}){errors}"
    if row["drifted"]:
        return f"{start} DRIFT: the whole batch scores differently; check camera and light first; {flagged}"
    return f"{start} {'LOOK' if row['n_flagged'] else 'OK'}, {flagged}"
