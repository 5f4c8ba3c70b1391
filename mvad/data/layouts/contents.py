"""What a layout makes of the images of a folder."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from mvad import storage
from mvad.data.tables import SCHEMA, image_row
from mvad.storage import FileEntry

LEFT_OUT = pa.schema([*SCHEMA, pa.field("error", pa.string(), nullable=False)])  # images, and why they are left out
GOOD_NAME = "good"  # what good images have in the column ``defect``
TRAINING_SHARE = 0.8  # of good images that no folder or table divides into training and test images
SEEDED_SPLIT = f"a seeded split: {TRAINING_SHARE:.0%} of the good images to learn from".replace("%", " %")


@dataclass
class Contents:
    """The images of a folder.

    Attributes
    ----------
    table
        Rows of the manifest, in no particular order.
    left_out
        Files that have no place in the layout or could not be looked at, with columns of ``LEFT_OUT``.
    remarks
        By category: what else a person should know of how it was understood.
    others
        Files that are no images, by suffix.
    ignore
        URIs of masks of what is not looked at, by category; "" is for all others.
    """

    table: pa.Table
    left_out: pa.Table = field(default_factory=LEFT_OUT.empty_table)
    remarks: dict[str, list[str]] = field(default_factory=dict)
    others: Counter[str] = field(default_factory=Counter)
    ignore: dict[str, str] = field(default_factory=dict)


class Collected:
    """Rows and remarks while a layout is read, one image after the other."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.left_out: list[dict[str, Any]] = []
        self.remarks: dict[str, list[str]] = defaultdict(list)

    def add(
        self, file: FileEntry, category: str, split: str, label: int | None, defect: str | None, mask: str | None = None
    ) -> None:
        """Add an image with its row of the manifest."""
        self.rows.append(image_row(file, category, split, label, defect, mask))

    def leave_out(self, file: FileEntry, category: str, reason: str) -> None:
        """Note an image that has no place in the layout."""
        self.left_out.append(left_out_row(file, category, reason))

    def contents(self) -> Contents:
        """All of it."""
        return Contents(
            pa.Table.from_pylist(self.rows, SCHEMA), left_out_table(self.left_out), dict(self.remarks), Counter()
        )


def note_unused_masks(collected: Collected, counts: Mapping[str, int]) -> None:
    """Remark how many masks of each category belong to no image."""
    for category, count in counts.items():
        if count:
            verb = "mask belongs" if count == 1 else "masks belong"
            collected.remarks[category].append(f"{count:,} {verb} to no image")


def name_of(root: str) -> str:
    """Return the name of the folder ROOT, which is that of its category if it has only one."""
    return PurePosixPath(storage.readable(root)).name


def left_out_row(file: FileEntry, category: str, reason: str) -> dict[str, Any]:
    """Return the row of an image that is left out."""
    return {**image_row(file, category, "test", None, None, None), "error": reason}


def left_out_table(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """Return rows of images that are left out as a table."""
    return pa.Table.from_pylist(list(rows), LEFT_OUT)


def seeded_split(names: Iterable[str], group: Callable[[str], str] = str) -> set[str]:
    """Return the names of the images to learn from: ``TRAINING_SHARE`` of them, always the same for the same names.

    Images of one ``group`` stay together. At least one group is left for the test, if there are two.
    """
    by_group: dict[str, list[str]] = defaultdict(list)
    for name in names:
        by_group[group(name)].append(name)
    order = sorted(by_group, key=lambda name: hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest())
    n_training = min(round(TRAINING_SHARE * len(order)), max(1, len(order) - 1))
    return {name for key in order[:n_training] for name in by_group[key]}
