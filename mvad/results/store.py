"""The results tree: what its tables hold, and how it is written and read.

::

    OUT/scores/category=<c>/part-*.parquet   one row an image that was asked for
    OUT/summary.parquet, OUT/summary.json    one row a category, then the mean
    OUT/run.json                             configuration, versions, models, counts, seconds
    OUT/_SUCCESS                             written last, and only if the exit code is 0
    OUT/report.html, OUT/report, OUT/maps    for people, by `mvad report` and `mvad maps`

Every part appears whole or not at all, under a name made from the ids of its rows, so that work done twice (a retried
task) replaces its rows instead of repeating them.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mvad import calibration, storage
from mvad.calibration import DecisionRule
from mvad.data.images import Batch
from mvad.data.manifest import repeated_ids
from mvad.errors import UsageError
from mvad.runtime import telemetry

SCORES = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("category", pa.string(), nullable=False),  # in the folder's name, not in the file
        pa.field("split", pa.string(), nullable=False),
        pa.field("label", pa.int8()),
        pa.field("defect", pa.string()),
        pa.field("mask_uri", pa.string()),
        pa.field("score", pa.float32()),  # higher is more abnormal; never clamped or rescaled
        pa.field("p_value", pa.float64()),
        pa.field("threshold", pa.float64()),
        pa.field("is_anomaly", pa.bool_()),  # null where there is no threshold
        pa.field("status", pa.string(), nullable=False),  # ok | error
        pa.field("error", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("patch_scores", pa.list_(pa.float32())),  # row by row; patch_grid is [rows, columns]
        pa.field("patch_grid", pa.list_(pa.int32())),
        pa.field("model_id", pa.string()),
        pa.field("run_id", pa.string(), nullable=False),
    ]
)
SUMMARY = pa.schema(
    [
        pa.field("category", pa.string(), nullable=False),  # the last row is the mean
        pa.field("method", pa.string()),
        pa.field("backbone", pa.string()),
        pa.field("n_train", pa.int64()),  # good images the model was fitted on
        pa.field("n_good", pa.int64()),
        pa.field("n_defect", pa.int64()),
        pa.field("n_error", pa.int64()),  # unreadable files, of training and test
        pa.field("image_auroc", pa.float64()),
        pa.field("image_ap", pa.float64()),
        pa.field("image_f1_max", pa.float64()),
        pa.field("threshold", pa.float64()),
        pa.field("recall_at_threshold", pa.float64()),
        pa.field("false_alarm_rate", pa.float64()),
        pa.field("pixel_auroc", pa.float64()),
        pa.field("pixel_aupro", pa.float64()),
        pa.field("fit_seconds", pa.float64()),  # the category's share of the actors' time, and its coreset
        pa.field("score_seconds", pa.float64()),  # the category's share of the actors' time
        pa.field("images_per_second", pa.float64()),  # images scored / score_seconds
        pa.field("n_calibration", pa.int64()),  # good images that the threshold follows from
        pa.field("n_scored", pa.int64()),
        pa.field("n_flagged", pa.int64()),
        pa.field("drift_p_value", pa.float64()),  # the scores against the calibration's: Kolmogorov-Smirnov
        pa.field("drift_share_below", pa.float64()),  # images with a p-value below 0.05
        pa.field("drift_median_shift", pa.float64()),  # in robust deviations of the calibration scores
        pa.field("drifted", pa.bool_()),  # the batch as a whole has moved: see calibration.measure_drift
        pa.field("note", pa.string()),  # why a number is missing
    ]
)
_OURS = (
    *("_SUCCESS", "run.json", "summary.json", "summary.parquet", "scores", "models"),
    *("compare.json", "compare.parquet", "runs"),  # of a comparison
    *("report.html", "report", "maps"),  # made from the rest
)


def check_free(out: str, *, replace: bool) -> None:
    """Make sure that a new run may write to the folder ``out`` (a URI).

    Raises
    ------
    UsageError
        It holds another run's results and ``replace`` is false, or files that are not results.
    """
    present = storage.list_folder(out)
    where = storage.readable(out)
    # Every run begins with its run.json: without one, even folders with our names are somebody else's.
    foreign = [name for name in present if name not in _OURS or "run.json" not in present]
    if foreign:
        raise UsageError(f"{where} holds other files ({foreign[0]}); give --out an empty or new folder.")
    if not replace and present:
        raise UsageError(f"{where} holds another run's results; choose another --out, or --new-run to replace them.")


def clear(out: str) -> None:
    """Remove the results of an earlier run, if there are any."""
    for name in _OURS:
        storage.remove(storage.join(out, name))


def write_part(out: str, category: str, rows: pa.Table) -> None:
    """Write the score rows of one category as one part."""
    digest = hashlib.sha256("\n".join(rows["image_id"].to_pylist()).encode()).hexdigest()[:24]
    storage.write(
        storage.join(_folder(out, category), f"part-{digest}.parquet"), _parquet(rows.drop_columns(["category"]))
    )


def _parquet(table: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def _dataset(out: str, category: str | None = None) -> pads.Dataset:
    """The files of score rows; of one category, only its folder is listed, however many there are."""
    root = storage.join(out, "scores")
    filesystem, base = storage.resolve(root)
    place = base if category is None else storage.resolve(_folder(out, category))[1]
    partitioning = pads.partitioning(pa.schema([SCORES.field("category")]), flavor="hive")
    try:
        return pads.dataset(
            place,
            SCORES,
            format="parquet",
            filesystem=filesystem,
            partitioning=partitioning,
            partition_base_dir=base,
        )
    except OSError as error:
        if category is not None and storage.exists(root):
            return pads.FileSystemDataset([], SCORES, pads.ParquetFileFormat(), filesystem)
        raise UsageError(f"no results in {storage.readable(out)}; make some with mvad run or mvad score.") from error


def _folder(out: str, category: str) -> str:
    return storage.join(out, "scores", f"category={storage.folder_name(category)}")


def count_scores(out: str) -> int:
    """Number of score rows under OUT."""
    return _dataset(out).count_rows()


def read_scores(
    out: str,
    columns: Sequence[str] | None = None,
    category: str | None = None,
    chosen: pads.Expression | None = None,
) -> pa.Table:
    """Score rows under OUT (a URI), sorted by image id.

    Parameters
    ----------
    columns, category, chosen
        What is wanted; default: all of it.

    Raises
    ------
    UsageError
        There are no results.
    """
    asked = list(columns or SCORES.names)
    wanted = asked if "image_id" in asked else [*asked, "image_id"]
    return _dataset(out, category).to_table(wanted, filter=chosen).sort_by("image_id").select(asked)


def read_by_category(out: str, categories: Sequence[str], columns: Sequence[str]) -> Iterator[tuple[str, pa.Table]]:
    """Each category and its score rows, of which some are read ahead side by side."""
    for start in range(0, len(categories), storage.THREADS):
        some = categories[start : start + storage.THREADS]
        tables = storage.parallel_map(lambda category: read_scores(out, columns, category), some)
        yield from zip(some, tables, strict=True)


def read_images(out: str, category: str, image_ids: Collection[str], columns: Sequence[str]) -> pa.Table:
    """Rows of some images of a category, sorted by image id; only the files that hold them are read in full."""
    dataset = _dataset(out, category)
    chosen = pads.field("image_id").isin(pa.array(sorted(image_ids), pa.string()))
    found = dataset.to_table(["__filename"], filter=chosen)
    files = sorted(set(found["__filename"].to_pylist()))
    if not files:
        return pa.table({name: pa.array([], SCORES.field(name).type) for name in columns})
    rows = pads.dataset(files, SCORES, format="parquet", filesystem=dataset.filesystem)
    return rows.to_table(list(dict.fromkeys([*columns, "image_id"])), filter=chosen).sort_by("image_id")


def read_errors(out: str) -> list[dict[str, str]]:
    """The unreadable images: image_id, category, split and error, sorted by image id."""
    found = _dataset(out).to_table(["image_id", "category", "split", "error"], filter=pads.field("status") == "error")
    return found.sort_by("image_id").to_pylist()


def read_states(out: str, category: str | None = None) -> pa.Table:
    """Of every row under OUT (a URI), or of a category: image_id, status, error and the URI of its file, unordered."""
    root = storage.join(out, "scores")
    if not storage.list_folder(root):
        empty = {name: pa.array([], pa.string()) for name in ("image_id", "status", "error")}
        return pa.table({**empty, "file": pa.array([], pa.string()).dictionary_encode()})
    found = _dataset(out, category).to_table(["image_id", "status", "error", "__filename"])
    _, path = storage.resolve(root)
    names = pc.dictionary_encode(found["__filename"].combine_chunks())
    files = [storage.join(root, name.split(path.rstrip("/") + "/", 1)[1]) for name in names.dictionary.to_pylist()]
    column = pa.DictionaryArray.from_arrays(names.indices, pa.array(files, pa.string()))
    return found.drop_columns(["__filename"]).append_column("file", column)


def parts(out: str) -> list[tuple[str, str]]:
    """The files of score rows under OUT (a URI): category and URI of each, sorted."""
    root = storage.join(out, "scores")
    _, path = storage.resolve(root)
    found = []
    for fragment in _dataset(out).get_fragments():
        category = pads.get_partition_keys(fragment.partition_expression)["category"]
        found.append((category, storage.join(root, fragment.path.split(path.rstrip("/") + "/", 1)[1])))
    return sorted(found)


def read_part(uri: str, columns: Sequence[str] | None = None) -> pa.Table:
    """A file of score rows, or some of its columns; the category is in the name of its folder."""
    filesystem, path = storage.resolve(uri)
    return pq.read_table(
        path, columns=None if columns is None else list(columns), filesystem=filesystem, partitioning=None
    )


def drop_rows(out: str, image_ids: Collection[str]) -> None:
    """Remove the rows of some images, file by file; a reader sees each file as it was or as it will be."""
    if not image_ids:
        return
    states = read_states(out)
    chosen = states.filter(pc.is_in(states["image_id"], pa.array(list(image_ids), pa.string())))
    for file in sorted(set(chosen["file"].to_pylist())):
        _rewrite(file, functools.partial(_without, image_ids))


def repair(out: str) -> None:
    """Remove what a run that was killed may have left: halves of files, and rows that were written twice.

    Work that is done again writes the same files again, unless its rows were divided otherwise; then they are there
    twice, and the same. The row in the file whose name comes first stays.
    """
    storage.remove_unfinished(storage.join(out, "scores"))
    states = read_states(out)
    there = states.filter(pc.is_in(states["image_id"], repeated_ids(states).combine_chunks()))
    seen: dict[str, str] = {}
    again: dict[str, set[str]] = defaultdict(set)
    rows = zip(there["file"].to_pylist(), there["image_id"].to_pylist(), strict=True)
    for file, image_id in sorted(rows):
        if seen.setdefault(image_id, file) != file:
            again[file].add(image_id)
    for file, ids in again.items():
        _rewrite(file, functools.partial(_without, ids))


def control_fdr(out: str, category: str, rate: float) -> None:
    """Decide on a category's images together: ``is_anomaly`` and ``threshold`` by Benjamini-Hochberg at ``rate``.

    The threshold is the largest score that is not flagged.
    """
    table = read_scores(out, ["score", "p_value"], category)
    table = table.filter(pc.is_valid(table["p_value"]))
    flagged = calibration.control_fdr(table["p_value"].to_numpy(), rate)
    quiet = table["score"].to_numpy()[~flagged]
    threshold = float(quiet.max()) if len(quiet) else -np.inf
    states = read_states(out, category)
    for file in sorted(set(states.filter(pc.equal(states["status"], "ok"))["file"].to_pylist())):
        _rewrite(file, functools.partial(_with_threshold, threshold))


def _without(image_ids: Collection[str], rows: pa.Table) -> pa.Table:
    return rows.filter(pc.invert(pc.is_in(rows["image_id"], pa.array(list(image_ids), pa.string()))))


def _with_threshold(threshold: float, rows: pa.Table) -> pa.Table:
    valid = pc.is_valid(rows["p_value"])
    thresholds = pc.if_else(valid, threshold, pa.scalar(None, pa.float64()))
    verdicts = pc.greater(rows["score"].cast(pa.float64()), thresholds)
    for name, values in (("threshold", thresholds), ("is_anomaly", verdicts)):
        rows = rows.set_column(rows.schema.get_field_index(name), name, values)
    return rows


def _rewrite(uri: str, change: Callable[[pa.Table], pa.Table]) -> None:
    """Replace a file of rows by what ``change`` makes of them; one without rows goes."""
    rows = read_part(uri)
    changed = change(rows)
    if not len(changed):
        storage.remove(uri)
    elif not changed.equals(rows):
        storage.write(uri, _parquet(changed))


def read_summary(out: str) -> list[dict[str, Any]]:
    """The rows of ``summary.json`` of OUT (a URI); none if there is none."""
    place = storage.join(out, "summary.json")
    return json.loads(storage.read(place)) if storage.exists(place) else []


def write_summary(out: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Write the summary as Parquet and JSON; gives the rows back with every column, None where unknown."""
    return write_table(out, "summary", pa.Table.from_pylist(rows, SUMMARY))


