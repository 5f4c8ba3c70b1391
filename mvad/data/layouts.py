"""Folders of images, read by their layout.

- ``mvtec``: MVTec AD's, and BTAD's, which only names its folders differently.
- ``visa``: VisA's, with its split file.
- ``plain``: any tree of unlabelled images.
"""

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from mvad import storage
from mvad.data.tables import SCHEMA, image_row, read_columns
from mvad.errors import UsageError
from mvad.storage import FileEntry

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
GOOD = ("good", "ok")  # folders of good images
VISA_SPLIT = "split_csv/1cls.csv"
SPLIT_FOLDERS = ("test", "train")  # in the folder of a category; only labelled layouts have them


def read_folder(root: str, layout: str, category: str | None) -> tuple[pa.Table, int]:
    """List the images of a folder (a URI), and count those that have no place in its layout.

    The layout is ``mvtec``, ``visa``, ``plain``, or ``auto`` to tell it from the names of folders. Without a
    ``category``, that of an image in a plain folder is the name of its sub-folder. UsageError if the folder cannot be
    listed, or if there are no images where the layout expects them.
    """
    files = list(storage.list_files(root))
    images = image_files(files)
    if not images:
        raise no_images_error(root, ignored=0)
    if layout == "auto":
        layout = _guess_layout([file.path for file in files])
    if layout == "plain":
        table = plain_table(images, category)
        if not len(table):
            raise no_images_error(root, ignored=len(images))
        return table, len(images) - len(table)
    rows = _visa_rows(root, images) if layout == "visa" else _mvtec_rows(root, images)
    if not rows:
        raise UsageError(
            f"{storage.readable(root)} has {len(images)} images, but none where the {layout} layout keeps them; "
            "see --layout."
        )
    used = {row["uri"] for row in rows} | {row["mask_uri"] for row in rows}
    return pa.Table.from_pylist(rows, SCHEMA), sum(file.uri not in used for file in images)


def image_files(files: Sequence[FileEntry]) -> list[FileEntry]:
    """Return the files that have the suffix of an image."""
    return [file for file in files if file.path.lower().endswith(SUFFIXES)]


def no_images_error(root: str, ignored: int) -> UsageError:
    """Return the error for a plain folder without images, or with none in folders named after their category."""
    folder = storage.readable(root)
    if ignored:
        return UsageError(f"the images lie directly in {folder}, so their category is unknown; add --category NAME.")
    return UsageError(f"no images under {folder}; mvad looks for {', '.join(SUFFIXES)}.")


def surely_plain(root: str, subfolders: Sequence[FileEntry]) -> bool:
    """Return whether a folder has the plain layout whatever other files it has, without listing them.

    It has, if ``root`` and its ``subfolders`` have nothing where labelled layouts keep their images.
    """
    categories = [root, *(folder.uri for folder in subfolders)]  # ROOT may be one category
    folders = [storage.join(category, name) for category in categories for name in SPLIT_FOLDERS]
    return not any(storage.parallel_map(storage.exists, [storage.join(root, VISA_SPLIT), *folders]))


def _guess_layout(paths: list[str]) -> str:
    if VISA_SPLIT in paths:
        return "visa"
    for path in paths:
        parts = path.split("/")
        for depth in range(min(2, len(parts) - 2)):  # 0: ROOT is one category
            split, folder = parts[depth : depth + 2]
            if split == "test" or (split == "train" and folder in GOOD):
                return "mvtec"
    return "plain"


def _mvtec_rows(root: str, images: list[FileEntry]) -> list[dict[str, Any]]:
    """Read ``[<category>/]train/good``, ``test/<defect>`` and ``ground_truth/<defect>/<stem>[_mask].*``."""
    root_name = PurePosixPath(storage.readable(root)).name
    labelled = []
    masks = {}
    for file in images:
        parts = file.path.split("/")
        if parts[0] in (*SPLIT_FOLDERS, "ground_truth"):
            parts = [root_name, *parts]
        if len(parts) < 4:
            continue
        category, split, defect = parts[:3]
        stem = PurePosixPath(*parts[3:]).with_suffix("").as_posix()
        if split == "ground_truth":
            masks[category, defect, stem.removesuffix("_mask")] = file.uri
        elif split == "test" or (split == "train" and defect in GOOD):
            labelled.append((file, category, split, defect, stem))
    rows = []
    for file, category, split, defect, stem in labelled:
        mask_uri = None if defect in GOOD else masks.get((category, defect, stem))
        rows.append(image_row(file, category, split, int(defect not in GOOD), defect, mask_uri))
    return rows


def _visa_rows(root: str, images: list[FileEntry]) -> list[dict[str, Any]]:
    """Read VisA's ``split_csv/1cls.csv``: the object, split, label, image and mask of every image."""
    by_path = {file.path: file for file in images}
    uri = storage.join(root, VISA_SPLIT)
    if not storage.exists(uri):
        raise UsageError(f"{storage.readable(uri)} does not exist; the visa layout is read from it.")
    rows = []
    for number, entry in enumerate(read_columns(uri, ("object", "split", "label", "image")).to_pylist(), start=1):
        category, path = entry["object"], entry["image"]
        if not category or not path:
            raise UsageError(f"{storage.readable(uri)}, row {number}: object or image is empty.")
        # A listed image that is missing keeps its row, which becomes an error row.
        file = by_path.get(path) or FileEntry(path, storage.join(root, path))
        good = entry["label"] == "normal"
        mask = by_path.get(entry.get("mask") or "")
        defect, mask_uri = "good" if good else "anomaly", mask.uri if mask else None
        rows.append(image_row(file, category, entry["split"], int(not good), defect, mask_uri))
    return rows


def plain_table(images: Sequence[FileEntry], category: str | None) -> pa.Table:
    """Return unlabelled test images in a table with the columns of ``SCHEMA``.

    Their category is ``category``, or else the first folder below ROOT; images without either are left out.
    """
    files = [file for file in images if category is not None or "/" in file.path]
    columns = {field.name: pa.nulls(len(files), field.type) for field in SCHEMA}
    columns |= {
        "image_id": pa.array([file.path for file in files], pa.string()),
        "uri": pa.array([file.uri for file in files], pa.string()),
        "category": pa.array([category or file.path.split("/")[0] for file in files], pa.string()),
        "split": pa.array(["test"] * len(files), pa.string()),
        "file_size": pa.array([file.size for file in files], pa.int64()),
        "file_mtime": pa.array([file.mtime for file in files], pa.timestamp("us", "UTC")),
    }
    return pa.table(columns, SCHEMA)
