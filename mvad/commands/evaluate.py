from mvad import storage
from mvad.console import Reporter
from mvad.errors import UsageError
from mvad.options import OutputOptions, Results, takes
from mvad.results.result import Result
from mvad.results.store import read_run, write_summary
from mvad.results.summary import evaluate as summarise


@takes(OutputOptions)
def evaluate(out: Results, options: OutputOptions) -> Result:
    """Recompute the summary of labelled results, and write it.

    Raises
    ------
    UsageError
        OUT holds no results of a run that has ended.

    Examples
    --------
    >>> mvad.evaluate("results", quiet=True).summary[0]["category"]
    'weave'
    """
    target = storage.to_uri(out)
    content = read_run(target)
    if content.get("status") != "done":
        raise UsageError(f"the run in {storage.readable(target)} has not ended; wait for it or run it again.")
    rows, _ = summarise(target, content["categories"])
    summary = write_summary(target, rows)
    Reporter(options.quiet).summary(summary)
    return Result(summary=summary)
