"""The manifest: one row an image, made by listing alone; no pixel is read.

Understood are MVTec AD's layout (and BTAD's, which only names its folders differently), VisA's with its split file,
plain trees of unlabelled images, and a CSV or Parquet table with at least a ``uri`` column.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from mvad import storage
from mvad.data.sampling import evenly_spaced
from mvad.errors import UsageError
from mvad.options import CommonOptions

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
GOOD = ("good", "ok")
SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),  # path below ROOT, POSIX slashes
        pa.field("uri", pa.string(), nullable=False),
        pa.field("category", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),  # train | test
        pa.field("label", pa.int8()),  # 0 good, 1 defective, null unknown
        pa.field("defect", pa.string()),
        pa.field("mask_uri", pa.string()),
    ]
)
VISA_SPLIT = "split_csv/1cls.csv"
LABELLED = ("test", "train")  # where other layouts than the plain one keep images, in a category's folder
ROWS_AT_ONCE = 1 << 16  # of a table that are Python objects


@dataclass(frozen=True)
class Manifest:
    """The images of a data set.

    Attributes
    ----------
    root
        URI of the folder (or table) it was made from.
    table
        One row an image, columns of ``SCHEMA``, sorted by category, split and image id.
    ignored
        Number of files with an image's suffix that the layout has no place for.
    """

    root: str
    table: pa.Table
    ignored: int

    @property
    def n_images(self) -> int:
        return len(self.table)

    @property
    def categories(self) -> list[str]:
        return sorted(pc.unique(self.table["category"]).to_pylist())

    def split(self, name: str, categories: Sequence[str] | None = None) -> pa.Table:
        """The rows of one split, of some categories if given, in their order."""
        keep = pc.equal(self.table["split"], name)
        if categories is not None:
            keep = pc.and_(keep, pc.is_in(self.table["category"], pa.array(categories, pa.string())))
        return self.table.filter(keep)


def read_manifest(data: str, options: CommonOptions) -> Manifest:
    """List DATA and apply ``--layout``, ``--category``, ``--categories`` and ``--limit``.

    Raises
    ------
    UsageError
        No such folder, no images in it, or a category that is not there.
    """
    root = storage.to_uri(data)
    if is_table(root):
        table, ignored = _from_table(root, options.category), 0
    else:
        table, ignored = _from_folder(root, options)
    repeated = repeated_ids(table)
    if len(repeated):
        raise UsageError(f"{storage.readable(root)} names {repeated[0].as_py()!r} more than once.")
    check_categories(options.category_names, pc.unique(table["category"]).to_pylist(), root)
    table = select(table, options.category_names)
    if options.limit is not None:
        table = _limit(table, options.limit)
    return Manifest(root, table, ignored)


def repeated_ids(images: pa.Table) -> pa.ChunkedArray:
    """The image ids that more than one row has."""
    counts = images.group_by("image_id").aggregate([([], "count_all")])
    return counts.filter(pc.greater(counts["count_all"], 1))["image_id"]


def is_table(root: str) -> bool:
    """Whether the URI names a table of images, not a folder."""
    return _suffix(root) in (".csv", ".parquet")


def _suffix(uri: str) -> str:
    return PurePosixPath(urlsplit(uri).path).suffix.lower()  # a URI may have options behind its path


def images_among(files: Sequence[storage.FileEntry]) -> list[storage.FileEntry]:
    return [file for file in files if file.path.lower().endswith(SUFFIXES)]


def no_images(root: str) -> UsageError:
    """That there are none."""
    return UsageError(f"no images under {storage.readable(root)}; mvad looks for {', '.join(SUFFIXES)}.")


def no_category(root: str) -> UsageError:
    """That there is no folder whose name is the images' category."""
    return UsageError(
        f"the images lie directly in {storage.readable(root)}, so their category is unknown; add --category NAME."
    )


def _from_folder(root: str, options: CommonOptions) -> tuple[pa.Table, int]:
    files = list(storage.list_files(root))
    images = images_among(files)
    if not images:
        raise no_images(root)
    layout = options.layout
    if layout == "auto":
        layout = _guess_layout([file.path for file in files])
    if layout == "plain":
        table = plain_rows(images, options.category)
        if not len(table):
            raise no_category(root)
        return table, len(images) - len(table)
    rows = _visa(root, images) if layout == "visa" else _mvtec(root, images)
    if not rows:
        raise UsageError(
            f"{storage.readable(root)} has {len(images)} images, but none where the {layout} layout keeps them; "
            "see --layout."
        )
    used = {row["uri"] for row in rows} | {row["mask_uri"] for row in rows}
    return pa.Table.from_pylist(rows, SCHEMA), sum(file.uri not in used for file in images)


