"""The manifest: one row an image, made by listing alone; no pixel is read.

Understood are MVTec AD's layout (and BTAD's, which only names its folders differently), VisA's with its split file,
plain trees of unlabelled images, and a CSV or Parquet table with at least a ``uri`` column.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mvad import storage
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
    def categories(self) -> list[str]:
        return sorted(set(self.table["category"].to_pylist()))

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
    if PurePosixPath(root).suffix.lower() in (".csv", ".parquet"):
        rows, ignored = _from_table(root, options.category), 0
    else:
        rows, ignored = _from_folder(root, options)
    repeated = [name for name, count in Counter(row["image_id"] for row in rows).items() if count > 1]
    if repeated:
        raise UsageError(f"{storage.display(root)} names {repeated[0]!r} more than once.")
    table = pa.Table.from_pylist(rows, SCHEMA).sort_by(
        [(key, "ascending") for key in ("category", "split", "image_id")]
    )
    table = _select(table, storage.display(root), options.category_names)
    if options.limit is not None:
        table = _limit(table, options.limit)
    return Manifest(root, table, ignored)


def _from_folder(root: str, options: CommonOptions) -> tuple[list[dict], int]:
    files = list(storage.list_files(root))
    images = [file for file in files if file.path.lower().endswith(SUFFIXES)]
    if not images:
        raise UsageError(f"no images under {storage.display(root)}; mvad looks for {', '.join(SUFFIXES)}.")
    layout = options.layout
    if layout == "auto":
        layout = _guess_layout([file.path for file in files])
    if layout == "visa":
        rows = _visa(root, images)
    elif layout == "mvtec":
        rows = _mvtec(root, images)
    else:
        rows = _plain(root, images, options.category)
    used = {row["uri"] for row in rows} | {row["mask_uri"] for row in rows}
    if not rows:
        raise UsageError(
            f"{storage.display(root)} has {len(images)} images, but none where the {layout} layout keeps them; "
            "see --layout."
        )
    return rows, sum(file.uri not in used for file in images)


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
    own_name = PurePosixPath(storage.display(root)).name
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
        raise UsageError(f"{storage.display(place)} does not exist; the visa layout is read from it.")
    rows = []
    entries = _read_csv(place, ("object", "split", "label", "image")).to_pylist()
    for number, entry in enumerate(entries, start=1):
        if not entry["object"] or not entry["image"]:
            raise UsageError(f"{storage.display(place)}, row {number}: object or image is empty.")
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


def _plain(root: str, images: list[storage.FileEntry], category: str | None) -> list[dict]:
    """Any tree: unlabelled, the category is the first folder below ROOT unless one was named."""
    if category is None and all("/" not in file.path for file in images):
        raise UsageError(
            f"the images lie directly in {storage.display(root)}, so their category is unknown; add --category NAME."
        )
    return [
        _row(file, category or file.path.split("/")[0], "test")
        for file in images
        if category is not None or "/" in file.path
    ]


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
        raise UsageError(f"{storage.display(place)} cannot be read as CSV: {error}.") from error
    return _check_columns(table, place, needed)


def _check_columns(table: pa.Table, place: str, needed: Sequence[str]) -> pa.Table:
    missing = [name for name in needed if name not in table.column_names]
    if missing:
        raise UsageError(f"{storage.display(place)} has no column {', '.join(missing)}.")
    return table


def _from_table(place: str, category: str | None) -> list[dict]:
    """A table with a ``uri`` column; the other columns of the schema are used where they are there."""
    if not storage.exists(place):
        raise UsageError(f"no such file: {storage.display(place)}.")
    if place.lower().endswith(".csv"):
        table = _read_csv(place, ("uri",))
    else:
        filesystem, path = storage.resolve(place)
        try:
            table = _check_columns(pq.read_table(path, filesystem=filesystem), place, ("uri",))
        except (pa.ArrowInvalid, OSError) as error:
            raise UsageError(f"{storage.display(place)} cannot be read as Parquet: {error}.") from error
    folder = place.rpartition("/")[0]
    rows = []
    for number, entry in enumerate(table.to_pylist(), start=1):
        where = f"{storage.display(place)}, row {number}"
        uri = entry["uri"]
        if not uri:
            raise UsageError(f"{where}: the uri is empty.")
        relative = not uri.startswith("/") and "://" not in uri
        file = storage.FileEntry(
            entry.get("image_id") or uri, storage.join(folder, uri) if relative else storage.to_uri(uri)
        )
        name = category or entry.get("category") or (uri.split("/")[0] if relative and "/" in uri else None)
        if name is None:
            raise UsageError(f"{where}: the category is unknown; add a category column or --category NAME.")
        label, split, mask = entry.get("label"), entry.get("split") or "test", entry.get("mask_uri")
        if label not in (None, 0, 1):
            raise UsageError(f"{where}: label {label!r} is not 0, 1 or empty.")
        if split not in ("train", "test"):
            raise UsageError(f"{where}: split {split!r} is not train or test.")
        rows.append(
            _row(
                file,
                name,
                split,
                label=label,
                defect=entry.get("defect"),
                mask_uri=storage.to_uri(mask) if mask else None,
            )
        )
    if not rows:
        raise UsageError(f"{storage.display(place)} names no image.")
    return rows


def _select(table: pa.Table, place: str, categories: list[str] | None) -> pa.Table:
    if categories is None:
        return table
    known = sorted(set(table["category"].to_pylist()))
    unknown = [name for name in categories if name not in known]
    if unknown:
        raise UsageError(f"unknown category {unknown[0]!r}; {place} has: {', '.join(known)}.")
    return table.filter(pc.is_in(table["category"], pa.array(categories)))


def evenly_spaced(count: int, most: int) -> NDArray[np.int64]:
    """At most ``most`` of the numbers below ``count``, evenly spaced, the first and the last among them."""
    return np.linspace(0, count - 1, min(most, count)).round().astype(np.int64)


def _limit(table: pa.Table, limit: int) -> pa.Table:
    """At most ``limit`` rows of each category and split, evenly spaced, so that every defect has its share."""
    groups: dict[tuple[str, str], list[int]] = {}
    for row, key in enumerate(zip(table["category"].to_pylist(), table["split"].to_pylist(), strict=True)):
        groups.setdefault(key, []).append(row)
    kept: list[int] = []
    for rows in groups.values():
        kept.extend(rows[pick] for pick in evenly_spaced(len(rows), limit))
    return table.take(pa.array(sorted(kept)))
