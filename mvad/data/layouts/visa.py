"""VisA: with its split file, ``split_csv/1cls.csv``, or as downloaded.

::

    <category>/Data/Images/Normal/*, Anomaly/*      good and defective images
    <category>/Data/Masks/Anomaly/*                 masks
    <category>/image_anno.csv                       image, label (normal or kinds of defects) and mask; optional
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import NamedTuple

from mvad import storage
from mvad.data.layouts.contents import (
    GOOD_NAME,
    SEEDED_SPLIT,
    Collected,
    Contents,
    name_of,
    note_unused_masks,
    seeded_split,
)
from mvad.data.layouts.files import Found
from mvad.data.layouts.masks import Masks, stem_of
from mvad.data.names import meaning
from mvad.data.tables import read_columns
from mvad.errors import UsageError
from mvad.storage import FileEntry

SPLIT = "split_csv/1cls.csv"
ANNOTATIONS = "image_anno.csv"
IMAGES, MASKS = ("data", "images"), ("data", "masks")  # folders in that of a category, whatever their capitals


def recognises(found: Found) -> bool:
    """Return whether these files may be VisA's."""
    return any(file.path == SPLIT for file in found.others) or any(_place(file.path) for file in found.images)


def read(root: str, found: Found) -> Contents:
    """Read VisA from its split file, or else each category from its annotations and folders.

    UsageError if a table cannot be read or has a row without an image.
    """
    by_path = {file.path: file for file in found.images}
    if any(file.path == SPLIT for file in found.others):
        return _read_split(root, by_path)
    tables = [file for file in found.others if PurePosixPath(file.path).name == ANNOTATIONS]
    return _read_downloaded(root, by_path, tables)


def _read_split(root: str, by_path: Mapping[str, FileEntry]) -> Contents:
    collected, uri = Collected(), storage.join(root, SPLIT)
    unused = set(by_path)
    for number, entry in enumerate(read_columns(uri, ("object", "split", "label", "image")).to_pylist(), start=1):
        category, path = entry["object"], entry["image"]
        if not category or not path:
            raise UsageError(f"{storage.readable(uri)}, row {number}: object or image is empty.")
        # A listed image that is missing keeps its row, which becomes an error row.
        file = by_path.get(path) or FileEntry(path, storage.join(root, path))
        good = entry["label"] == "normal"
        mask = by_path.get(entry.get("mask") or "")
        unused -= {path, entry.get("mask")}
        defect, mask_uri = (GOOD_NAME, None) if good else ("anomaly", mask.uri if mask else None)
        collected.add(file, category, entry["split"], int(not good), defect, mask_uri)
    n_masks: dict[str, int] = defaultdict(int)
    for path in sorted(unused):
        category, _, place = path.partition("/")
        if tuple(place.casefold().split("/")[:2]) == MASKS:
            n_masks[category] += 1
        else:
            collected.leave_out(by_path[path], category, f"{SPLIT} does not name it")
    note_unused_masks(collected, n_masks)
    return collected.contents()


class _Place(NamedTuple):
    """Where an image lies."""

    category: str  # path of the category's folder; "" if that is ROOT
    is_mask: bool
    kind: str  # Normal or Anomaly


def _place(path: str) -> _Place | None:
    """Where the file of a path lies, or None if not among the images and masks of a category."""
    parts = path.split("/")
    if len(parts) not in (4, 5) or meaning(parts[-2]).is_good is None:
        return None
    *folders, kind, _ = ["", *parts][-5:]
    below = tuple(name.casefold() for name in folders[1:])
    return _Place(folders[0], below == MASKS, kind) if below in (IMAGES, MASKS) else None


def _read_downloaded(root: str, by_path: Mapping[str, FileEntry], tables: Iterable[FileEntry]) -> Contents:
    collected, root_name = Collected(), name_of(root)
    labels = {path: label for table in tables for path, label in _read_labels(table).items()}
    # A listed image that is missing keeps its row, which becomes an error row.
    images = {**by_path} | {path: FileEntry(path, storage.join(root, path)) for path in labels if path not in by_path}
    good: dict[str, list[FileEntry]] = defaultdict(list)
    defective: dict[str, list[tuple[FileEntry, str]]] = defaultdict(list)
    masks: dict[str, Masks] = defaultdict(Masks)
    for path, file in images.items():
        place = _place(path)
        if place is None:
            category = path.partition("/")[0] if "/" in path else root_name
            collected.leave_out(file, category, "it lies neither in Data/Images nor in Data/Masks of a category")
            continue
        category, label = place.category or root_name, labels.get(path)
        if place.is_mask:
            masks[category].add([], file)
        elif label == "normal" or (label is None and meaning(place.kind).is_good):
            good[category].append(file)
        else:
            defective[category].append((file, label or place.kind.casefold()))
    for category, files in good.items():
        chosen = seeded_split(PurePosixPath(file.path).name for file in files)
        for file in files:
            split = "train" if PurePosixPath(file.path).name in chosen else "test"
            collected.add(file, category, split, 0, GOOD_NAME)
        collected.remarks[category].append(SEEDED_SPLIT)
    for category, entries in defective.items():
        for file, defect in entries:
            collected.add(file, category, "test", 1, defect, masks[category].find([], stem_of(file.path)))
    note_unused_masks(collected, {category: of_one.n_unused for category, of_one in masks.items()})
    return collected.contents()


def _read_labels(table: FileEntry) -> dict[str, str]:
    """Read the annotations of a category: the label of each image by its path below ROOT."""
    base, labels = table.path.rpartition("/")[0], {}
    for entry in read_columns(table.uri, ("image", "label")).to_pylist():
        if entry["image"] and entry["label"]:
            parts = [base, *entry["image"].split("/")[-4:]]  # with or without the folder of the category before it
            labels["/".join(part for part in parts if part)] = entry["label"]
    return labels
