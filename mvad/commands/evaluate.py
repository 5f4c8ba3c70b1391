from typing import Any

from mvad import nights, storage
from mvad.console import Reporter
from mvad.data.manifest import require_categories
from mvad.errors import UsageError
from mvad.options import DecisionOptions, EvaluateOptions, Results, build, takes
from mvad.results.nights import list_nights
from mvad.results.printed import print_summary
from mvad.results.result import EXIT_DONE, EXIT_TOO_MANY_ERRORS, Result
from mvad.results.store import DECIDING, read_finished_run, write_json, write_run, write_summary
from mvad.results.summary import evaluate as summarise
from mvad.results.verdicts import decide_again, rules_again


@takes(EvaluateOptions)
def evaluate(out: Results, options: EvaluateOptions) -> Result:
    """Recompute the summary of results; with a rate, a rule or a threshold, decide on their images again first.

    Nothing is scored: stored scores and p-values are enough, or for some rules the models. What is not given stays as
    it was decided before. If it was interrupted while it decided, calling it again finishes that. A category of which a
    file of rows is damaged has a note that names the file, and the exit code is 3.

    If OUT is a folder of nights, the result is what reviewers' labels tell of them instead: precision and recall by
    category and week, estimated with intervals; with ``cost`` also the thresholds that would cost least.

    Raises
    ------
    UsageError
        OUT holds no results of a run that has ended; or the scores are not enough to decide as asked.

    Examples
    --------
    >>> mvad.evaluate("results", quiet=True).summary[0]["category"]
    'weave'
    >>> mvad.evaluate("results", false_alarm_rate=0.05, quiet=True).summary[0]["threshold"] is None
    False
    """
    report, target = Reporter(options.quiet), storage.to_uri(out)
    if list_nights(target) or options.cost is not None:
        if options.decides:
            raise UsageError("decide again on one night at a time: mvad evaluate NIGHTS/date=DATE.")
        return Result(EXIT_DONE, nights.evaluate_nights(target, options.cost, report))
    content = read_finished_run(target, undecided=True)
    decides = options.decides or content["status"] == DECIDING
    if decides:
        _decide(target, content, options, report)
    rows, _ = summarise(target, content["categories"])
    summary = write_summary(target, rows)
    if decides:
        write_json(storage.join(target, "run.json"), content | {"status": "done"})
    damaged = any(facts.get("damage") for facts in content["categories"].values())
    if content.get("exit_code") == EXIT_DONE and not damaged:
        storage.write(storage.join(target, "_SUCCESS"), b"")
    print_summary(report, summary, content["categories"], target)
    return Result(EXIT_TOO_MANY_ERRORS if damaged else EXIT_DONE, summary)


def _decide(target: str, content: dict[str, Any], options: EvaluateOptions, report: Reporter) -> None:
    """Rewrite the verdicts of the rows, and what ``run.json``, of which ``content`` is changed, says of decisions.

    First ``run.json`` says that rows are being rewritten, and how, so that nobody takes a mixture for results.
    """
    earlier, values = content["options"], options.decision(content["options"])
    if earlier.get("uncertain_rate") is not None and values["uncertain_rate"] is None:
        report.info(f"--uncertain-rate {earlier['uncertain_rate']:g} ends: the false-alarm rate is as high")
    decision = build(DecisionOptions, {name: value for name, value in values.items() if name != "fdr"})
    require_categories(decision.threshold_categories, content["categories"], target)
    models = storage.to_uri(options.models) if options.models else None
    rules = rules_again(target, content["categories"], decision, models)
    content |= {"status": DECIDING, "options": earlier | values}
    if content.get("identity"):
        content["identity"] |= values
    write_run(target, content)
    decide_again(target, content["categories"], rules, values["fdr"])
