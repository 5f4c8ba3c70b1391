"""KolektorSDD and KolektorSDD2: an image has its label image next to it, which is black if the image is good.

::

    kos01/Part0.jpg, Part0_label.bmp            KolektorSDD: a folder per item
    train/10000.png, 10000_GT.png, test/...     KolektorSDD2

Either lies directly in ROOT, or in a folder of it. Defective training images of KolektorSDD2 are test images here:
nothing is learnt from them.
"""

import re
from collections import defaultdict
from pathlib import PurePosixPath

from mvad import storage
from mvad.data.images import read_mask
from mvad.data.layouts.contents import GOOD_NAME, SEEDED_SPLIT, Collected, Contents, name_of, seeded_split
from mvad.data.layouts.files import Found
from mvad.errors import ImageError

ITEM, SPLITS = re.compile(r"kos\d+"), ("train", "test")
LABEL = re.compile(r"(.+)(?:_label|_GT)")  # the stem of a label image: that of its image and a suffix
DEFECT = "defect"


def recognises(found: Found) -> bool:
    """Return whether these files may be KolektorSDD's or KolektorSDD2's: all images in such folders are pairs."""
    folders, stems = set(), set()
    for path in (PurePosixPath(file.path) for file in found.images):
        if len(path.parts) in (2, 3) and (ITEM.fullmatch(path.parent.name) or path.parent.name in SPLITS):
            folders.add(path.parent)
            stems.add((path.parent, path.stem))
    labels = [(folder, match[1]) for folder, stem in stems if (match := LABEL.fullmatch(stem))]
    return bool(labels) and 2 * sum(label in stems for label in labels) == len(stems)


def read(root: str, found: Found) -> Contents:
    """Read the label images, and the images by them; good images of KolektorSDD are divided by item and a seed."""
    collected, root_name = Collected(), name_of(root)
    by_stem = {PurePosixPath(file.path).with_suffix("").as_posix(): file for file in found.images}
    matches = {stem: LABEL.fullmatch(stem) for stem in by_stem}
    labels = {match[1]: by_stem[stem] for stem, match in matches.items() if match and match[1] in by_stem}
    outcomes = storage.parallel_map(_has_defect, [file.uri for file in labels.values()])
    has_defect = dict(zip(labels, outcomes, strict=True))
    are_labels = {file.uri for file in labels.values()}
    good: dict[str, list[str]] = defaultdict(list)  # stems of good images of items, by category
    for stem, file in by_stem.items():
        if file.uri in are_labels:
            continue
        *above, folder, _ = ["", *stem.split("/")]
        category = above[-1] if above and above[-1] else root_name
        outcome = has_defect.get(stem, "it has no label image next to it")
        if isinstance(outcome, str):
            collected.leave_out(file, category, outcome)
        elif outcome:
            collected.add(file, category, "test", 1, DEFECT, labels[stem].uri)
        elif folder in SPLITS:
            collected.add(file, category, folder, 0, GOOD_NAME)
        elif ITEM.fullmatch(folder):
            good[category].append(stem)
        else:
            collected.leave_out(file, category, "it lies neither in train nor in test, nor in the folder of an item")
    for category, stems in good.items():
        chosen = seeded_split(stems, lambda stem: stem.split("/")[-2])
        for stem in stems:
            collected.add(by_stem[stem], category, "train" if stem in chosen else "test", 0, GOOD_NAME)
        collected.remarks[category].append(f"{SEEDED_SPLIT}, item by item")
    return collected.contents()


def _has_defect(uri: str) -> bool | str:
    """Return whether a label image marks any pixel, or why it cannot be read."""
    try:
        return read_mask(uri).getbbox() is not None
    except ImageError as error:
        return f"its label image cannot be read: {error}"
