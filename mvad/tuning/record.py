"""``tuning.json``: what was tried for each category, what was chosen, and why; and the same as a table."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mvad import storage
from mvad.console import Reporter, plural
from mvad.errors import UsageError
from mvad.model_checks import MAX_DOCUMENT_BYTES
from mvad.storage.text import shown_name
from mvad.tuning.figures import Figures
from mvad.tuning.search import Choice, in_words

NAME = "tuning.json"
FORMAT = 1

Entry = dict[str, Any]  # of a category


def read_record(folder: str) -> dict[str, Entry]:
    """What ``tuning.json`` in a folder (a URI) says, by category; empty if there is none.

    UsageError if it is damaged.
    """
    uri = storage.join(folder, NAME)
    if not storage.exists(uri):
        return {}
    try:
        content = json.loads(storage.read_bytes(uri, MAX_DOCUMENT_BYTES))
        if content["format"] != FORMAT:
            raise ValueError(f"it has format {content['format']}")
        entries = {str(name): dict(entry) for name, entry in content["categories"].items()}
        for entry in entries.values():
            _ = entry["tuning_id"], float(entry["budget"]), list(entry["not_tried"]), dict(entry["chosen"])
        return entries
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{storage.readable(uri)} is damaged ({error}); remove it, or add --new-run.") from error


def write_record(folder: str, entries: Mapping[str, Entry]) -> None:
    """Write ``tuning.json`` to a folder (a URI)."""
    content = {"format": FORMAT, "categories": dict(sorted(entries.items()))}
    storage.write(storage.join(folder, NAME), json.dumps(content, indent=2).encode())


def entry_of(choice: Choice, tuning_id: str, budget: float) -> Entry:
    """What is recorded of a choice; ``budget`` is of all categories, in seconds."""
    return {
        "tuning_id": tuning_id,
        "method": choice.options.method,
        "seed": choice.options.seed,
        "budget": budget,
        "seconds": round(choice.seconds, 3),
        "n_fit": choice.n_fit,
        "n_held_out": choice.n_held_out,
        "n_defective": choice.n_defective,
        "note": choice.note,
        "chosen": dict(choice.changes),
        "not_tried": [dict(changes) for changes in choice.not_tried],
        "candidates": [
            {
                "changes": dict(tried.changes),
                "input": str(tried.size),
                "bank": tried.cost.bank,
                **_numbers(tried.figures, choice.tried[0].figures),
                "seconds": round(tried.seconds, 3),
            }
            for tried in choice.tried
        ],
    }


def _numbers(figures: Figures, given: Figures) -> dict[str, float | None]:
    low, high = figures.interval()
    less, more = figures.interval(given)
    numbers = {
        "image_auroc": figures.image_auroc[0],
        "pixel_ap": figures.pixel_ap[0],
        "figure": figures.figure[0],
        "low": low,
        "high": high,
        "difference": figures.figure[0] - given.figure[0],
        "difference_low": less,
        "difference_high": more,
    }
    return {name: None if value != value else round(float(value), 6) for name, value in numbers.items()}


def print_record(entries: Mapping[str, Entry], report: Reporter) -> None:
    """Print what was tried, a row per candidate, and what was chosen and left untried."""
    rows: list[Sequence[str]] = []
    for name, entry in entries.items():
        for one in entry["candidates"]:
            ap = "-" if one["pixel_ap"] is None else f"{one['pixel_ap']:.3f}"
            numbers = [
                f"{one['image_auroc']:.4f}",
                ap,
                f"{one['figure']:.3f}",
                f"{one['low']:.3f} to {one['high']:.3f}",
            ]
            less, more = one["difference_low"], one["difference_high"]
            gain = [f"{one['difference']:+.3f}", f"{less:+.3f} to {more:+.3f}"] if one["changes"] else ["", ""]
            mark = "chosen: " if one["changes"] == entry["chosen"] else ""
            rows.append([name, *numbers, *gain, mark + in_words(one["changes"])])
    if rows:
        titles = ("AUROC", "AP", "figure", "95 % interval", "gain", "95 % interval")
        report.table(["category"], titles, rows, ["options"])
    for name, entry in entries.items():
        if entry["note"] is not None:
            report.warn(f"{shown_name(name)}: its options are those given: {entry['note']}")
        elif entry["not_tried"]:
            left = plural(len(entry["not_tried"]), "candidate")
            report.warn(f"{shown_name(name)}: no time for {left} ({in_words_of(entry['not_tried'])}); raise --budget")


def candidate_rows(folder: str) -> list[dict[str, Any]]:
    """A row per candidate of ``tuning.json`` in a folder (a URI), with its category and whether it was chosen."""
    return [
        {"category": name, **one, "chosen": one["changes"] == entry["chosen"]}
        for name, entry in read_record(folder).items()
        for one in entry["candidates"]
    ]


def in_words_of(several: Sequence[Mapping[str, Any]]) -> str:
    """Some candidates as a person reads them."""
    return "; ".join(in_words(changes) for changes in several)
