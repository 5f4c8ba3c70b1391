"""Images to decoded batches, and those to features: the stages that fitting, scoring and inspection share."""

from __future__ import annotations

import functools
import itertools
import math
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import ray
import ray.data
from numpy.typing import NDArray

from mvad import storage
from mvad.data.augmentation import NO_FLIPS, Augmentation
from mvad.data.image_size import ImageSize, Window
from mvad.data.images import Batch
from mvad.features.kinds import put_whole
from mvad.features.specs import prepare
from mvad.features.weights import Network
from mvad.memory import block_rows
from mvad.pipeline.columns import FEATURES, FINGERPRINT, usable
from mvad.pipeline.decode import decode_images
from mvad.runtime.resources import ActorPool
from mvad.runtime.stage_totals import StageTotals
from mvad.runtime.threads import Threads, worker_device
from mvad.runtime.watchdog import watch_nodes
from mvad.search.fingerprints import fingerprints

if TYPE_CHECKING:
    from mvad.console import Stage
    from mvad.options import JobOptions

MAX_BLOCK_ROWS = 256  # of a decode task, and so of a result file
MIN_BLOCK_ROWS = 8
MIN_BLOCKS_PER_THREAD = 8
RAMP_FRACTION = 1 / 8  # at most this part of all images is in the smaller first and last blocks
FEATURE_BLOCK_BYTES = 32 << 20  # features that travel to the driver together; it holds several such blocks


class Extractor:
    """Actor that turns pixels into features of the kinds in ``shapes``; ``spec`` is an `specs.ExtractorSpec`.

    Of images with windows, it keeps every ``step``-th patch in both directions.
    """

    def __init__(
        self, spec: ray.ObjectRef, shapes: Mapping[str, Sequence[int]], threads: int, totals: StageTotals, step: int = 1
    ) -> None:
        self.extract, self.step = ray.get(spec).load(worker_device()), step
        self.shapes, self.threads, self.totals, self.name = shapes, Threads(threads), totals, uuid.uuid4().hex

    def __call__(self, batch: Batch) -> Batch:
        started = time.perf_counter()
        columns = self.features(batch) | {FINGERPRINT: fingerprints(batch["pixels"])}
        elapsed, counts = time.perf_counter() - started, Counter(batch["category"])
        n_images, bytes_read = len(batch["error"]), int(batch["file_size"].sum())
        seconds = {category: elapsed * count / n_images for category, count in counts.items()}
        self.totals.add_batch(seconds, n_images, n_images - len(usable(batch)), bytes_read, self.name)
        return columns | {name: batch[name] for name in ("row", "error")}

    def features(self, batch: Batch) -> Batch:
        """Extract features of a batch; rows with an error are zero."""
        n_images = len(batch["error"])
        columns: Batch = {
            FEATURES + kind: np.zeros((n_images, *shape), np.float32) for kind, shape in self.shapes.items()
        }

        def extract(rows: NDArray[np.int64]) -> None:
            for kind, values in self.extract.whole(batch["pixels"][rows]).items():
                columns[FEATURES + kind][rows] = values.cpu().numpy()

        def extract_windows(row: int, windows: Sequence[Window]) -> None:
            for parts in self.extract.parts(batch["pixels"][row], windows):
                for kind, part in parts.items():
                    (rows, inner_rows), (places, inner) = (thinned(one, self.step) for one in (part.rows, part.columns))
                    columns[FEATURES + kind][row, rows, places] = part.features[inner_rows, inner].cpu().numpy()

        if self.extract.size.window is None:
            self.threads.map(extract, self.threads.portions(usable(batch), self.extract.chunk))
        else:
            windows = self.extract.size.windows
            for row in usable(batch):
                self.threads.map(
                    functools.partial(extract_windows, row), self.threads.shares(windows, self.extract.chunk)
                )
                if self.extract.squeezed is not None:
                    for kind, values in self.extract.of_whole(batch["pixels"][row]).items():
                        put_whole(columns[FEATURES + kind][row], values[0].cpu().numpy())
        return columns


