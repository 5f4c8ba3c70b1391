"""Actors that decode and score, and stay: a batch waits neither for a process to start nor for a model to load."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.exceptions import RayActorError
from ray.util import ActorPool as RoundRobin

from mvad import storage
from mvad.data.images import Batch, decode_batch
from mvad.memory import block_rows
from mvad.pipeline.columns import SCORED
from mvad.runtime.resources import actor_pool
from mvad.runtime.stage_totals import StageTotals
from mvad.runtime.threads import Threads
from mvad.runtime.watchdog import watch_nodes
from mvad.scoring.score import BackboneGroup, ScoringActor

MAX_CALL_ROWS = 256  # images of one call of an actor
MAX_TASK_RETRIES = 3  # of a call whose process has ended, or its node; then its images are tried one by one


class WarmScorer:
    """Actor that turns files into scores: it decodes, on its threads, what a `ScoringActor` scores."""

    def __init__(self, keys: storage.Keys, decode: Callable[[Batch], Batch], scorer: dict[str, Any]) -> None:
        self._score = ScoringActor(**scorer)
        self._decode, self._threads = decode, Threads(scorer["threads"])

    def ready(self) -> None:
        """Answer, once the network is loaded."""

    def score(self, batch: Batch) -> pa.Table:
        """A table of `columns.SCORED` for images with the columns ``row``, ``uri`` and ``category``."""

        def decode(rows: Sequence[int]) -> Batch:
            return self._decode({name: column[[*rows]] for name, column in batch.items()})

        parts = self._threads.map(decode, self._threads.shares(range(len(batch["row"])), 1))
        return self._score({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


class WarmPool:
    """The actors of a backbone and an image size. Call `close` when they are not needed any more."""

    def __init__(self, group: BackboneGroup, warn: Callable[[str], None]) -> None:
        self._group, self._warn = group, warn
        self._pool = actor_pool(group.options.actors, sys.maxsize)
        decode = functools.partial(
            decode_batch,
            size=group.size,
            max_pixels=group.options.max_pixels,
            bit_depths=group.bit_depths,
            first_page=group.options.first_page,
        )
        scorer: Any = ray.remote(WarmScorer)
        scorer = scorer.options(max_restarts=-1, max_task_retries=MAX_TASK_RETRIES, **self._pool.actor_resources)
        arguments = storage.Keys(), decode, group.scorer_arguments(self._pool, StageTotals("watch"))
        self._actors = [scorer.remote(*arguments) for _ in range(self._pool.actors)]

    def wait(self) -> None:
        """Return when the first actor is ready."""
        ready, _ = ray.wait([actor.ready.remote() for actor in self._actors])
        ray.get(ready)

    def score(self, images: pa.Table) -> tuple[pa.Table, pa.Table]:
        """Score images of categories of this pool: a table of `columns.SCORED`, and the images that it lacks.

        These are images in which the process that scores them ends, again and again. UsageError as from `watch_nodes`.
        """
        columns = {name: images[name].to_numpy() for name in ("uri", "category")}
        columns["row"] = np.arange(len(images))
        size = min(self._group.batch_size(self._pool.gpus), block_rows(self._group.size.n_pixels, MAX_CALL_ROWS))
        step = min(size, math.ceil(len(images) / len(self._actors)))
        lost: list[int] = []
        try:
            tables = self._call(columns, [slice(row, row + step) for row in range(0, len(images), step)])
        except RayActorError:
            tables = [SCORED.empty_table()]
            for row in range(len(images)):
                try:
                    tables += self._call(columns, [slice(row, row + 1)])
                except RayActorError:
                    lost.append(row)
        return pa.concat_tables(tables), images.take(pa.array(lost, pa.int64()))

    def _call(self, columns: Batch, rows: list[slice]) -> list[pa.Table]:
        batches = [{name: column[some] for name, column in columns.items()} for some in rows]
        scored = RoundRobin(self._actors).map(lambda actor, batch: actor.score.remote(batch), batches)
        return list(watch_nodes(scored, self._pool.actor_resources, self._warn))

    def close(self) -> None:
        """End the actors, and what they are doing."""
        for actor in self._actors:
            ray.kill(actor)
