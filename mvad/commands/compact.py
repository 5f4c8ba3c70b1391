from typing import Annotated, NamedTuple

from typer import Argument

from mvad import storage
from mvad.console import Reporter, plural
from mvad.errors import UsageError
from mvad.nights import compaction
from mvad.options import CompactOptions, takes
from mvad.results.nights import list_nights, read_day


class CompactResult(NamedTuple):
    """What `compact` did: nights whose files it joined, nights that it left alone, and their files of score rows."""

    n_joined: int
    left_alone: list[str]
    files_before: int
    files_after: int
    problems: list[str]


@takes(CompactOptions)
def compact(
    nights: Annotated[
        str, Argument(metavar="NIGHTS", help="Folder of nights, or of the results of one run; a path or a URI.")
    ],
    options: CompactOptions,
) -> CompactResult:
    """Join the many small files of score rows of nights that have ended; no row is changed, and it is safe to repeat.

    Each category of a night gets one file, or one per 100,000 images, sorted by image. A night whose run has not ended
    is left alone; do not begin a run into a night while its files are joined.

    Raises
    ------
    UsageError
        There are no nights in NIGHTS, or a file on the disk does not hold what was written to it.

    Examples
    --------
    >>> mvad.compact("nights", quiet=True).left_alone
    []
    """
    report, root, before = Reporter(options.quiet), storage.to_uri(nights), read_day("before", options.before)
    dates = list_nights(root)
    chosen = [night for night, date in dates.items() if before is None or date < before]
    if not dates and storage.exists(storage.join(root, "run.json")):
        chosen = [root]
    elif not dates:
        raise UsageError(f"no nights in {storage.readable(root)}; make some with mvad nightly.")
    finished, done = [night for night in chosen if compaction.is_finished(night)], []
    with report.stage("compact", len(finished), unit="nights") as stage:
        for night in finished:
            done.append(compaction.compact_night(night))
            stage.advance(1)
    left = [storage.readable(night) for night in chosen if night not in finished]
    problems = [problem for night in done for problem in night.problems]
    for line in [*(f"{night} is left alone: its run has not ended" for night in left), *problems]:
        report.warn(line)
    n_before, n_after = sum(night.files_before for night in done), sum(night.files_after for night in done)
    report.result(f"{plural(n_before, 'file')} of score rows became {n_after:,}, in {plural(len(done), 'night')}")
    return CompactResult(sum(night.rows > 0 for night in done), left, n_before, n_after, problems)
