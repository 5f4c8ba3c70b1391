"""Choose options for each category, and fit models that each have options of their own."""

import json
import time
from collections.abc import Hashable, Sequence
from contextlib import suppress
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from mvad import storage
from mvad.console import Reporter
from mvad.errors import ModelError, UsageError
from mvad.fitting import FitJob, FitOutcome, fit_models, load_network, resolve_backbone
from mvad.fitting.fitted import identify
from mvad.fitting.jobs import digest
from mvad.model_store import stored_model
from mvad.pipeline.bit_depths import measure_bit_depths
from mvad.tuning.candidates import CANDIDATES, extraction_key, with_changes
from mvad.tuning.record import Entry, entry_of, print_record, read_record, write_record
from mvad.tuning.search import CategorySearch


def tune_jobs(train: pa.Table, jobs: Sequence[FitJob], budget: float, report: Reporter) -> list[FitJob]:
    """The same jobs with the options that suit each category best: `search.CategorySearch`.

    What was chosen is written to ``tuning.json`` in the folder of the models, category by category. A choice that is
    there already, of the same images, options and candidates, is kept, unless time ran out then and there is more now.

    Parameters
    ----------
    train
        The manifest's rows of the training images.
    budget
        Seconds for all categories together. It decides how many candidates are tried, and nothing else.

    Raises
    ------
    UsageError
        There is a model already of a category that has no such choice.
    """
    folder, new = jobs[0].models, jobs[0].options.new_run
    earlier = _earlier(jobs) if new else read_record(folder)
    ids = {job.category: _tuning_id(job) for job in identify(jobs, train)}
    is_kept = {job.category: _is_kept(earlier.get(job.category), ids[job.category], budget) for job in jobs}
    for job in jobs if not new else ():
        if not is_kept[job.category] and _has_model(job):
            raise UsageError(
                f"{storage.readable(folder)} has a {job.options.method} model of {job.category!r} already, that was "
                "not tuned like this; add --new-run to replace it."
            )
    entries, deadline = dict(earlier), time.monotonic() + budget
    to_tune = [job for job in jobs if not is_kept[job.category]]
    if to_tune:
        bit_depths = measure_bit_depths(train, jobs[0].options)
        with report.stage("tune", 0, unit="candidates") as stage:
            for number, job in enumerate(to_tune):
                now = time.monotonic()
                is_own = pc.equal(train["category"], job.category)
                others = train.filter(pc.invert(is_own))["uri"].to_pylist()
                search = CategorySearch(job, train.filter(is_own), others, bit_depths, stage)
                choice = search.run(now + (deadline - now) / (len(to_tune) - number))
                entries[job.category] = entry_of(choice, ids[job.category], budget)
                write_record(folder, entries)
    print_record({job.category: entries[job.category] for job in jobs}, report)
    return [_with_choice(job, entries[job.category]) for job in jobs]


def _has_model(job: FitJob) -> bool:
    try:
        return stored_model(job.models, job.options.method, job.category) is not None
    except ModelError:  # damaged: nothing is lost by replacing it
        return False


def _earlier(jobs: Sequence[FitJob]) -> dict[str, Entry]:
    """What is recorded of categories that are not fitted again."""
    with suppress(UsageError):  # a damaged record is replaced
        fitted_again = {job.category for job in jobs}
        return {name: entry for name, entry in read_record(jobs[0].models).items() if name not in fitted_again}
    return {}


def _tuning_id(job: FitJob) -> str:
    """What a choice depends on: what the model does, and the candidates."""
    return digest([job.fit_id, json.dumps(CANDIDATES[job.options.method])])


def _is_kept(entry: Entry | None, tuning_id: str, budget: float) -> bool:
    if entry is None or entry["tuning_id"] != tuning_id:
        return False
    return not entry["not_tried"] or budget <= entry["budget"]


def _with_choice(job: FitJob, entry: Entry) -> FitJob:
    return replace(job, options=with_changes(job.options, entry["chosen"])) if entry["chosen"] else job


def fit_each(
    train: pa.Table, jobs: Sequence[FitJob], report: Reporter, *, refit: bool = False
) -> tuple[list[FitOutcome], list[FitJob]]:
    """Fit jobs of different options as `fitting.fit_models` does: jobs with equal features together.

    Returns the outcomes in the order of the jobs, and the jobs, each with the network that its options need.
    """
    groups: dict[Hashable, list[int]] = {}
    for number, job in enumerate(jobs):
        groups.setdefault(extraction_key(job.options), []).append(number)
    fitted = list(jobs)
    outcomes: dict[int, FitOutcome] = {}
    for numbers in groups.values():
        network, options = jobs[numbers[0]].network, jobs[numbers[0]].options
        network = network if network.spec == resolve_backbone(options) else load_network(options)
        for number in numbers:
            fitted[number] = replace(jobs[number], network=network)
        found = fit_models(train, [fitted[number] for number in numbers], report, refit=refit)
        outcomes |= dict(zip(numbers, found, strict=True))
    return [outcomes[number] for number in range(len(jobs))], fitted
