"""Write, read and repair the tables of results.

Every file appears whole or not at all, under a name made from the ids of its rows, so that work done twice (a retried
task) replaces its rows instead of repeating them. Older results have a folder ``category=<name>`` per category and no
such column in its files; both forms are read alike.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from mvad import storage
from mvad.data.manifest import repeated_ids
from mvad.errors import ImageError, ResultsError, UsageError, one_line
from mvad.results.joining import finish_joining, superseded
from mvad.results.result import EXIT_DONE
from mvad.results.schema import SCORES, SUMMARY, RowOrigin, score_table

# pyarrow.dataset and pyarrow.parquet import pandas, which takes half a second: here where they are used.
if TYPE_CHECKING:
    import pyarrow.dataset as pads
    import pyarrow.fs as pafs

MAX_ROWS_PER_FILE = 256
ROWS_AT_ONCE = 16  # that are read together with their maps
PART_NAME = re.compile(r"part-.*\.parquet")  # of files of score rows; others are somebody else's
MAX_FILE_BYTES = 1 << 34
MAX_LISTINGS = 5  # of files, for one answer
STATUS = ["image_id", "split", "status", "model_id", "file_size", "file_mtime"]  # what decides whether a row is current
DECIDING = "deciding"  # status of a run while `mvad evaluate` decides on its images again
NOTIFIED = "notified.json"  # who has been told of a night
REPLACEMENT = "new-run"  # folder in OUT of a run that takes the place of the others once it is whole
REPLACING = "replacing"  # file in that folder: the others have been removed
OWN_NAMES = (
    *("_SUCCESS", "run.json", "summary.json", "summary.parquet", "scores", "models", REPLACEMENT, NOTIFIED),
    *("compare.json", "compare.parquet", "runs"),  # of a comparison
    *("report.html", "report", "maps", "regions"),  # made from the others
)


def open_folder(
    out: str, command: str, identity: Mapping[str, Any], *, new_run: bool
) -> tuple[str, dict[str, Any] | None]:
    """The folder (a URI) that a run writes to, and ``run.json`` of the unfinished or finished run that it goes on with.

    That is the folder ``out``. With ``new_run``, results that are there stay until the new ones are whole: these are
    written to `REPLACEMENT` in it, for `replace_by_new`.

    Parameters
    ----------
    identity
        What a run must have in common with an earlier one to go on with it: options, and models by category.

    Raises
    ------
    UsageError
        ``out`` holds other files, or, without ``new_run``, results of another command or identity.
    """
    ensure_writable(out, replace=True)  # refuses files that are not results
    storage.ensure_writable_folder(out)
    replace_by_new(out)
    earlier = _earlier_run(out)
    if earlier is None:
        clear(out)
        return out, None
    difference = _difference(earlier, command, identity)
    if not new_run:
        ensure_decided(earlier, out)
        if difference == command:
            ensure_writable(out, replace=False)
        elif difference is not None:
            advice = "choose another --out, or --new-run to replace its rows."
            raise UsageError(
                f"{storage.readable(out)} holds another run's results: it was begun with {difference}; {advice}"
            )
        return out, earlier
    if difference is None and earlier.get("status") == "running":
        return out, earlier
    folder = storage.join(out, REPLACEMENT)
    earlier = _earlier_run(folder)
    if earlier is not None and _difference(earlier, command, identity) is None:
        return folder, earlier
    storage.remove(folder)
    return folder, None


def _earlier_run(folder: str) -> dict[str, Any] | None:
    """``run.json`` of a folder; None if it holds none. UsageError if it is damaged."""
    return read_run(folder) if storage.exists(storage.join(folder, "run.json")) else None


def _difference(earlier: Mapping[str, Any], command: str, identity: Mapping[str, Any]) -> str | None:
    """In what an earlier run differs, in words: the command itself, if it is another one; None if in nothing."""
    theirs = earlier.get("identity")
    if earlier.get("command") != command or theirs is None:
        return command
    if "unknown_above" in theirs and "unknown_above" not in identity:
        return "--category auto"
    for name, value in json.loads(json.dumps(identity)).items():
        if name == "models":
            for category, model_id in value.items():
                if theirs[name].get(category, model_id) != model_id:
                    return f"another model of {category!r}"
        elif theirs.get(name) != value:
            return f"--{name.replace('_', '-')} {theirs.get(name)}, not {value}"
    return None


def replace_by_new(out: str) -> None:
    """Put a whole new run in ``out`` in the place of the others, or go on with that; without one, do nothing."""
    new = storage.join(out, REPLACEMENT)
    if not storage.exists(storage.join(new, REPLACING)):
        content = _earlier_run(new)
        if content is None or content.get("status") != "done":
            return
        clear(out, keep=REPLACEMENT)
        storage.write(storage.join(new, REPLACING), b"")
    last = ("run.json", "_SUCCESS")
    names = [name for name in storage.list_folder(new) if name not in (*last, REPLACING)]
    for name in (*names, *last):
        if storage.exists(storage.join(new, name)):
            storage.move(storage.join(new, name), storage.join(out, name))
    storage.remove(new)


def ensure_writable(out: str, *, replace: bool) -> None:
    """Make sure that a new run may write to the folder ``out`` (a URI).

    UsageError if it holds another run's results and ``replace`` is false, or files that are not results. Files that a
    killed process left unfinished are removed.
    """
    storage.remove_unfinished(out, below=False)
    names, folder = storage.list_folder(out), storage.readable(out)
    # Every run starts with its run.json: without one, even folders with our names belong to somebody else.
    ours = "run.json" in names or REPLACEMENT in names
    foreign = [name for name in names if name not in OWN_NAMES or not ours]
    if foreign:
        raise UsageError(f"{folder} holds other files ({foreign[0]}); give --out an empty or new folder.")
    if names and not replace:
        raise UsageError(f"{folder} holds another run's results; choose another --out, or --new-run to replace them.")


def ensure_outside(out: str, target: str, allowed: Sequence[str]) -> None:
    """Make sure that ``target`` (a URI) is not in the folder of results, except under one of the ``allowed`` names.

    UsageError if it is: a file that is not part of the results would keep the run from being resumed.
    """
    inside = [storage.join(out, name) for name in allowed]
    if storage.lies_in(target, out) and not any(storage.lies_in(target, folder) for folder in inside):
        raise UsageError(
            f"{storage.readable(target)} lies in the folder of the results; give --to another place, or "
            f"{storage.readable(inside[0])}."
        )


def clear(out: str, *, keep: str | None = None) -> None:
    """Remove the results of an earlier run, if there are any, but for what is called ``keep``.

    What says that it is done goes first, and what says that the folder is a run's last.
    """
    for name in sorted(OWN_NAMES, key=lambda name: (name != "_SUCCESS", name == "run.json")):
        if name != keep:
            storage.remove(storage.join(out, name))


def write_part(out: str, rows: pa.Table) -> None:
    """Write score rows of one category, at least one row, as one file."""
    category = rows["category"][0].as_py()
    folder = storage.join(out, "scores", storage.safe_name(category))
    storage.write(storage.join(folder, part_name(rows)), to_parquet(rows))


def part_name(rows: pa.Table) -> str:
    """The name of the file that holds these score rows, made from their image ids."""
    # A line break in an id is escaped: it must not give the name of two ids.
    image_ids = [name.replace("\\", "\\\\").replace("\n", "\\n") for name in rows["image_id"].to_pylist()]
    digest = hashlib.sha256("\n".join(image_ids).encode()).hexdigest()[:24]
    return f"part-{digest}.parquet"


def write_unscored_rows(out: str, images: pa.Table, reasons: Mapping[str, str], origin: RowOrigin) -> None:
    """Write score rows for images that are not scored: an error for those whose image id has a reason."""
    for category in pc.unique(images["category"]).to_pylist():
        rows = images.filter(pc.equal(images["category"], category))
        for start in range(0, len(rows), MAX_ROWS_PER_FILE):
            part = rows.slice(start, MAX_ROWS_PER_FILE)
            errors = pa.array([reasons.get(name) for name in part["image_id"].to_pylist()], pa.string())
            status = pc.if_else(pc.is_valid(errors), "error", "ok")
            write_part(out, score_table(part, origin, {"status": status, "error": errors}))


def to_parquet(table: pa.Table, row_group_size: int | None = None) -> pa.Buffer:
    """A table as the content of a Parquet file."""
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", row_group_size=row_group_size)
    return sink.getvalue()


def _dataset(out: str, category: str | None = None) -> pads.Dataset:
    """The files of score rows; of one category, only its folders are listed, however many there are."""
    import pyarrow.dataset as pads

    filesystem, base = storage.resolve(storage.join(out, "scores"))
    folders = [base]
    if category is not None:
        names = (storage.safe_name(category), f"category={storage.folder_name(category)}")
        uris = [storage.join(out, "scores", name) for name in names]
        folders = [storage.resolve(uri)[1] for uri in uris if storage.exists(uri)]
    keys = pads.partitioning(pa.schema([SCORES.field("category")]), flavor="hive")  # of older results
    options = {"format": "parquet", "partitioning": keys, "partition_base_dir": base, "ignore_prefixes": ["."]}
    try:
        parts = [pads.dataset(folder, SCORES, filesystem=filesystem, **options) for folder in folders]
    except OSError as error:
        raise _no_results(out) from error
    if not parts and not storage.exists(storage.join(out, "scores")):
        raise _no_results(out)
    fragments = [fragment for part in parts for fragment in part.get_fragments()]
    left = superseded({fragment.path for fragment in fragments}, lambda path: _content(filesystem, path))
    files = [
        fragment
        for fragment in fragments
        if PART_NAME.fullmatch(fragment.path.rpartition("/")[2]) and fragment.path not in left
    ]
    return pads.FileSystemDataset(files, SCORES, pads.ParquetFileFormat(), filesystem)


def _content(filesystem: pafs.FileSystem, path: str) -> bytes:
    with filesystem.open_input_stream(path) as stream:
        return stream.read()


def _no_results(out: str) -> UsageError:
    return UsageError(f"no results in {storage.readable(out)}; make some with mvad run or mvad score.")


def read_scores(
    out: str,
    columns: Sequence[str] | None = None,
    category: str | None = None,
    condition: pads.Expression | None = None,
) -> pa.Table:
    """Score rows under OUT (a URI), sorted by image id; UsageError if there are no results."""
    names = list(columns or SCORES.names)
    needed = names if "image_id" in names else [*names, "image_id"]
    rows = _listed_anew(lambda: _read(out, _dataset(out, category), needed, condition))
    return rows.sort_by("image_id").select(names)


class _ReplacedError(ResultsError):
    """Files were replaced after they had been listed: by a watch, or when small files were joined."""


def _listed_anew(read: Callable[[], pa.Table]) -> pa.Table:
    """What a function reads that lists files itself; it is called again if some have been replaced in the meantime."""
    for _ in range(MAX_LISTINGS - 1):
        with suppress(_ReplacedError):
            return read()
    return read()


def read_rows(out: str, columns: Sequence[str], category: str, condition: pads.Expression) -> Iterator[dict[str, Any]]:
    """Rows of a category under OUT (a URI), one after the other and unordered: for maps, which together are large.

    ResultsError, perhaps after some rows, if a file is damaged.
    """
    dataset, few = _dataset(out, category), {"batch_size": ROWS_AT_ONCE, "batch_readahead": 1, "fragment_readahead": 1}
    with _naming_damage(out, dataset):
        for batch in dataset.to_batches(list(columns), condition, **few):
            for number in range(len(batch)):
                yield from batch.slice(number, 1).to_pylist()


def _read(
    out: str, dataset: pads.Dataset, columns: Sequence[str], condition: pads.Expression | None = None
) -> pa.Table:
    """Rows of some files in OUT (a URI); ResultsError names the first damaged one, if there is one."""
    with _naming_damage(out, dataset):
        table = dataset.to_table(list(columns), filter=condition)
        required = [name for name in columns if name in SCORES.names and not SCORES.field(name).nullable]
        if any(table[name].null_count for name in required):
            raise pa.ArrowInvalid("rows lack values")
        return table


@contextmanager
def _naming_damage(out: str, dataset: pads.Dataset) -> Iterator[None]:
    """Turn an error of reading files in OUT into a ResultsError that names the first damaged, or gone, one."""
    try:
        yield
    except (pa.ArrowException, OSError, NotImplementedError) as error:
        uris = [_uri(storage.join(out, "scores"), fragment.path) for fragment in dataset.get_fragments()]
        for uri in uris:
            reason = _damage(uri)
            if reason is not None:
                raise _damaged(uri, reason) from error
        for uri in uris:
            if not storage.exists(uri):
                raise _ReplacedError(f"{storage.readable(uri)} was replaced while it was read; try again.") from error
        raise


def _damaged(uri: str, reason: str) -> ResultsError:
    return ResultsError(
        f"{storage.readable(uri)} is damaged ({reason}); score the same images into this folder again: that puts the "
        "file aside, and its images get new rows."
    )


def _damage(uri: str) -> str | None:
    """What is wrong with the content of a file of score rows; None if nothing is, or it has gone.

    UsageError if the file cannot be read at all: its content may be sound.
    """
    import pyarrow.parquet as pq

    if not storage.exists(uri):
        return None
    try:
        data = storage.read_bytes(uri, MAX_FILE_BYTES)
    except ImageError as error:
        raise UsageError(f"{storage.readable(uri)} cannot be read ({error}); check its permissions.") from error
    try:
        table = pq.read_table(pa.BufferReader(data), partitioning=None)
    except Exception as error:  # whatever its bytes make of the reader
        return one_line(error)[:200]
    return _misfit(table, SCORES.names)


def _misfit(table: pa.Table, names: Sequence[str]) -> str | None:
    """Why some columns of a table cannot be those of score rows; None if they can."""
    for name in names:
        field, column = SCORES.field(name), table[name] if name in table.column_names else None
        if column is not None and column.type != field.type:
            return f"its column {name} holds {column.type}, not {field.type}"
        is_required = not field.nullable and name != "category"  # in older results the folder's name says it
        if is_required and (column is None or column.null_count):
            return f"its column {name} is missing or has gaps"
    return None


def set_aside_damaged(out: str) -> list[str]:
    """Rename files of score rows in OUT (a URI) that are damaged, so that no reader sees them; returns a line for each.

    All columns but the maps are read, as they will be to evaluate.
    """
    root = storage.join(out, "scores")
    if not storage.list_folder(root):
        return []
    dataset, lines = _dataset(out), []
    columns = [name for name in SCORES.names if name not in ("patch_scores", "patch_grid")]
    required = [name for name in columns if not SCORES.field(name).nullable]
    with suppress(pa.ArrowException, OSError, NotImplementedError):
        if not any(batch[name].null_count for batch in dataset.to_batches(columns) for name in required):
            return []
    for fragment in dataset.get_fragments():
        uri = _uri(root, fragment.path)
        reason = _damage(uri)
        if reason is not None:
            storage.move(uri, storage.sibling(uri, f".{storage.name_of(uri)}.damaged"))
            lines.append(f"{storage.readable(uri)} is damaged ({reason}): put aside, its images are scored again")
    return lines


def read_by_category(
    out: str, categories: Sequence[str], columns: Sequence[str]
) -> Iterator[tuple[str, pa.Table | ResultsError]]:
    """Each category and its score rows, or what is wrong with them; some are read ahead in parallel."""

    def read(category: str) -> pa.Table | ResultsError:
        try:
            return read_scores(out, columns, category)
        except ResultsError as error:
            return error

    for start in range(0, len(categories), storage.THREADS):
        names = categories[start : start + storage.THREADS]
        yield from zip(names, storage.parallel_map(read, names), strict=True)


def read_images(out: str, category: str, image_ids: Collection[str], columns: Sequence[str]) -> pa.Table:
    """Rows of some images of a category, sorted by image id; only the files that hold them are read in full."""
    import pyarrow.dataset as pads

    condition = pads.field("image_id").isin(pa.array(sorted(image_ids), pa.string()))

    def read() -> pa.Table:
        dataset = _dataset(out, category)
        names = set(_read(out, dataset, ["__filename", "image_id"], condition)["__filename"].to_pylist())
        fragments = [fragment for fragment in dataset.get_fragments() if fragment.path in names]
        rows = pads.FileSystemDataset(fragments, SCORES, pads.ParquetFileFormat(), dataset.filesystem)
        return _read(out, rows, list(dict.fromkeys([*columns, "image_id"])), condition)

    return _listed_anew(read).sort_by("image_id")


def read_errors(out: str) -> list[dict[str, str]]:
    """The unreadable images: image_id, category, split and error, sorted by image id."""
    import pyarrow.dataset as pads

    columns = ["image_id", "category", "split", "error"]
    return read_scores(out, columns, condition=pads.field("status") == "error").to_pylist()


def read_status(out: str) -> pa.Table:
    """The columns `STATUS`, and the URI of its file as ``file``, of every row under OUT (a URI), unordered."""
    root = storage.join(out, "scores")
    if not storage.list_folder(root):
        no_files = pa.array([], pa.string()).dictionary_encode()
        return SCORES.empty_table().select(STATUS).append_column("file", no_files)
    table = _listed_anew(lambda: _read(out, _dataset(out), [*STATUS, "__filename"]))
    paths = pc.dictionary_encode(table["__filename"].combine_chunks())
    files = pa.array([_uri(root, path) for path in paths.dictionary.to_pylist()], pa.string())
    column = pa.DictionaryArray.from_arrays(paths.indices, files)
    return table.drop_columns(["__filename"]).append_column("file", column)


def no_status() -> pa.Table:
    """An empty table of `STATUS`."""
    return SCORES.empty_table().select(STATUS)


def list_parts(out: str, category: str | None = None) -> list[tuple[str, str]]:
    """The files of score rows under OUT (a URI), or of a category: category and URI of each, sorted."""
    import pyarrow.dataset as pads

    root, parts = storage.join(out, "scores"), []
    by_folder: dict[str, list[str]] = defaultdict(list)
    for fragment in _dataset(out, category).get_fragments():
        name = pads.get_partition_keys(fragment.partition_expression).get("category")
        uri = _uri(root, fragment.path)
        if name is not None:
            parts.append((name, uri))
        else:
            by_folder[storage.parent(uri)].append(uri)
    for uris in by_folder.values():
        name = _category_of(out, uris)
        parts += [(name, uri) for uri in uris]
    return sorted(parts)


def _category_of(out: str, uris: Sequence[str]) -> str:
    """The category of the files of one folder of score rows, which some of them may be too damaged to tell."""
    for uri in uris:
        with suppress(ResultsError, KeyError, IndexError):  # without the column, or without rows
            return read_part(uri, ["category"])["category"][0].as_py()
    folder = storage.name_of(storage.parent(uris[0]))
    names = {storage.safe_name(name): name for name in read_run(out).get("categories", {})}
    return names.get(folder, folder)


def _uri(root: str, path: str) -> str:
    """The URI of a file that Arrow names by its path on the file system of ``root``."""
    return storage.join(root, path.split(storage.resolve(root)[1].rstrip("/") + "/", 1)[1])


def read_part(uri: str, columns: Sequence[str] | None = None) -> pa.Table:
    """A file of score rows, or some of its columns, null where older results lack them; ResultsError if damaged."""
    import pyarrow.dataset as pads

    filesystem, path = storage.resolve(uri)
    try:
        file = pads.dataset(path, format="parquet", filesystem=filesystem)
        table = file.to_table([name for name in columns or file.schema.names if name in file.schema.names])
    except (pa.ArrowException, OSError) as error:
        reason = _damage(uri)
        if reason is None:
            raise
        raise _damaged(uri, reason) from error
    reason = _misfit(table, columns or SCORES.names)
    if reason is not None:
        raise _damaged(uri, reason)
    for field in map(SCORES.field, columns or ()):
        if field.nullable and field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(len(table), field.type))
    return table


def rewrite(uri: str, change: Callable[[pa.Table], pa.Table]) -> None:
    """Replace a file of rows by what ``change`` returns for them; a file without rows is removed."""
    rows = read_part(uri)
    changed = change(rows)
    if not len(changed):
        storage.remove(uri)
    elif not changed.equals(rows):
        storage.write(uri, to_parquet(changed))


def drop_duplicates(out: str) -> pa.Table:
    """Remove what a run that was killed may have left in OUT (a URI): halves of files, and rows that are there twice.

    So may `mvad compact`: see `joining`.

    Work that is done again writes the same files again, unless its rows were divided differently; then they are there
    twice, and equal. The row in the file whose name comes first stays. Returns `read_status` of the rows that stay,
    without ``file``.
    """
    storage.remove_unfinished(storage.join(out, "scores"))
    finish_joining(storage.join(out, "scores"))
    status = read_status(out)
    repeated = status.filter(pc.is_in(status["image_id"], repeated_ids(status).combine_chunks()))
    first: dict[str, str] = {}
    again: dict[str, set[str]] = defaultdict(set)
    for file, image_id in sorted(zip(repeated["file"].to_pylist(), repeated["image_id"].to_pylist(), strict=True)):
        if first.setdefault(image_id, file) != file:
            again[file].add(image_id)
    for file, image_ids in again.items():
        _drop_from(file, image_ids)
    unique = status.group_by("image_id").aggregate([(name, "min") for name in STATUS[1:]])
    return unique.select(["image_id", *(f"{name}_min" for name in STATUS[1:])]).rename_columns(STATUS)


def drop_rows(out: str, image_ids: Collection[str]) -> None:
    """Remove the rows of some images, file by file; a reader sees each file as it was or as it will be."""
    if not image_ids:
        return
    status = read_status(out)
    rows = status.filter(pc.is_in(status["image_id"], pa.array(list(image_ids), pa.string())))
    for file in sorted(set(rows["file"].to_pylist())):
        _drop_from(file, image_ids)


def _drop_from(file: str, image_ids: Collection[str]) -> None:
    ids = pa.array(list(image_ids), pa.string())
    rewrite(file, lambda rows: rows.filter(pc.invert(pc.is_in(rows["image_id"], ids))))


def read_summary(out: str) -> list[dict[str, Any]]:
    """The rows of ``summary.json`` of OUT (a URI), None in columns that it lacks; empty if it does not exist."""
    uri = storage.join(out, "summary.json")
    rows = json.loads(storage.read(uri)) if storage.exists(uri) else []
    return [dict.fromkeys(SUMMARY.names) | row for row in rows]


def write_summary(out: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Write the summary as Parquet and JSON; returns the rows with every column, None where unknown."""
    return write_table(out, "summary", pa.Table.from_pylist(rows, SUMMARY))


