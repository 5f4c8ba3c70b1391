"""Folders of images, read by their layout: how a tree says what is good, defective, to learn from and to test.

- ``mvtec``, ``mvtec_ad_2``, ``mvtec_loco``: categories with train, test and ground_truth folders, or with good and
  defective images side by side; BTAD and MPDD too.
- ``visa``, ``real_iad``, ``kolektor``: as these data sets are published.
- ``plain``: any tree of unlabelled images.
"""

from collections.abc import Sequence
from types import ModuleType

import pyarrow as pa
import pyarrow.compute as pc

from mvad import storage
from mvad.data.layouts import folders, kolektor, plain, real_iad, visa
from mvad.data.layouts.contents import LEFT_OUT as LEFT_OUT
from mvad.data.layouts.contents import Contents, left_out_row, left_out_table, name_of
from mvad.data.layouts.files import IGNORE_NAME as IGNORE_NAME
from mvad.data.layouts.files import SUFFIXES, Found, find_images
from mvad.errors import NoImagesError, UsageError
from mvad.storage import FileEntry, UnreadFolder

LABELLED: dict[str, ModuleType] = {
    "visa": visa,
    "real_iad": real_iad,
    "kolektor": kolektor,
    **dict.fromkeys(("mvtec", "mvtec_ad_2", "mvtec_loco"), folders),
}
MIN_FIT = 0.95  # share of the images that have a place in a labelled layout, for it to be recognised


def read_folder(root: str, layout: str, category: str | None, *, to_learn: bool = False) -> Contents:
    """List the images of a folder (a URI) and read them by their layout.

    Parameters
    ----------
    layout
        A name in ``LABELLED``, ``plain``, or ``auto``: the first labelled layout that ``MIN_FIT`` of the images have a
        place in, else ``plain``.
    category
        The category of all images of a plain folder, instead of the names of its sub-folders.
    to_learn
        Whether training images are needed: ``auto`` then takes the first layout that has some, however many other
        images have no place in it.

    UsageError if the folder cannot be listed, or if there are no images where the layout expects them.
    """
    unread: list[UnreadFolder] = []
    found = find_images(file for page in storage.list_pages(root, unread) for file in page)
    unread_files = unread_rows(root, found.unknown, unread, category)
    if not found.images:
        raise no_images_error(root, unread_files)
    contents = _read(root, found, layout, category, to_learn)
    if not len(contents.table) and layout in LABELLED:
        raise UsageError(
            f"{storage.readable(root)} has {len(found.images)} images, but none where the {layout} layout keeps them; "
            "see --layout."
        )
    if not len(contents.table):
        raise no_images_error(root, contents.left_out)
    contents.others, contents.ignore = found.count_others(), found.ignore
    contents.left_out = pa.concat_tables([contents.left_out, unread_files])
    return contents


def _read(root: str, found: Found, layout: str, category: str | None, to_learn: bool) -> Contents:
    if layout in LABELLED:
        contents: Contents = LABELLED[layout].read(root, found)
        return contents
    for module in dict.fromkeys(LABELLED.values()) if layout == "auto" else ():
        if module.recognises(found):
            contents = module.read(root, found)
            n_images, n_left_out = len(contents.table), len(contents.left_out)
            if to_learn and pc.any(pc.equal(contents.table["split"], "train")).as_py():
                return contents
            if n_images and n_left_out <= (1 - MIN_FIT) * (n_images + n_left_out):
                return contents
    return plain.read(root, found.images, category)


def unread_rows(
    root: str, unknown: Sequence[FileEntry], unread: Sequence[UnreadFolder], category: str | None
) -> pa.Table:
    """Return rows of ``LEFT_OUT`` for files and folders that could not be looked at."""
    reasons = [(file, "its suffix is none of an image, and its content was not looked at") for file in unknown]
    reasons += [(folder, f"the folder cannot be read: {reason}") for folder, reason in unread]
    rows = []
    for file, reason in reasons:
        first, below, _ = file.path.partition("/")
        rows.append(left_out_row(file, category or (first if below else name_of(root)), reason))
    return left_out_table(rows)


def no_images_error(root: str, left_out: pa.Table) -> UsageError:
    """Return the error for a folder where all images are ``left_out``, or without any: a NoImagesError."""
    folder = storage.readable(root)
    for row in left_out.slice(0, 1).to_pylist():
        if "/" not in row["image_id"]:
            return UsageError(
                f"the images lie directly in {folder}, so their category is unknown; add --category NAME."
            )
        return UsageError(f"no images under {folder}; of {row['image_id']!r}, {row['error']}.")
    return NoImagesError(f"no images under {folder}; mvad looks for {', '.join(SUFFIXES)}.")