def write_table(out: str, name: str, table: pa.Table) -> list[dict[str, Any]]:
    """Write a small table as Parquet and as JSON; gives its rows."""
    storage.write(storage.join(out, f"{name}.parquet"), _parquet(table))
    rows = table.to_pylist()
    write_json(storage.join(out, f"{name}.json"), rows)
    return rows


def write_json(uri: str, content: Any) -> None:
    storage.write(uri, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False).encode())


def read_run(out: str) -> dict[str, Any]:
    """``run.json`` of OUT (a URI); UsageError if it is missing or damaged."""
    place = storage.join(out, "run.json")
    try:
        return json.loads(storage.read(place))
    except (OSError, ValueError) as error:
        raise UsageError(f"no results in {storage.readable(out)}: {storage.readable(place)} cannot be read.") from error


def read_finished_run(out: str) -> dict[str, Any]:
    """``run.json`` of a run that has ended; UsageError if there is none in OUT (a URI)."""
    content, where = read_run(out), storage.readable(out)
    if content.get("command") == "compare":
        runs = ", ".join(storage.list_folder(storage.join(out, "runs")))
        raise UsageError(f"{where} holds a comparison; name one of its runs, in {where}/runs: {runs}.")
    if content.get("status") != "done":
        raise UsageError(f"the run in {where} has not ended; wait for it or run it again.")
    return content


