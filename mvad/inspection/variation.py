"""Where the good images of a category vary most: what a person may want to ignore, such as printed numbers."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc
import ray
from numpy.typing import NDArray
from PIL import Image

from mvad import storage
from mvad.anomaly_maps.geometry import Box
from mvad.console import Reporter
from mvad.data.images import read_image
from mvad.data.layouts import IGNORE_NAME
from mvad.data.manifest import Manifest
from mvad.data.sampling import evenly_spaced
from mvad.errors import ImageError, UsageError
from mvad.html.thumbnails import encode
from mvad.options import InspectOptions
from mvad.storage.text import shown_name

MAX_IMAGES = 64  # per category, evenly spaced
MIN_IMAGES = 4
LONGEST_SIDE = 1024  # pixels of the copies that are compared
CELL = 4  # pixels of a copy: variation is that of cells
LIGHT_CELLS = 16  # light changes over so many cells; it is taken out
STANDS_OUT = 2.0  # times the variation that all but `USUAL_SHARE` of the cells stay below
USUAL_SHARE = 0.1
MAX_SHARE = 0.5  # of an image in a starter mask
MIN_CELLS = 12  # of an area
GROWTH = 2  # cells that an area is grown by


class StarterMask(NamedTuple):
    """What of a category's images might be ignored."""

    width: int  # of its typical image
    height: int
    cells: NDArray[np.bool_]  # (rows, columns)

    @property
    def box(self) -> Box:
        """Around all of it, in pixels of the image."""
        rows, columns = np.nonzero(self.cells)
        down, across = self.height / self.cells.shape[0], self.width / self.cells.shape[1]
        left, right = round(columns.min() * across), round((columns.max() + 1) * across)
        return Box(left, round(rows.min() * down), right, round((rows.max() + 1) * down))

    def image(self) -> Image.Image:
        """A black picture (mode L), white where images might be ignored."""
        mask = Image.fromarray(self.cells.astype(np.uint8) * 255)
        return mask.resize((self.width, self.height), Image.Resampling.NEAREST)


def variation(images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """How much cells of `CELL` pixels differ from image to image: (rows, columns).

    ``images`` are (height, width) grey copies of one size. The spread, half the distance between the 10 and 90 %
    quantiles, of a cell's mean and of its contrast, added up; the mean without the light around it.
    """
    from scipy.ndimage import gaussian_filter

    means, contrasts = [], []
    for image in images:
        rows, columns = (length // CELL for length in image.shape)
        cells = image[: rows * CELL, : columns * CELL].astype(np.float32).reshape(rows, CELL, columns, CELL)
        mean = cells.mean(axis=(1, 3))
        means.append(mean - gaussian_filter(mean, LIGHT_CELLS))
        contrasts.append(cells.std(axis=(1, 3)))
    spread = np.zeros_like(means[0])
    for values in (means, contrasts):
        low, high = np.percentile(np.stack(values), (10, 90), axis=0)  # print may be sparse
        spread += ((high - low) / 2).astype(np.float32)
    return gaussian_filter(spread, 1)


def standing_out(spread: NDArray[np.float32]) -> NDArray[np.bool_]:
    """The areas whose variation stands out from that of all others: (rows, columns); none if they are most of it."""
    from scipy.ndimage import binary_closing, binary_dilation, binary_opening, label

    usual = float(np.quantile(spread, 1 - USUAL_SHARE))
    padded = np.pad(spread > max(STANDS_OUT * usual, 1.0), 2 * GROWTH)
    marked = binary_opening(binary_closing(padded, iterations=2 * GROWTH))
    numbers, _ = label(marked)
    sizes = np.bincount(numbers.ravel())
    sizes[0] = 0
    marked = binary_dilation((sizes >= MIN_CELLS)[numbers], iterations=GROWTH)
    marked = marked[2 * GROWTH : -2 * GROWTH, 2 * GROWTH : -2 * GROWTH]
    return marked if marked.mean() <= MAX_SHARE else np.zeros_like(marked)


def starter_mask(
    uris: Iterable[str], max_pixels: int, bit_depth: int, first_page: bool, keys: storage.Keys | None = None
) -> StarterMask | None:
    """What stands out in images that can be read, with the ``keys`` of object storage; None if nothing does."""
    copies, sizes = [], []
    for uri in uris:
        try:
            image = read_image(uri, max_pixels, bit_depth=bit_depth, first_page=first_page)
        except ImageError:
            continue
        sizes.append(image.size)
        factor = min(1.0, LONGEST_SIDE / max(sizes[0]))
        size = max(CELL, round(sizes[0][0] * factor)), max(CELL, round(sizes[0][1] * factor))
        copies.append(np.asarray(image.convert("L").resize(size, Image.Resampling.BOX)))
    if len(copies) < MIN_IMAGES:
        return None
    cells = standing_out(variation(copies))
    width, height = (int(np.median(lengths)) for lengths in zip(*sizes, strict=True))
    return StarterMask(width, height, cells) if cells.any() else None


def mask_uri(folder: str, category: str) -> str:
    """Where the starter mask of a category is written, below a folder (a URI)."""
    return storage.join(folder, storage.folder_name(category), IGNORE_NAME)


def ensure_no_masks(manifest: Manifest, options: InspectOptions) -> None:
    """Make sure that no starter mask is there already, and that some can be written if asked for; else UsageError."""
    if options.ignore_masks is None:
        return
    folder = storage.to_uri(options.ignore_masks)
    for category in manifest.categories:
        uri = mask_uri(folder, category)
        if storage.exists(uri):
            raise UsageError(f"{storage.readable(uri)} exists; move it away, or give --ignore-masks another folder.")
    storage.ensure_writable_folder(folder)


def write_starter_masks(
    manifest: Manifest, options: InspectOptions, bit_depths: Mapping[str, int], report: Reporter
) -> None:
    """If asked for, write starter masks where something stands out; say what was found, category by category."""
    if options.ignore_masks is None:
        return
    folder = storage.to_uri(options.ignore_masks)
    find: Any = ray.remote(num_cpus=1)(starter_mask)
    tasks = {}
    for category in manifest.categories:
        rows = manifest.table.filter(pc.equal(manifest.table["category"], category))
        good = rows.filter(pc.fill_null(pc.equal(rows["label"], 0), False))
        unlabelled = rows.filter(pc.is_null(rows["label"]))
        uris = (good if len(good) else unlabelled)["uri"].to_pylist()
        chosen = [uris[number] for number in evenly_spaced(len(uris), MAX_IMAGES)]
        task = find.remote(chosen, options.max_pixels, bit_depths[category], options.first_page, storage.Keys())
        tasks[category] = task
    for category, task in tasks.items():
        mask: StarterMask | None = ray.get(task)
        if mask is None:
            report.result(f"{shown_name(category)}: no area of the good images varies much more than the others")
            continue
        uri, box = mask_uri(folder, category), mask.box
        storage.write(uri, encode(mask.image(), "PNG"))
        place = f"x {box.left} to {box.right}, y {box.top} to {box.bottom}"
        report.result(
            f"{shown_name(category)}: {100 * mask.cells.mean():.1f} % of the image ({place}) varies much more than the "
            f"rest; look at {storage.readable(uri)} before you use it"
        )
