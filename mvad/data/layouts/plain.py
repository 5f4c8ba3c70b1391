"""Any tree of unlabelled images: their category is the first folder, or ``--category``."""

import re
from collections.abc import Sequence

import pyarrow as pa

from mvad import storage
from mvad.data.layouts.contents import Contents, left_out_row, left_out_table, name_of
from mvad.data.names import is_labelled, plain_words
from mvad.data.tables import SCHEMA
from mvad.errors import UsageError
from mvad.storage import FileEntry

# Folders that only data sets with labels have: VisA's, KolektorSDD's and Real-IAD's.
OF_DATA_SETS = re.compile(r"split csv|data|kos\d+|realiad.*")


def read(root: str, images: Sequence[FileEntry], category: str | None) -> Contents:
    """Return unlabelled test images; without a ``category``, those directly in ROOT have none and are left out."""
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
    name = name_of(root)
    reason = f"its category is unknown: it lies directly in {name}, not in the folder of a category"
    left_out = [left_out_row(file, name, reason) for file in images if category is None and "/" not in file.path]
    return Contents(pa.table(columns, SCHEMA), left_out_table(left_out))


def surely_plain(root: str, subfolders: Sequence[FileEntry]) -> bool:
    """Return whether a folder has the plain layout whatever other files it has, without listing them.

    It has, if ``root`` and its ``subfolders`` have no folders as labelled layouts have them.
    """
    names = [{folder.path for folder in subfolders}]  # ROOT may be one category
    names += storage.parallel_map(_names_below, [folder.uri for folder in subfolders])
    return not any(is_labelled(of_one) or any(map(_is_of_data_set, of_one)) for of_one in names)


def _names_below(folder: str) -> set[str]:
    """The names of the folders in a folder; none if it cannot be read, for then nothing in it can be listed either."""
    try:
        return {below.path for below in storage.list_subfolders(folder) or ()}
    except UsageError:
        return set()


def _is_of_data_set(name: str) -> bool:
    return OF_DATA_SETS.fullmatch(plain_words(name)) is not None
