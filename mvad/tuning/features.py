"""Features of good images and of the same with defects, on Ray: defects are made in the tasks that decode."""

import functools
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import ray
import ray.data
from numpy.typing import NDArray
from PIL import Image

from mvad import storage
from mvad.anomaly_maps.geometry import seen_box
from mvad.console import Stage
from mvad.data.augmentation import Augmentation
from mvad.data.image_size import ImageSize
from mvad.data.images import Batch, decode_batch, ignored_on_image, read_image, resize_and_crop
from mvad.data.sampling import training_rows
from mvad.detectors import find_method
from mvad.errors import ImageError, one_line
from mvad.features.specs import feature_shapes
from mvad.features.weights import Network
from mvad.options import FitOptions
from mvad.pipeline.columns import FEATURES
from mvad.pipeline.dataset import Extractor, extracted, split_into_blocks
from mvad.process import end_in_time
from mvad.runtime.resources import ActorPool
from mvad.runtime.stage_totals import StageTotals
from mvad.tuning.defects import Defect, add_defect
from mvad.tuning.images import SCORED, TuningImages

MAX_GRID_SIDE = 256  # pixels: masks and maps are compared on a grid of at most this area
MIN_MARKED = 1 / 3  # of a cell of that grid, for it to count as defective

Sides = tuple[int, int]  # height and width


class Scored(NamedTuple):
    """Some of the images to be scored: their features (n, ...), and masks on the grid, packed (n, bytes)."""

    features: NDArray[np.float32]
    masks: NDArray[np.uint8]


@dataclass(frozen=True)
class Extraction:
    """Features of a category in Ray's object store, piece by piece in the order of the images."""

    size: ImageSize
    grid: Sides  # of masks, and of the maps that they are compared with
    fit: list[ray.ObjectRef]  # arrays of features
    scored: list[ray.ObjectRef]  # of `Scored`


def grid_of(size: ImageSize) -> Sides:
    """The grid on which the maps of all candidates are compared, given the input's size by the options as given."""
    scale = min(1.0, MAX_GRID_SIDE / math.sqrt(size.n_pixels))
    return max(1, round(scale * size.height)), max(1, round(scale * size.width))


class TuningExtractor(Extractor):
    """Actor: pixels become features, and masks pass through."""

    def __call__(self, batch: Batch) -> Batch:
        return self.features(batch) | {name: batch[name] for name in ("row", "error", "mask")}


def extract(
    images: TuningImages,
    category: str,
    options: FitOptions,
    network: Network,
    size: ImageSize,
    grid: Sides,
    pool: ActorPool,
    stage: Stage,
    bit_depths: Mapping[str, int],
    deadline: float,
) -> Extraction:
    """Extract what a candidate's options need; ``bit_depths`` are by category.

    ImageError if an image cannot be read any more, or shows no defect; TimeoutError at the deadline (of
    `time.monotonic`).
    """
    kind = find_method(options.method).feature
    shapes = feature_shapes([kind], network.spec, size)
    fit = training_rows(images.fit, {category: [options]})
    table = _table(fit, images.scored)
    decode = functools.partial(
        decode_with_defects,
        size=size,
        grid=grid,
        max_pixels=options.max_pixels,
        augmentation=options.augmentation,
        bit_depth=bit_depths[category],
        first_page=options.first_page,
        totals=stage.totals,
    )
    blocks = ray.data.from_blocks(split_into_blocks(table, size.n_pixels, pool))
    decoded = blocks.map_batches(storage.WithKeys(decode), batch_size=None, **pool.task_arguments)
    extraction = Extraction(size, grid, [], [])
    for batch in extracted(decoded, TuningExtractor, shapes, network, size, options, pool, stage):
        if time.monotonic() > deadline:
            raise TimeoutError
        for error in batch["error"][batch["error"] != ""]:
            raise ImageError(error)
        is_fit, features = batch["row"] < len(fit), batch[FEATURES + kind]
        if is_fit.any():
            extraction.fit.append(ray.put(features[is_fit]))
        if not is_fit.all():
            extraction.scored.append(ray.put(Scored(features[~is_fit], batch["mask"][~is_fit])))
    return extraction


