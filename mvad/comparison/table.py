"""The table of a comparison: one row per line and category, then the mean of the categories.

A line is a method or a variant of options, with all training images or a number of shots.
"""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mvad.comparison.variants import Line
from mvad.results.summary import MEAN, mean_of

METRICS = ("image_auroc", "pixel_ap", "pixel_aupro")  # that have intervals
BETTER, WORSE, NOT_SHOWN = "better", "worse", "no difference shown"
SCHEMA = pa.schema(
    [
        pa.field("method", pa.string(), nullable=False),
        pa.field("shots", pa.int64()),  # training images per category; null: all
        pa.field("backbone", pa.string()),
        pa.field("category", pa.string(), nullable=False),  # the last row of a line is the mean
        pa.field("repeats", pa.int64()),  # fits that the numbers are means of
        pa.field("n_train", pa.float64()),
        pa.field("image_auroc", pa.float64()),
        pa.field("image_auroc_sd", pa.float64()),  # over the repeats; null where there is one
        pa.field("pixel_auroc", pa.float64()),
        pa.field("pixel_aupro", pa.float64()),
        pa.field("fit_seconds", pa.float64()),  # of the actors' time, extraction included, and of the fit itself
        pa.field("score_seconds", pa.float64()),  # of the actors' time, with the extraction that lines share
        pa.field("model_bytes", pa.float64()),
        pa.field("note", pa.string()),  # why there is no number
        pa.field("variant", pa.string()),  # null: the method with the options of the command
        pa.field("pixel_ap", pa.float64()),
        pa.field("n_scored", pa.float64()),
        pa.field("seconds_per_image", pa.float64()),  # score_seconds / n_scored
        *(
            pa.field(metric + suffix, kind)
            for metric in METRICS
            for suffix, kind in (
                ("_low", pa.float64()),  # ends of the 95 % interval: see metrics.bootstrap
                ("_high", pa.float64()),
                ("_difference", pa.float64()),  # to the first line, over the categories that both have
                ("_difference_low", pa.float64()),
                ("_difference_high", pa.float64()),
                ("_conclusion", pa.string()),  # whether the interval of the difference is above or below 0
            )
        ),
    ]
)
_SUMMED = ("n_train", "fit_seconds", "score_seconds", "model_bytes", "n_scored")
_AVERAGED = ("image_auroc", "pixel_auroc", "pixel_aupro", "pixel_ap", *_SUMMED)

Row = dict[str, Any]
Samples = Mapping[str, NDArray[np.float64]]  # values of metrics on resamples, (resamples,), by name of the metric


def comparison_table(
    lines: Mapping[Line, Sequence[str]],
    cells: Mapping[tuple[str, str], Mapping[str, Any]],
    reasons: Mapping[Line, str],
    categories: Sequence[str],
    samples: Mapping[tuple[str, str], Samples] = MappingProxyType({}),
) -> pa.Table:
    """The rows of the table.

    ``lines`` has the names of the runs of each line, ``cells`` what is known of each run's name and category,
    ``samples`` the same on resamples of the test images, and ``reasons`` why a line could not run.
    """
    rows: list[Row] = []
    first: tuple[list[Row], list[Samples]] | None = None
    for line, names in lines.items():
        line_rows, line_samples = [], []
        for category in categories:
            known = [name for name in names if (name, category) in cells]
            repeats = [cells[name, category] for name in known]
            row = {**line._asdict(), "category": category, **_over_repeats(repeats), "note": reasons.get(line)}
            notes = [cell["note"] for cell in repeats if cell["image_auroc"] is None and cell["note"]]
            line_rows.append(row | {"note": "; ".join(dict.fromkeys(notes))} if notes else row)
            line_samples.append(_mean_samples([samples.get((name, category), {}) for name in known], repeats))
        mean = {**line._asdict(), **_mean_row(line_rows)}
        parts = [*([number] for number in range(len(categories))), list(range(len(categories)))]
        for row, part in zip([*line_rows, mean], parts, strict=True):
            own = [(line_rows[number], line_samples[number]) for number in part]
            other = first and [(first[0][number], first[1][number]) for number in part]
            rows.append(row | dict(_intervals(own, other)))
        first = first or (line_rows, line_samples)
    return pa.Table.from_pylist(rows, SCHEMA)


def _over_repeats(cells: Sequence[Mapping[str, Any]]) -> Row:
    scores = [cell["image_auroc"] for cell in cells if cell["image_auroc"] is not None]
    row: Row = {name: mean_of(cells, name) for name in _AVERAGED}
    row |= {"repeats": len(scores), "backbone": cells[0]["backbone"] if cells else None}
    row["image_auroc_sd"] = float(np.std(scores, ddof=1)) if len(scores) > 1 else None
    return row | {"seconds_per_image": _per_image(row)}


def _per_image(row: Mapping[str, Any]) -> float | None:
    return row["score_seconds"] / row["n_scored"] if row["n_scored"] and row["score_seconds"] is not None else None


def _mean_samples(samples: Sequence[Samples], cells: Sequence[Mapping[str, Any]]) -> Samples:
    """The mean over repeats of each metric that all repeats which have a value have samples of."""
    means = {}
    for metric in METRICS:
        values = [of_run.get(metric) for of_run, cell in zip(samples, cells, strict=True) if cell[metric] is not None]
        known = [value for value in values if value is not None]
        if known and len(known) == len(values):
            means[metric] = np.mean(known, axis=0)
    return means


def _mean_row(rows: Sequence[Mapping[str, Any]]) -> Row:
    """Means of the metrics over the categories that have them, sums of the rest."""
    mean: Row = {"category": MEAN, "backbone": rows[0]["backbone"]}
    for name in _AVERAGED:
        values = [row[name] for row in rows if row[name] is not None]
        mean[name] = None if not values else sum(values) if name in _SUMMED else float(np.mean(values))
    mean["seconds_per_image"] = _per_image(mean)
    missing = [row["category"] for row in rows if row["image_auroc"] is None]
    return mean | {"note": f"without {', '.join(missing)}"} if missing else mean


def _intervals(
    own: Sequence[tuple[Row, Samples]], other: Sequence[tuple[Row, Samples]] | None
) -> Iterator[tuple[str, Any]]:
    """The columns of the intervals of the mean of some rows, and of its difference to that of the first line."""
    from mvad.metrics.bootstrap import interval

    for metric in METRICS:
        with_value = [samples for row, samples in own if row[metric] is not None]
        values = [samples[metric] for samples in with_value if metric in samples]
        ends = interval(np.mean(values, axis=0)) if values and len(values) == len(with_value) else None
        if ends is not None:
            yield from zip((f"{metric}_low", f"{metric}_high"), ends, strict=True)
        pairs = [
            pair for pair in zip(own, other or (), strict=False) if all(row[metric] is not None for row, _ in pair)
        ]
        if not pairs:
            continue
        yield f"{metric}_difference", float(np.mean([row[metric] - first[metric] for (row, _), (first, _) in pairs]))
        if not all(metric in samples for pair in pairs for _, samples in pair):
            continue
        ends = interval(np.mean([samples[metric] - first[metric] for (_, samples), (_, first) in pairs], axis=0))
        if ends is not None:
            yield from zip((f"{metric}_difference_low", f"{metric}_difference_high"), ends, strict=True)
            yield f"{metric}_conclusion", BETTER if ends[0] > 0 else WORSE if ends[1] < 0 else NOT_SHOWN
