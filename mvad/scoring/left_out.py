"""Calibrate on the training images of a bank: each is scored as if none of its patches were in it.

Features of large images do not fit into memory together, so the images go through the network once more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from mvad.anomaly_maps.localise import map_peak
from mvad.anomaly_maps.sampled import sampled_patches
from mvad.data.image_size import ImageSize
from mvad.data.images import Batch
from mvad.detectors import Detector, Shardable, State, find_method
from mvad.detectors.levels import Levels
from mvad.features.specs import prepare
from mvad.features.weights import Network
from mvad.pipeline.dataset import decoded_images
from mvad.runtime.resources import ActorPool
from mvad.runtime.threads import Threads, worker_device
from mvad.runtime.watchdog import watch_nodes
from mvad.scoring.held_out import HELD_OUT_COLUMNS, HeldOut, at_both_levels

if TYPE_CHECKING:
    from mvad.console import Stage
    from mvad.options import JobOptions


@dataclass(frozen=True)
class SharedBank:
    """A fitted `Shardable` method, and what it needs to tell the shards apart."""

    method: str
    state: State
    origins: Any  # `Shardable.origins`
    left_out: Mapping[int, frozenset[int]]  # by row of the table of images: the shards that its score does without


class LeftOutScorer:
    """Actor that scores each image without some shards of the bank; ``banks`` are by category."""

    def __init__(self, spec: ray.ObjectRef, banks: ray.ObjectRef, threads: int) -> None:
        self.extract, self.threads = ray.get(spec).load(worker_device()), Threads(threads)
        self.banks: Mapping[str, SharedBank] = ray.get(banks)
        self.category = ""  # of the last image
        self.detector: Detector | None = None

    def __call__(self, batch: Batch) -> Batch:
        """Columns ``row`` and ``held_out``, NaN for images that cannot be used."""
        scores = np.full((len(batch["row"]), HELD_OUT_COLUMNS), np.nan, np.float32)
        for number, (row, category, error) in enumerate(
            zip(batch["row"].tolist(), batch["category"], batch["error"], strict=True)
        ):
            if not error:
                scores[number] = self._score(batch["pixels"][number], row, category).columns
        return {"row": batch["row"], "held_out": scores}

    def _score(self, pixels: NDArray[np.uint8], row: int, category: str) -> HeldOut:
        from mvad.scoring.windows import sample_windows, score_windows, settle_windows  # of PyTorch, for actors alone

        bank = self.banks[category]
        if self.detector is None or category != self.category:
            self.category = category
            self.detector = find_method(bank.method).from_state(bank.state, self.extract.device)
        assert isinstance(self.detector, Shardable)
        others: Detector = self.detector.without(bank.origins, bank.left_out[row], self.extract.device)
        tiles = others.tiles if isinstance(others, Levels) else others
        found = score_windows(pixels, self.extract, {0: tiles}, {0: math.inf}, self.threads)[0]

        def settle(grid: NDArray[np.float32], needed: NDArray[np.bool_]) -> NDArray[np.float32]:
            return settle_windows(pixels, self.extract, tiles, grid, needed, self.threads)

        needed = sampled_patches(self.extract.size, found.grid.shape)
        patches = sample_windows(pixels, self.extract, {"": tiles}, needed, self.threads)[""]
        peak = map_peak(settle, found.grid, self.extract.size)
        held_out = HeldOut(np.array([found.score], np.float32), np.array([peak], np.float32), patches=patches[None])
        if isinstance(others, Levels):
            whole = self.extract.of_whole(pixels)[others.feature]
            return at_both_levels(others, held_out, whole, self.extract.size)
        return held_out


def score_left_out(
    images: pa.Table,
    size: ImageSize,
    banks: Mapping[str, SharedBank],
    network: Network,
    options: JobOptions,
    pool: ActorPool,
    stage: Stage,
    bit_depths: Mapping[str, int],
) -> NDArray[np.float32]:
    """Scores, peaks of maps and patch scores of images, each without the shards that its bank names.

    They are (n, columns), as of `HeldOut.columns`; NaN for images that cannot be used.
    """
    kinds = sorted({find_method(bank.method).feature for bank in banks.values()})
    spec = ray.put(prepare(kinds, network, size, options.engine, pool.gpus))
    dataset = decoded_images(images, size, options, pool, stage.totals, bit_depths).map_batches(
        LeftOutScorer,
        batch_size=1,
        fn_constructor_kwargs={"spec": spec, "banks": ray.put(banks), "threads": pool.threads},
        **pool.arguments,
    )
    dataset.set_name("mvad_calibrate")
    scores = np.full((len(images), HELD_OUT_COLUMNS), np.nan, np.float32)
    batches = dataset.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0)
    for batch in watch_nodes(batches, pool.actor_resources, stage.report.warn):
        scores[batch["row"]] = batch["held_out"]
        stage.advance(len(batch["row"]))
    return scores