def surely_plain(root: str, folders: Sequence[storage.FileEntry]) -> bool:
    """Whether the layout of a folder is plain whatever else is in it, told by a look into the ``folders`` in it.

    There is nothing in the places where the other layouts have images.
    """
    top = [root, *(folder.uri for folder in folders)]  # ROOT may be one category
    places = [storage.join(root, VISA_SPLIT), *(storage.join(place, name) for place in top for name in LABELLED)]
    return not any(storage.parallel_map(storage.exists, places))


def _guess_layout(paths: list[str]) -> str:
    if any(path == VISA_SPLIT for path in paths):
        return "visa"
    for path in paths:
        parts = path.split("/")
        for depth in (0, 1):  # ROOT may be one category
            if len(parts) >= depth + 3 and (
                parts[depth] == "test" or (parts[depth] == "train" and parts[depth + 1] in GOOD)
            ):
                return "mvtec"
    return "plain"


def _row(file: storage.FileEntry, category: str, split: str, **known: object) -> dict:
    return {
        "image_id": file.path,
        "uri": file.uri,
        "category": category,
        "split": split,
        "label": None,
        "defect": None,
        "mask_uri": None,
        **known,
    }


def _mvtec(root: str, images: list[storage.FileEntry]) -> list[dict]:
    """``[<category>/]train/good``, ``test/<defect>``, ``ground_truth/<defect>/<stem>[_mask].*``."""
    own_name = PurePosixPath(storage.readable(root)).name
    placed = []
    masks = {}
    for file in images:
        parts = file.path.split("/")
        if parts[0] in ("train", "test", "ground_truth"):
            parts = [own_name, *parts]
        if len(parts) < 4:
            continue
        category, split, defect = parts[:3]
        inner = PurePosixPath(*parts[3:])
        if split == "ground_truth":
            masks[category, defect, inner.with_suffix("").as_posix().removesuffix("_mask")] = file.uri
        elif split == "test" or (split == "train" and defect in GOOD):
            placed.append((file, category, split, defect, inner.with_suffix("").as_posix()))
    return [
        _row(
            file,
            category,
            split,
            label=int(defect not in GOOD),
            defect=defect,
            mask_uri=None if defect in GOOD else masks.get((category, defect, stem)),
        )
        for file, category, split, defect, stem in placed
    ]


def _visa(root: str, images: list[storage.FileEntry]) -> list[dict]:
    """VisA: ``split_csv/1cls.csv`` says object, split, label, image and mask of every image."""
    by_path = {file.path: file for file in images}
    place = storage.join(root, VISA_SPLIT)
    if not storage.exists(place):
        raise UsageError(f"{storage.readable(place)} does not exist; the visa layout is read from it.")
    rows = []
    entries = _read_csv(place, ("object", "split", "label", "image")).to_pylist()
    for number, entry in enumerate(entries, start=1):
        if not entry["object"] or not entry["image"]:
            raise UsageError(f"{storage.readable(place)}, row {number}: object or image is empty.")
        # A listed image that is missing stays in: it becomes a row that says so.
        file = by_path.get(entry["image"]) or storage.FileEntry(entry["image"], storage.join(root, entry["image"]))
        good = entry["label"] == "normal"
        mask = by_path.get(entry.get("mask") or "")
        rows.append(
            _row(
                file,
                entry["object"],
                entry["split"],
                label=int(not good),
                defect="good" if good else "anomaly",
                mask_uri=mask.uri if mask else None,
            )
        )
    return rows


def plain_rows(images: Sequence[storage.FileEntry], category: str | None) -> pa.Table:
    """Any tree: unlabelled, the category is the first folder below ROOT unless one was named.

    Images without either are left out.
    """
    placed = [file for file in images if category is not None or "/" in file.path]
    count = len(placed)
    columns = {field.name: pa.nulls(count, field.type) for field in SCHEMA}
    columns |= {
        "image_id": pa.array([file.path for file in placed], pa.string()),
        "uri": pa.array([file.uri for file in placed], pa.string()),
        "category": pa.array([category or file.path.split("/")[0] for file in placed], pa.string()),
        "split": pa.array(["test"] * count, pa.string()),
    }
    return pa.table(columns, SCHEMA)


