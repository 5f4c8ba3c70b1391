"""What names of folders mean: good or defective images, training, validation or test images, masks.

Capitals, and the characters between words, do not matter.
"""

import re
from collections.abc import Collection
from typing import NamedTuple

GOOD = frozenset(
    {"good", "ok", "normal", "pass", "passed", "io", "i o", "defect free", "non defective", "nondefective"}
)
BAD = frozenset(
    {
        *("bad", "ng", "nok", "ko", "nio", "n i o", "not ok", "not good", "fail", "failed", "faulty", "rejected"),
        *("defect", "defects", "defective", "anomaly", "anomalies", "anomalous", "abnormal"),
    }
)
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
    **dict.fromkeys(("test", "testing", "test public", "test private", "test private mixed"), "test"),
}
GROUND_TRUTH = frozenset({"ground truth", "groundtruth", "gt"})
MASKS = GROUND_TRUTH | {"mask", "masks"}


class Meaning(NamedTuple):
    """What the name of a folder says of the images in it; None where it says nothing."""

    split: str | None = None  # train, validation or test
    is_good: bool | None = None


def meaning(name: str) -> Meaning:
    """Return what a folder's name means: ``Train``, ``non-defective``, ``OK_test``."""
    words = plain_words(name)
    if words in SPLITS:
        return Meaning(SPLITS[words])
    first, _, others = words.partition(" ")
    before, _, last = words.rpartition(" ")
    for split, kind in ((None, words), (first, others), (last, before)):
        if (split is None or split in SPLITS) and kind in GOOD | BAD:
            return Meaning(SPLITS[split] if split else None, kind in GOOD)
    return Meaning()


def plain_words(name: str) -> str:
    """Return a name in small letters, its words separated by single spaces."""
    return re.sub(r"[\W_]+", " ", name.casefold()).strip()


def is_labelled(names: Collection[str]) -> bool:
    """Return whether a folder with sub-folders of these names is a category with labels.

    It has training, validation or test images, or good and defective ones side by side.
    """
    meanings = [meaning(name) for name in names]
    kinds = {one.is_good for one in meanings}
    return any(one.split for one in meanings) or kinds >= {True, False}