def check_beside(out: str, target: str, ours: Sequence[str]) -> None:
    """Make sure that ``target`` (a URI) is not in the folder of the results, except under one of the names in ``ours``.

    Raises
    ------
    UsageError
        It is: a file that is not part of the results would keep a run from being taken up.
    """
    place, folder = target.partition("?")[0], out.partition("?")[0]  # connection options may differ
    inside = place == folder or place.startswith(f"{folder}/")
    if inside and not any(f"{place}/".startswith(f"{folder}/{name}/") for name in ours):
        raise UsageError(
            f"{storage.readable(target)} lies in the folder of the results; give --to another place, or "
            f"{storage.readable(storage.join(out, ours[0]))}."
        )


class Destination(NamedTuple):
    """The folder (a URI) that score rows go to, their run, and the models behind them by category."""

    out: str
    run_id: str
    models: Mapping[str, DecisionRule]


@dataclass(frozen=True)
class WriteResults:
    """Task that writes a block of score rows, one part an entry and category, and returns a receipt for each."""

    destinations: Mapping[str, Destination]

    def __call__(self, batch: Batch) -> Batch:
        receipts = defaultdict(list)
        batch = {**batch, "retries": batch["retries"] + telemetry.retries_column(len(batch["retries"]))}
        for entry in np.unique(batch["entry"]):
            (rows,) = np.nonzero(batch["entry"] == entry)
            for receipt in write_rows({name: column[rows] for name, column in batch.items()}, self.destinations[entry]):
                receipts["entry"].append(entry)
                for name, value in receipt.items():
                    receipts[name].append(value)
        return {name: np.array(values) for name, values in receipts.items()}


