import datetime
from typing import Annotated

from typer import Option

from mvad import storage
from mvad.alarms import Alarms
from mvad.commands import score as scoring
from mvad.console import Reporter
from mvad.errors import UsageError
from mvad.options import Models, NightlyOptions, takes
from mvad.results.nights import night_folder, read_day
from mvad.results.printed import print_night
from mvad.results.result import EXIT_DONE, Result
from mvad.results.store import read_run

RETRY_WITHIN = datetime.timedelta(hours=20)  # less than a day: the run of the next night is no retry


@takes(NightlyOptions)
def nightly(
    dump: Annotated[str, Option(help="The night's folder of images; a path or a URI.")],
    models: Models,
    out: Annotated[str, Option(help="Folder of all nights' results; a path or a URI.")],
    date: Annotated[
        str | None,
        Option(help="The night's date, as 2026-11-23.", show_default="an unfinished night's, else today"),
    ] = None,
    *,
    options: NightlyOptions,
) -> Result:
    """Score a night's images into OUT/date=DATE and print one line per category: OK, LOOK or DRIFT; safe to repeat.

    Returns
    -------
    The result of `score`; its exit code is 4 instead of 0 if the scores of a whole category have drifted, so that its
    verdicts should not be believed before somebody has looked.

    Raises
    ------
    UsageError
        As for `score`; or ``date`` is not a date, or nobody can be told as the alarms ask.

    Examples
    --------
    >>> options = {"category": "weave", "limit": 4, "quiet": True}
    >>> mvad.nightly("sample/weave/test", "models", "nights", "2026-11-23", **options).errors
    []
    """
    folder = storage.to_uri(out)
    day = read_day("date", date or None)
    day, reason = (day, "") if day else choose_date(folder, dump, datetime.datetime.now().astimezone())
    report, target = Reporter(options.quiet), night_folder(folder, day)
    alarms = Alarms(options, day, target, report)
    report.result(f"night of {day.isoformat()}{reason}")
    expected = options.expected_categories
    with alarms.on_failure():
        result = scoring.score_missing(
            dump,
            models,
            target,
            options,
            night=day,
            expected=expected,
            print_table=print_night,
            begun=alarms.begun,
        )
    alarms.send(result)
    return result


def choose_date(out: str, dump: str, now: datetime.datetime) -> tuple[datetime.date, str]:
    """The date of a night that nobody has named, and why it is that.

    A night in OUT (a URI) that was begun from the same dump and has not ended well is gone on with, although midnight
    has passed since or another machine's is still to come. Otherwise the date is that of ``now``, in
    its time zone.
    """
    for days in (1, 0, -1, -2):
        day = now.date() + datetime.timedelta(days)
        begun = _begun(night_folder(out, day), storage.readable(storage.to_uri(dump)))
        if begun is not None and now - begun < RETRY_WITHIN:
            return day, f" (begun at {begun.astimezone(now.tzinfo):%Y-%m-%d %H:%M} and not done)"
    return now.date(), f" (today in the time zone of this machine, {now:%Z})"


def _begun(night: str, dump: str) -> datetime.datetime | None:
    """When a night of this dump was begun; None if it has ended, or there is none."""
    try:
        content = read_run(night)
        if content["data"] != dump:
            return None
        if content["status"] != "running" and (content["status"] != "done" or content["exit_code"] == EXIT_DONE):
            return None
        first = [*content.get("earlier_runs", []), content][0]
        return datetime.datetime.fromisoformat(first["started"])
    except (UsageError, KeyError, TypeError, ValueError):  # there is no such night, or its run.json is damaged
        return None
