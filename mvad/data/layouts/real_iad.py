"""Real-IAD: a JSON file per category, which lists its training and test images.

::

    realiad_jsons/realiad_jsons/<category>.json     {"meta": {"prefix", "normal_class"}, "train": [...], "test": [...]}
    realiad_1024/<category>/OK/..., NG/...          images and masks; or realiad_512, realiad_256, or without this level

The paths of an entry, ``image_path`` and ``mask_path``, start at the prefix.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from mvad import storage
from mvad.data.layouts.contents import GOOD_NAME, Collected, Contents, note_unused_masks
from mvad.data.layouts.files import Found
from mvad.errors import UsageError
from mvad.storage import FileEntry

FOLDER = "realiad_"  # how the folders of the data set begin
STANDARD = "realiad_jsons"  # the folder of the published division; others have fewer images, or noise among the good
RESOLUTIONS = ("realiad_1024", "realiad_512", "realiad_256", "")  # the first that DATA has is read


def recognises(found: Found) -> bool:
    """Return whether these files may be Real-IAD's."""
    return any(file.path.endswith(".json") and FOLDER in file.path for file in found.others)


def read(root: str, found: Found) -> Contents:
    """Read the images that the JSON files list.

    Images in other resolutions are not read, and images that no file lists are left out. UsageError if there is no such
    file, or one is damaged.
    """
    collected, by_path = Collected(), {file.path: file for file in found.images}
    resolution = next(name for name in RESOLUTIONS if not name or any(f"{name}/" in path for path in by_path))
    base = next((path[: path.index(f"{resolution}/")] for path in by_path if f"{resolution}/" in path), "")
    base = f"{base}{resolution}/" if resolution else ""
    unused = {path for path in by_path if path.startswith(base)}
    others = len(by_path) - len(unused)
    for file in _division_files(found.others):
        content, category = _read_division(file), PurePosixPath(file.path).stem
        prefix, normal = content["meta"]["prefix"].strip("/"), content["meta"].get("normal_class", "OK")
        for split in ("train", "test"):
            for entry in content[split]:
                path, mask_path = (_path(base, prefix, entry.get(key)) for key in ("image_path", "mask_path"))
                # A listed image that is missing keeps its row, which becomes an error row.
                image = by_path.get(path) or FileEntry(path, storage.join(root, path))
                mask = by_path.get(mask_path)
                unused -= {path, mask_path}
                good = entry["anomaly_class"] == normal
                defect = GOOD_NAME if good else entry["anomaly_class"]
                mask_uri = None if good or mask is None else mask.uri
                collected.add(image, category, split if good else "test", int(not good), defect, mask_uri)
        if others:
            collected.remarks[category].append(f"in the resolution of {base.strip('/')}")
    _leave_out(collected, by_path, unused, base)
    return collected.contents()


def _path(base: str, prefix: str, name: str | None) -> str:
    return base + "/".join(part for part in (prefix, name) if part) if name else ""


def _division_files(files: Sequence[FileEntry]) -> list[FileEntry]:
    """Return one JSON file per category: that of the published division, or else the first."""
    by_category: dict[str, list[FileEntry]] = defaultdict(list)
    for file in files:
        if file.path.endswith(".json"):
            by_category[PurePosixPath(file.path).stem].append(file)

    def is_other(file: FileEntry) -> bool:
        return PurePosixPath(file.path).parent.name != STANDARD

    return [min(found, key=lambda file: (is_other(file), file.path)) for _, found in sorted(by_category.items())]


def _read_division(file: FileEntry) -> dict[str, Any]:
    name = storage.readable(file.uri)
    try:
        content = json.loads(storage.read(file.uri))
        entries = [*content["train"], *content["test"]]
        texts = [entry[name] for entry in entries for name in ("image_path", "anomaly_class")]
        if not all(isinstance(text, str) for text in [*texts, content["meta"]["prefix"]]):
            raise TypeError("a path or class is no text")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{name} is no list of Real-IAD's images: {error!r}.") from error
    return content


def _leave_out(collected: Collected, by_path: dict[str, FileEntry], unused: set[str], base: str) -> None:
    """Leave out the images of a category that its JSON file does not list, except masks."""
    n_masks: dict[str, int] = defaultdict(int)
    for path in sorted(unused):
        category = path[len(base) :].partition("/")[0]
        if path.endswith(".png") and f"{path.removesuffix('.png')}.jpg" in by_path:
            n_masks[category] += 1
        else:
            collected.leave_out(by_path[path], category, "the JSON file of its category does not list it")
    note_unused_masks(collected, n_masks)