def write_rows(batch: Batch, destination: Destination) -> list[dict[str, Any]]:
    """Write score rows, one part a category; gives a receipt for each: its rows, and what the actor said of them."""
    table = score_rows(batch, destination)
    receipts = []
    for category in np.unique(batch["category"]):
        chosen = batch["category"] == category
        write_part(destination.out, category, table.filter(pa.array(chosen)))
        receipt = {"category": category, "rows": int(chosen.sum()), "seconds": float(batch["seconds"][chosen].sum())}
        receipt |= {name: int(batch[name][chosen].sum()) for name in ("bytes", "retries")}
        receipt |= {"memory": int(batch["memory"][chosen].max()), "actor": str(batch["actor"][chosen][0])}
        receipts.append(receipt)
    return receipts


def score_rows(batch: Batch, destination: Destination) -> pa.Table:
    """The columns of the score table from those of the flow."""
    bad = batch["error"] != ""
    count = len(bad)

    def column(name: str, missing: NDArray[np.bool_]) -> pa.Array:
        return pa.array(batch[name], SCORES.field(name).type, mask=missing)

    none = np.zeros(count, bool)
    columns: dict[str, Any] = {name: column(name, none) for name in ("image_id", "uri", "category", "split")}
    columns["label"] = column("label", batch["label"] < 0)
    columns |= {name: column(name, batch[name] == "") for name in ("defect", "mask_uri", "error")}
    columns |= {name: column(name, bad) for name in ("score", "width", "height")}
    columns["status"] = pa.array(np.where(bad, "error", "ok"))
    by = [destination.models.get(name, DecisionRule()) for name in batch["category"]]
    columns["model_id"] = pa.array([model.model_id for model in by], pa.string())
    columns["run_id"] = pa.array([destination.run_id] * count)
    p_values, judged = np.zeros(count), np.zeros(count, bool)
    for name in np.unique(batch["category"]):
        scores = destination.models.get(name, DecisionRule()).calibration
        if scores is not None:
            rows = (batch["category"] == name) & ~bad
            p_values[rows], judged[rows] = calibration.p_values(batch["score"][rows], scores), True
    columns["p_value"] = pa.array(p_values, pa.float64(), mask=~judged)
    thresholds = pa.array([model.threshold for model in by], pa.float64())
    columns["threshold"] = thresholds
    columns["is_anomaly"] = pc.greater(columns["score"].cast(pa.float64()), thresholds)
    if "patch_grid" in batch:
        none = bad | (batch["patch_grid"].prod(axis=1) == 0)
        values = [None if none[row] else np.frombuffer(batch["patch_scores"][row], np.float32) for row in range(count)]
        columns["patch_scores"] = pa.array(values, SCORES.field("patch_scores").type)
        grids = [None if none[row] else batch["patch_grid"][row] for row in range(count)]
        columns["patch_grid"] = pa.array(grids, SCORES.field("patch_grid").type)
    return pa.table(
        {name: columns.get(name, pa.nulls(count, kind)) for name, kind in zip(SCORES.names, SCORES.types, strict=True)},
        schema=SCORES,
    )