def thinned(part: slice, step: int) -> tuple[slice, slice]:
    """Which of every ``step``-th patch along an axis a part of all holds, and where in the part they are."""
    first, stop = (-(-end // step) for end in (part.start, part.stop))
    return slice(first, stop), slice(first * step - part.start, None, step)


def decoded_images(
    images: pa.Table,
    size: ImageSize,
    options: JobOptions,
    pool: ActorPool,
    totals: StageTotals,
    bit_depths: Mapping[str, int],
    augmentation: Augmentation = NO_FLIPS,
) -> ray.data.Dataset:
    """A data set of decoded images: see `columns`; ``bit_depths`` are by category."""
    names = [name for name in ("uri", "category", "variant") if name in images.column_names]
    rows = images.select(names).append_column("row", pa.array(range(len(images)), pa.int64()))
    decode = functools.partial(
        decode_images,
        size=size,
        max_pixels=options.max_pixels,
        augmentation=augmentation,
        bit_depths=bit_depths,
        first_page=options.first_page,
        totals=totals,
    )
    blocks = split_into_blocks(rows, size.n_pixels, pool)
    return ray.data.from_blocks(blocks).map_batches(storage.WithKeys(decode), batch_size=None, **pool.task_arguments)


def split_into_blocks(images: pa.Table, n_pixels: int, pool: ActorPool) -> list[pa.Table]:
    """Divide images, of so many pixels each for the model, into blocks that travel together.

    The first blocks are small, so that results come soon, and so are the last, so that no actor still has many images
    when the others are done.
    """
    share = math.ceil(len(images) / (pool.actors * pool.threads * MIN_BLOCKS_PER_THREAD))
    max_rows = min(block_rows(n_pixels, MAX_BLOCK_ROWS), max(MIN_BLOCK_ROWS, share))
    ramp: list[int] = []
    n_rows = MIN_BLOCK_ROWS
    while n_rows < max_rows and sum(ramp) + pool.actors * n_rows < len(images) * RAMP_FRACTION:
        ramp += [n_rows] * pool.actors
        n_rows *= 2
    full, remainder = divmod(len(images) - 2 * sum(ramp), max_rows)
    sizes = [*ramp, *[max_rows] * full, *[remainder] * (remainder > 0), *reversed(ramp)]
    ends = np.cumsum([0, *sizes])
    return [images.slice(start, end - start).combine_chunks() for start, end in itertools.pairwise(ends.tolist())]


def extract_features(
    images: pa.Table,
    shapes: Mapping[str, Sequence[int]],
    network: Network,
    size: ImageSize,
    options: JobOptions,
    pool: ActorPool,
    stage: Stage,
    bit_depths: Mapping[str, int],
    augmentation: Augmentation = NO_FLIPS,
    step: int = 1,
) -> Iterator[Batch]:
    """Extract features of images; batches for `by_category.group_by_category`, counted in the progress of a stage.

    Batches come in the images' order, so no more than one category or shard is incomplete at a time. ``shapes`` are
    those of one image's features, by the kinds to extract: `specs.feature_shapes`, of images with windows thinned
    by ``step``; ``bit_depths`` are by category.
    """
    decoded = decoded_images(images, size, options, pool, stage.totals, bit_depths, augmentation)
    for batch in extracted(decoded, Extractor, shapes, network, size, options, pool, stage, step):
        stage.advance(len(batch["row"]))
        yield batch


def extracted(
    decoded: ray.data.Dataset,
    extractor: type[Extractor],
    shapes: Mapping[str, Sequence[int]],
    network: Network,
    size: ImageSize,
    options: JobOptions,
    pool: ActorPool,
    stage: Stage,
    step: int = 1,
) -> Iterator[Batch]:
    """Batches of what actors make of decoded images, in their order; parameters as for `extract_features`."""
    spec = ray.put(prepare(list(shapes), network, size, options.engine, pool.gpus))
    dataset = decoded.map_batches(
        extractor,
        batch_size=options.memory_budget.after_weights(network.nbytes).batch_size(options.batch_size, shapes),
        fn_constructor_kwargs={
            "spec": spec,
            "shapes": shapes,
            "threads": pool.threads,
            "totals": stage.totals,
            "step": step,
        },
        **pool.arguments,
    )
    dataset.context.execution_options.preserve_order = True
    dataset.context.target_max_block_size = FEATURE_BLOCK_BYTES
    dataset.set_name(f"mvad_{stage.name}")
    stage.actors += pool.actors
    batches = dataset.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0)
    yield from watch_nodes(batches, pool.actor_resources, stage.report.warn)
