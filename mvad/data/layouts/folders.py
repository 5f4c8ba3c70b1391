"""Categories with labels in the names of folders: MVTec AD, AD 2 and LOCO, BTAD, MPDD, and folders of people's own.

::

    [<category>/]train/good/*                           good images to learn from
    [<category>/]test/<defect or good>/*                test images; directly in test/: of unknown label
    [<category>/]validation/good/*                      to learn from too; without a test folder, test images
    [<category>/]ground_truth/<defect>/<name>[_mask].*  masks; also below a test folder, or a folder of masks per image
    [<category>/]OK/*, NG/*                             good and defective images side by side: a seeded split
    [<category>/]OK_train/*, OK_test/*, NG/*            the same, already divided

Defective images outside the test folder are test images: nothing is learnt from them.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

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
from mvad.data.layouts.masks import Masks, stem_of, without_mask_suffix
from mvad.data.names import GROUND_TRUTH, MASKS, Meaning, is_labelled, meaning, plain_words
from mvad.storage import FileEntry


class Placed(NamedTuple):
    """A file, and the folders between its category and itself."""

    file: FileEntry
    folders: list[str]


def recognises(found: Found) -> bool:
    """Return whether these files may have the layout above: ROOT or a folder of it is a category with labels."""
    names: dict[str, set[str]] = defaultdict(set)  # of folders in ROOT, and in each of its folders
    for file in found.images:
        folders = file.path.split("/")[:-1]
        for above, name in zip(["", *folders[:1]], folders[:2], strict=False):
            names[above].add(name)
    return any(map(is_labelled, names.values()))


def read(root: str, found: Found) -> Contents:
    """Read the layout above."""
    collected = Collected()
    for category, files in sorted(_by_category(root, found.images).items()):
        _Category(category, files, collected).read()
    return collected.contents()


def _by_category(root: str, images: Sequence[FileEntry]) -> dict[str, list[Placed]]:
    """Divide images by category: the first folder, or ROOT itself if its folders are those of a category."""
    parts = {file.uri: file.path.split("/") for file in images}
    root_is_category = is_labelled({names[0] for names in parts.values() if len(names) > 1})
    root_name = name_of(root)
    placed = defaultdict(list)
    for file in images:
        *folders, _ = parts[file.uri]
        if not folders or (root_is_category and (meaning(folders[0]) != Meaning() or plain_words(folders[0]) in MASKS)):
            placed[root_name].append(Placed(file, folders))
        else:
            placed[folders[0]].append(Placed(file, folders[1:]))
    return placed


class _Category:
    """Reads the images of one category into ``collected``."""

    def __init__(self, name: str, files: Sequence[Placed], collected: Collected) -> None:
        self.name, self.collected = name, collected
        self.images: list[Placed] = []
        self.masks: dict[str, Masks] = defaultdict(Masks)  # by the split folder that they belong to; "" for all
        self.beside = Masks()  # in the folders of their images
        for file, folders in files:
            self._add(file, folders)
        self._take_masks_beside_images()
        self.top = {folders[0] for _, folders in self.images if folders}

    def _add(self, file: FileEntry, folders: list[str]) -> None:
        words = [plain_words(name) for name in folders[:2]]
        if words and words[0] in MASKS:
            self.masks[""].add(folders[1:], file)
        elif len(words) > 1 and words[1] in GROUND_TRUTH:
            self.masks[folders[0]].add(folders[2:], file)
        else:
            self.images.append(Placed(file, folders))

    def _take_masks_beside_images(self) -> None:
        """Find masks such as ``000_mask.png`` next to ``000.png``."""
        names = {(*folders, stem_of(file.path)) for file, folders in self.images}
        images, self.images = self.images, []
        for file, folders in images:
            stem = stem_of(file.path)
            if without_mask_suffix(stem) != stem and (*folders, without_mask_suffix(stem)) in names:
                self.beside.add(folders, file)
            else:
                self.images.append(Placed(file, folders))

    def read(self) -> None:
        """Add the images, each with its split, label and mask."""
        if any(meaning(name).split and meaning(name).is_good is None for name in self.top):
            self._read_splits()
        elif is_labelled(self.top):
            self._read_side_by_side()
        else:
            reason = "its category has neither train and test folders nor folders of good and defective images"
            for file, folders in self.images:
                if "/" in file.path:
                    self.collected.leave_out(file, self.name, f"{reason}; see --layout")
                else:
                    self._leave_out(file, folders)
        n_unused = sum(masks.n_unused for masks in (self.beside, *self.masks.values()))
        note_unused_masks(self.collected, {self.name: n_unused})

    def _read_splits(self) -> None:
        """Read train, validation and test folders."""
        has_test = any(meaning(name).split == "test" for name in self.top)
        defects = {names[1] for _, names in self.images if len(names) > 1 and meaning(names[0]).split == "test"}
        n_validation = 0
        divided = {names[0] for _, names in self.images if len(names) > 1}  # split folders with folders in them
        for file, folders in self.images:
            split, is_good = meaning(folders[0]) if folders else Meaning()
            depth = 1 if is_good is None else 0  # OK_test says both
            below = folders[depth:]
            if split is None and is_good is not False:
                self._leave_out(file, folders)
            elif split != "train" and (split == "test" or not has_test or not below):
                self._add_test(file, folders, depth)
            elif not below and folders[0] in divided:
                self._leave_out(file, folders)
            elif not below or meaning(below[0]).is_good:
                self.collected.add(file, self.name, "train", 0, GOOD_NAME)
                n_validation += split == "validation"
            elif split != "train" or meaning(below[0]).is_good is False or below[0] in defects:
                self._add_test(file, folders, depth)
            else:
                self._leave_out(file, folders)
        if n_validation:
            self.collected.remarks[self.name].append(f"{n_validation:,} of the good images are of validation")

    def _read_side_by_side(self) -> None:
        """Read folders of good and of defective images; good ones are divided by the folders' names, or by a seed."""
        good: dict[str | None, dict[str, FileEntry]] = defaultdict(dict)  # by split, and by path in the category
        for file, folders in self.images:
            split, is_good = meaning(folders[0]) if folders else Meaning()
            if is_good is None:
                self._leave_out(file, folders)
            elif not is_good:
                self._add_test(file, folders, 0)
            else:
                split = split or (meaning(folders[1]).split if len(folders) > 1 else None)
                good[split]["/".join([*folders, file.path.rpartition("/")[2]])] = file
        training = good["train"] | good["validation"]
        if good[None] and not training and not good["test"]:
            chosen = seeded_split(good[None])
            training = {name: file for name, file in good[None].items() if name in chosen}
            self.collected.remarks[self.name].append(SEEDED_SPLIT)
        elif not training:
            training = good[None]
        for file in training.values():
            self.collected.add(file, self.name, "train", 0, GOOD_NAME)
        for name, file in (good["test"] | good[None]).items():
            if name not in training:
                self.collected.add(file, self.name, "test", 0, GOOD_NAME)

    def _add_test(self, file: FileEntry, folders: Sequence[str], depth: int) -> None:
        """Add a test image, the first ``depth`` of whose folders is that of a split; right there, its label is unknown.

        Without a test folder, the folders of defective images may lie next to those of good ones: ``depth`` is 0.
        """
        below = folders[depth:]
        is_good = meaning(below[0]).is_good if below else None
        if not below or is_good:
            label, defect = (0, GOOD_NAME) if is_good else (None, None)
            self.collected.add(file, self.name, "test", label, defect)
            return
        defect = below[1] if is_good is False and len(below) > 1 else below[0]  # of NG/scratch: scratch
        stem, split_folder = stem_of(file.path), folders[0] if depth else ""
        mask = self.beside.find(folders, stem) if self.beside.count else None
        for name in (split_folder, ""):
            if mask is None and name in self.masks:
                mask = self.masks[name].find(below, stem)
        self.collected.add(file, self.name, "test", 1, defect, mask)

    def _leave_out(self, file: FileEntry, folders: Sequence[str]) -> None:
        place = f"in {'/'.join(folders)}" if folders else "directly in the folder of its category"
        reason = f"it lies {place}, where this layout has neither training nor test images; see --layout"
        self.collected.leave_out(file, self.name, reason)
