"""Which mask belongs to which image, by names."""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import PurePosixPath

from mvad import storage
from mvad.storage import FileEntry

MASK_SUFFIX = re.compile(r"[-_. ](?:mask|label|gt|ground[-_ ]?truth|seg|segmentation|annotation)s?$", re.IGNORECASE)


def stem_of(path: str) -> str:
    """Return the name of a file without its suffix."""
    return PurePosixPath(path).stem


def without_mask_suffix(stem: str) -> str:
    """Return the name of the image that a mask's name is made from: ``000`` of ``000_mask``."""
    return MASK_SUFFIX.sub("", stem)


class Masks:
    """The masks of one category.

    A mask has the name of its image, with or without a suffix such as ``_mask``, and lies in folders of the same names.
    Several masks of one image lie in a folder that has the image's name.
    """

    def __init__(self) -> None:
        self._by_name: dict[tuple[str, ...], list[FileEntry]] = defaultdict(list)  # by folders and the image's name
        self._by_folder: dict[tuple[str, ...], list[FileEntry]] = defaultdict(list)
        self._used: set[str] = set()
        self.count = 0

    def add(self, folders: Sequence[str], file: FileEntry) -> None:
        """Add a mask in ``folders`` below that of all masks."""
        place, stem = tuple(name.casefold() for name in folders), stem_of(file.path)
        for name in {stem, without_mask_suffix(stem)}:
            key = (*place, name)
            self._by_name[key].append(file)
        self._by_folder[place].append(file)
        self.count += 1

    def find(self, folders: Sequence[str], stem: str) -> str | None:
        """Return the URI of an image's mask, that of a folder of masks (it ends in ``/``), or None."""
        place = tuple(name.casefold() for name in folders)
        files = self._by_name.get((*place, stem)) or self._by_name.get((stem,))  # the latter: not divided into folders
        if files:  # one that is named as a mask comes first
            files = sorted(files, key=lambda file: (stem_of(file.path) == stem, file.path))[:1]
        else:
            files = self._by_folder.get((*place, stem.casefold()), [])
        self._used |= {file.uri for file in files}
        if len(files) > 1:
            return storage.sibling(files[0].uri, "")
        return files[0].uri if files else None

    @property
    def n_unused(self) -> int:
        """How many belong to no image that was asked for."""
        return self.count - len(self._used)
