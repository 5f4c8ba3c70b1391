"""The folder that an export writes to, and the names of the files in it."""

import hashlib
import re
from collections.abc import Collection, Iterable

import numpy as np

from mvad import results, storage
from mvad.anomaly_maps.export import file_path
from mvad.errors import UsageError

_LAST_SUFFIX = re.compile(r"(?<=[^/])\.[^./]*\Z")


def prepare_folder(source: str, target: str, name: str) -> None:
    """Make sure that an export called ``name`` of the results ``source`` may write to the folder ``target`` (URIs).

    UsageError if it cannot be written to, holds other files (an earlier export has left ``<name>.json``), or lies in
    the folder of the results under another name.
    """
    results.ensure_outside(source, target, (name,))
    names = storage.list_folder(target)
    if names and f"{name}.json" not in names:
        raise UsageError(f"{storage.readable(target)} holds other files ({names[0]}); give --to an empty folder.")
    storage.ensure_writable_folder(target)


def label_path(image_id: str, suffix: str, repeated: Collection[int] = ()) -> str:
    """Return the relative path of the file with an image's labels: that of the image, but for its suffix.

    Other programs look for it there. Images that differ in their suffix alone, whose `stem_key` is among ``repeated``,
    keep it, followed by ``~``, in which no other name ends. Paths are safe and different for each image: see
    `anomaly_maps.export.file_path`.
    """
    if stem_key(image_id) in repeated:
        return file_path(image_id, f"~{suffix}", [suffix])
    return file_path(_stem(image_id), suffix, [suffix])


def repeated_stems(image_ids: Iterable[str]) -> set[int]:
    """Return the `stem_key` of each name without its suffix that more than one of the images has."""
    keys, counts = np.unique(np.fromiter(map(stem_key, image_ids), np.uint64), return_counts=True)
    return set(keys[counts > 1].tolist())


def stem_key(image_id: str) -> int:
    """Return 64 bits that stand for the name of an image without its suffix, equal on every machine."""
    return int.from_bytes(hashlib.blake2b(_stem(image_id).encode(), digest_size=8).digest(), "big")


def _stem(image_id: str) -> str:
    return _LAST_SUFFIX.sub("", image_id)
