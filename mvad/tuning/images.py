"""Which good images a category is tuned on: some to fit to, others held out, and the defects these get."""

import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from mvad import storage
from mvad.data.images import read_image
from mvad.data.sampling import evenly_spaced
from mvad.errors import ImageError
from mvad.options import FitOptions
from mvad.search.duplicates import group_near_duplicates
from mvad.search.fingerprints import fingerprint
from mvad.tuning.defects import KINDS, SIZES, TEXTURED

MAX_FIT, MAX_HELD_OUT = 100, 40  # images of a category
MIN_FIT, MIN_HELD_OUT = 4, 4
HELD_OUT_SHARE = 0.3
N_DEFECTS = 3  # images with a defect per held-out image
IMAGES_PER_TASK = 16


class TuningImages(NamedTuple):
    """The images of a category that options are chosen by."""

    fit: pa.Table  # rows of the manifest
    scored: pa.Table  # of each held-out image a row, and one per defect: ``uri`` and what `SCORED` adds
    held_out: NDArray[np.int64]  # (n_scored,): number of the held-out image, from 0
    kinds: NDArray[np.int64]  # (n_scored,): number of the kind of defect, -1 for the good image itself


# Of rows to be scored: kind and size of the defect ("" for none), its seed, and the URI of a texture, if any.
SCORED = {"kind": pa.string(), "size": pa.string(), "seed": pa.int64(), "texture": pa.string()}


def tuning_images(
    images: pa.Table,
    others: Sequence[str],
    options: FitOptions,
    bit_depth: int,
    max_fit: int = MAX_FIT,
    max_held_out: int = MAX_HELD_OUT,
) -> TuningImages | None:
    """Divide good images of a category into some to fit to and some to hold out, and draw defects for the latter.

    Images are evenly spaced. Near duplicates are on one side; of those held out, one image of a group is used. None if
    there are too few, or may be.

    Parameters
    ----------
    images
        Rows of the manifest.
    others
        URIs of good images of other categories, for textures.
    """
    if max_held_out < MIN_HELD_OUT:
        return None
    n_held_out = min(max_held_out, max(MIN_HELD_OUT, round(HELD_OUT_SHARE * len(images))))
    sample = images.take(pa.array(evenly_spaced(len(images), max_fit + n_held_out)))
    sample, prints = _usable(sample, options, bit_depth)
    if not len(sample):
        return None
    groups = group_near_duplicates(prints)
    n_groups = int(groups.max()) + 1
    n_held_out = min(n_held_out, max(MIN_HELD_OUT, round(HELD_OUT_SHARE * n_groups)))
    chosen = evenly_spaced(n_groups, n_held_out)
    fit = np.flatnonzero(~np.isin(groups, chosen))[:max_fit]
    if len(fit) < MIN_FIT or n_groups - n_held_out < MIN_FIT:
        return None
    first = np.array([np.flatnonzero(groups == group)[0] for group in chosen])
    scored, held_out, kinds = _with_defects(sample.take(pa.array(first)), others, options.seed)
    return TuningImages(sample.take(pa.array(fit)), scored, held_out, kinds)


def _usable(sample: pa.Table, options: FitOptions, bit_depth: int) -> tuple[pa.Table, NDArray[np.uint8]]:
    """The rows of images that can be read, and their fingerprints."""
    uris: list[str] = sample["uri"].to_pylist()
    task: Any = ray.remote(num_cpus=1)(read_fingerprints)
    parts = [
        task.remote(
            uris[start : start + IMAGES_PER_TASK], options.max_pixels, bit_depth, options.first_page, storage.Keys()
        )
        for start in range(0, len(uris), IMAGES_PER_TASK)
    ]
    prints = [one for part in ray.get(parts) for one in part]
    usable = [number for number, one in enumerate(prints) if one is not None]
    known = [one for one in prints if one is not None]
    table = sample.take(pa.array(usable, pa.int64()))
    return table, np.stack(known) if known else np.empty((0, 1, 1), np.uint8)


def read_fingerprints(
    uris: Sequence[str], max_pixels: int, bit_depth: int, first_page: bool, keys: storage.Keys | None = None
) -> list[NDArray[np.uint8] | None]:
    """Fingerprints of images, None of those that cannot be read, with the ``keys`` of object storage."""

    def read(uri: str) -> NDArray[np.uint8] | None:
        try:
            return fingerprint(read_image(uri, max_pixels, bit_depth=bit_depth, first_page=first_page))
        except ImageError:
            return None

    return [read(uri) for uri in uris]


def _with_defects(
    held_out: pa.Table, others: Sequence[str], seed: int
) -> tuple[pa.Table, NDArray[np.int64], NDArray[np.int64]]:
    """A row per held-out image and one per defect, next to each other; kinds and sizes take turns."""
    kinds, sizes = list(KINDS), list(SIZES)
    rows: list[dict[str, object]] = []
    numbers: list[tuple[int, int]] = []
    for image, (uri, name) in enumerate(
        zip(held_out["uri"].to_pylist(), held_out["image_id"].to_pylist(), strict=True)
    ):
        rows.append({"uri": uri, "kind": "", "size": "", "seed": 0, "texture": ""})
        numbers.append((image, -1))
        for number in range(image * N_DEFECTS, (image + 1) * N_DEFECTS):
            kind = number % len(kinds)
            size = sizes[number // len(kinds) % len(sizes)]
            drawn = zlib.crc32(f"{seed}/{number}/{name}".encode())
            texture = others[drawn % len(others)] if others and kinds[kind] in TEXTURED else ""
            rows.append({"uri": uri, "kind": kinds[kind], "size": size, "seed": drawn, "texture": texture})
            numbers.append((image, kind))
    table = pa.Table.from_pylist(rows, pa.schema({"uri": pa.string(), **SCORED}))
    images, of_kind = np.array(numbers, np.int64).T
    return table, images, of_kind