def _table(fit: pa.Table, scored: pa.Table) -> pa.Table:
    """Rows of both, those to fit to first, with all columns that `decode_with_defects` reads."""
    nothing: dict[pa.DataType, Any] = {pa.string(): "", pa.int64(): 0}
    columns = {name: pa.array([nothing[kind]] * len(fit), kind) for name, kind in SCORED.items()}
    first = pa.table({"uri": fit["uri"], "variant": fit["variant"], **columns})
    second = scored.append_column("variant", pa.array([0] * len(scored), pa.int64()))
    table = pa.concat_tables([first, second.select(first.column_names)])
    return table.append_column("row", pa.array(range(len(table)), pa.int64()))


def decode_with_defects(
    batch: Batch,
    size: ImageSize,
    grid: Sides,
    max_pixels: int,
    augmentation: Augmentation,
    bit_depth: int,
    first_page: bool,
    totals: StageTotals,
) -> Batch:
    """Decode a block of images, and add the defect that each row names, in the image's own pixels.

    Returned are ``row``, ``category``, ``pixels`` as of `images.decode_batch`, ``mask`` on the grid (packed), and
    ``error``.
    """
    end_in_time()
    totals.add_retries()
    (good,), (bad,) = np.nonzero(batch["kind"] == ""), np.nonzero(batch["kind"] != "")
    count = len(batch["row"])
    pixels = np.zeros((count, size.height, size.width, 3), np.uint8)
    masks, errors = np.zeros((count, math.ceil(math.prod(grid) / 8)), np.uint8), np.full(count, "", object)
    clean = {"uri": batch["uri"][good], "variant": batch["variant"][good], "category": np.full(len(good), "", object)}
    decoded = decode_batch(clean, size, max_pixels, augmentation, bit_depths={"": bit_depth}, first_page=first_page)
    pixels[good], errors[good] = decoded["pixels"], decoded["error"]

    @functools.lru_cache(maxsize=1)  # the defects of an image are next to each other
    def load(uri: str) -> Image.Image:
        return read_image(uri, max_pixels, bit_depth=bit_depth, first_page=first_page)

    for row in bad.tolist():
        try:
            kind, extent, seed = (batch[name][row] for name in ("kind", "size", "seed"))
            texture = _texture(batch["texture"][row], max_pixels, first_page)
            defect = _with_defect(load(batch["uri"][row]), size, kind, extent, int(seed), texture)
            pixels[row] = resize_and_crop(Image.fromarray(defect.image), size)
            masks[row] = np.packbits(mask_on_grid(defect.mask, size, grid))
        except (ImageError, ValueError) as error:
            errors[row] = one_line(error)
    return {"row": batch["row"], "pixels": pixels, "mask": masks, "error": errors}


def _texture(uri: str, max_pixels: int, first_page: bool) -> NDArray[np.uint8] | None:
    """Another image, if there is one that can be read."""
    try:
        return np.asarray(read_image(uri, max_pixels, first_page=first_page)) if uri else None
    except ImageError:
        return None


def _with_defect(
    image: Image.Image, size: ImageSize, kind: str, extent: str, seed: int, texture: NDArray[np.uint8] | None
) -> Defect:
    seen = np.zeros((image.height, image.width), bool)
    box = seen_box(size, image.width, image.height)
    seen[box.top : box.bottom, box.left : box.right] = True
    ignored = ignored_on_image(size, image.width, image.height)
    if ignored is not None:
        seen &= ~ignored
    return add_defect(np.asarray(image), kind, extent, np.random.default_rng(seed), texture, seen)


def mask_on_grid(mask: NDArray[np.bool_], size: ImageSize, grid: Sides) -> NDArray[np.bool_]:
    """A mask of an upright image on the grid: cells of which at least a third is marked; if there is none, the most."""
    height, width = grid
    box = seen_box(size, mask.shape[1], mask.shape[0])
    part = Image.fromarray(mask[box.top : box.bottom, box.left : box.right].astype(np.float32))
    share = np.asarray(part.resize((width, height), Image.Resampling.BOX))
    return (share >= min(MIN_MARKED, float(share.max()))) & (share > 0)
