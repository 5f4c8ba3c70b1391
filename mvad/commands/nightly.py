import datetime
from typing import Annotated

from typer import Option

from mvad import storage
from mvad.commands import score as scoring
from mvad.console import Reporter
from mvad.errors import UsageError
from mvad.options import Models, NightlyOptions, takes
from mvad.results.printed import print_night
from mvad.results.result import Result


@takes(NightlyOptions)
def nightly(
    dump: Annotated[str, Option(help="The night's folder of images; a path or a URI.")],
    models: Models,
    out: Annotated[str, Option(help="Folder of all nights' results; a path or a URI.")],
    date: Annotated[str | None, Option(help="The night's date, as 2026-11-23.", show_default="today")] = None,
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
    target = storage.join(storage.to_uri(out), f"date={day.isoformat()}")
    Reporter(options.quiet).result(f"night of {day.isoformat()}")
    return scoring.score_missing(
        dump, models, target, options, expected=options.expected_categories, print_table=print_night
    )