def _read_csv(place: str, needed: Sequence[str]) -> pa.Table:
    filesystem, path = storage.resolve(place)
    strings = pyarrow.csv.ConvertOptions(
        column_types={name: pa.string() for name in (*SCHEMA.names, "object", "image", "mask") if name != "label"},
        strings_can_be_null=True,
    )
    try:
        with filesystem.open_input_stream(path) as stream:
            table = pyarrow.csv.read_csv(stream, convert_options=strings)
    except (pa.ArrowInvalid, OSError) as error:
        raise UsageError(f"{storage.readable(place)} cannot be read as CSV: {error}.") from error
    return _check_columns(table, place, needed)


def _check_columns(table: pa.Table, place: str, needed: Sequence[str]) -> pa.Table:
    missing = [name for name in needed if name not in table.column_names]
    if missing:
        raise UsageError(f"{storage.readable(place)} has no column {', '.join(missing)}.")
    return table


def _from_table(place: str, category: str | None) -> pa.Table:
    """A table with a ``uri`` column; the other columns of the schema are used where they are there."""
    if not storage.exists(place):
        raise UsageError(f"no such file: {storage.readable(place)}.")
    if _suffix(place) == ".csv":
        table = _read_csv(place, ("uri",))
    else:
        filesystem, path = storage.resolve(place)
        try:
            table = _check_columns(pq.read_table(path, filesystem=filesystem), place, ("uri",))
        except (pa.ArrowInvalid, OSError) as error:
            raise UsageError(f"{storage.readable(place)} cannot be read as Parquet: {error}.") from error
    if not len(table):
        raise UsageError(f"{storage.readable(place)} names no image.")
    table = table.select([name for name in SCHEMA.names if name in table.column_names])
    found, first = [], 1
    for batch in table.to_batches(max_chunksize=ROWS_AT_ONCE):
        rows = [_table_row(place, number, entry, category) for number, entry in enumerate(batch.to_pylist(), first)]
        found.append(pa.Table.from_pylist(rows, SCHEMA))
        first += len(batch)
    return pa.concat_tables(found)


def _table_row(place: str, number: int, entry: dict[str, Any], category: str | None) -> dict[str, Any]:
    where = f"{storage.readable(place)}, row {number}"
    uri = entry["uri"]
    if not uri:
        raise UsageError(f"{where}: the uri is empty.")
    relative = not uri.startswith("/") and "://" not in uri
    file = storage.FileEntry(
        entry.get("image_id") or uri, storage.sibling(place, uri) if relative else storage.to_uri(uri)
    )
    name = category or entry.get("category") or (uri.split("/")[0] if relative and "/" in uri else None)
    if name is None:
        raise UsageError(f"{where}: the category is unknown; add a category column or --category NAME.")
    label, split, mask = entry.get("label"), entry.get("split") or "test", entry.get("mask_uri")
    if label not in (None, 0, 1):
        raise UsageError(f"{where}: label {label!r} is not 0, 1 or empty.")
    if split not in ("train", "test"):
        raise UsageError(f"{where}: split {split!r} is not train or test.")
    known = {"label": label, "defect": entry.get("defect"), "mask_uri": storage.to_uri(mask) if mask else None}
    return _row(file, name, split, **known)


def check_categories(names: Sequence[str] | None, known: Collection[str], root: str) -> None:
    """UsageError if one of the categories that were asked for is not among those under ``root``."""
    unknown = [name for name in names or () if name not in known]
    if unknown:
        where, others = storage.readable(root), ", ".join(sorted(known))
        raise UsageError(f"unknown category {unknown[0]!r}; {where} has: {others}.")


def select(table: pa.Table, categories: Sequence[str] | None) -> pa.Table:
    """The rows of some categories, or of all for None, sorted."""
    if categories is not None:
        table = table.filter(pc.is_in(table["category"], pa.array(categories, pa.string())))
    return table.sort_by([(key, "ascending") for key in ("category", "split", "image_id")])


def _limit(table: pa.Table, limit: int) -> pa.Table:
    """At most ``limit`` rows of each category and split, evenly spaced, so that every defect has its share."""
    groups: dict[tuple[str, str], list[int]] = {}
    for row, key in enumerate(zip(table["category"].to_pylist(), table["split"].to_pylist(), strict=True)):
        groups.setdefault(key, []).append(row)
    kept: list[int] = []
    for rows in groups.values():
        kept.extend(rows[pick] for pick in evenly_spaced(len(rows), limit))
    return table.take(pa.array(sorted(kept)))