def write_table(out: str, name: str, table: pa.Table) -> list[dict[str, Any]]:
    """Write a small table as Parquet and as JSON; returns its rows."""
    storage.write(storage.join(out, f"{name}.parquet"), to_parquet(table))
    rows = table.to_pylist()
    write_json(storage.join(out, f"{name}.json"), rows)
    return rows


def write_json(uri: str, content: Any) -> None:
    """Write a document as JSON."""
    storage.write(uri, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False).encode())


def write_run(out: str, content: Mapping[str, Any]) -> None:
    """Write ``run.json``, and ``_SUCCESS`` if and only if the run has ended with exit code 0."""
    storage.remove(storage.join(out, "_SUCCESS"))
    write_json(storage.join(out, "run.json"), content)
    if content.get("status") == "done" and content["exit_code"] == EXIT_DONE:
        storage.write(storage.join(out, "_SUCCESS"), b"")


def read_run(out: str) -> dict[str, Any]:
    """``run.json`` of OUT (a URI); UsageError if it is missing or damaged."""
    uri = storage.join(out, "run.json")
    try:
        return json.loads(storage.read(uri))
    except (OSError, ValueError) as error:
        raise UsageError(f"no results in {storage.readable(out)}: {storage.readable(uri)} cannot be read.") from error


def ensure_decided(content: Mapping[str, Any], out: str) -> None:
    """Make sure that ``run.json`` in OUT (a URI) is not one whose rows are half decided on again; else UsageError."""
    if content.get("status") == DECIDING:
        folder = storage.readable(out)
        raise UsageError(f"mvad evaluate was interrupted in {folder}; finish it with: mvad evaluate {folder}")


def read_finished_run(out: str, *, undecided: bool = False) -> dict[str, Any]:
    """``run.json`` of a run that has ended; UsageError if there is none in OUT (a URI).

    With ``undecided`` it may be one whose images `mvad evaluate` has begun to decide on again.
    """
    content, folder = read_run(out), storage.readable(out)
    if content.get("command") == "compare":
        runs = ", ".join(storage.list_folder(storage.join(out, "runs")))
        raise UsageError(f"{folder} holds a comparison; name one of its runs, in {folder}/runs: {runs}.")
    if not undecided:
        ensure_decided(content, out)
    if content.get("status") not in ("done", DECIDING):
        raise UsageError(f"the run in {folder} has not ended; wait for it or run it again.")
    return content
