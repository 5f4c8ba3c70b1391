"""A folder of nights while it is looked at: what cannot change is read once, and all else every few seconds."""

from __future__ import annotations

import datetime
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from mvad import results
from mvad.anomaly_maps.colours import Scale
from mvad.data.image_size import ImageSize
from mvad.errors import UsageError
from mvad.nights.estimates import evaluate_labels
from mvad.nights.labels import LabelFiles, Labels
from mvad.nights.queues import SHOWN, Ordered, Question, Queue, next_images, ordered_images
from mvad.nights.rows import NightRows
from mvad.nights.trends import Trends
from mvad.results.stored_maps import read_scale
from mvad.storage import FileEntry

LISTED_AGAIN_S = 5.0  # also for what labels tell
OF_IMAGE = [*(name for name in SHOWN if name not in ("folder", "night")), "uri", "run_id"]
MAPS = ["patch_scores", "patch_grid"]
QUEUE_IMAGES = 2000  # that are kept of a question, in its order
Value = TypeVar("Value")


class Kept:
    """Values by key, made when they are asked for first; the least recently used are dropped.

    A value that several threads ask for is made once.
    """

    def __init__(self, count: int) -> None:
        self._count, self._lock = count, threading.Lock()
        self._values: OrderedDict[Hashable, Any] = OrderedDict()
        self._making: dict[Hashable, threading.Lock] = {}

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        with self._lock:
            making = self._making.setdefault(key, threading.Lock())
        with making:
            with self._lock:
                if key in self._values:
                    self._values.move_to_end(key)
                    return self._values[key]
            value = make()
            with self._lock:
                self._values[key] = value
                while len(self._values) > self._count:
                    self._making.pop(self._values.popitem(last=False)[0], None)
            return value


class NightsFolder:
    """The nights below a folder (a URI), for several threads."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.trends = Trends()
        self._labels = LabelFiles(root)
        self._lock = threading.Lock()
        self._listed: tuple[float, NightRows] | None = None
        self._parts, self._tables, self._facts, self._scales = Kept(8), Kept(16), Kept(1000), Kept(1000)
        self._ordered, self._evaluations, self._categories = Kept(64), Kept(64), Kept(8)

    def nights(self) -> NightRows:
        """All nights, as they were at most `LISTED_AGAIN_S` seconds ago; UsageError if there are none."""
        with self._lock:
            now = time.monotonic()
            if self._listed is None or now - self._listed[0] > LISTED_AGAIN_S:
                listed, before = NightRows.open(self.root), self._listed
                unchanged = before is not None and before[1].files == listed.files
                self._listed = now, before[1] if before is not None and unchanged else listed
            return self._listed[1]

    def look_ahead(self) -> threading.Thread:
        """Compute the numbers of all nights in a thread, so that whoever asks for them first waits less."""

        def compute() -> None:
            with suppress(UsageError):  # which those who ask are told
                self.trends.of(self.nights())

        thread = threading.Thread(target=compute, name="nights", daemon=True)
        thread.start()
        return thread

    def between(self, since: datetime.date | None, until: datetime.date | None) -> NightRows:
        """The nights between two dates, both included; a run that is no night is in any time.

        UsageError if there are none.
        """
        nights = self.nights()

        def is_in(date: datetime.date | None) -> bool:
            return date is None or ((since is None or since <= date) and (until is None or date <= until))

        folders = [folder for folder in nights.files if is_in(nights.dates[folder]) and nights.files[folder]]
        if not folders:
            raise UsageError("there are no results of these nights; choose others")
        part = {folder: nights.files[folder] for folder in folders}
        return self._parts.get(_key(part), lambda: replace(nights, files=part))

    def image(self, name: str, image_id: str) -> dict[str, Any] | None:
        """The row of an image of a night, by the name of its folder, without its map; None if there is none.

        ``folder`` is the URI of the results.
        """
        nights = self.nights()
        folder = next((folder for folder in nights.files if nights.name_of(folder) == name), None)
        if folder is None:
            return None
        key = folder, tuple(nights.files[folder])
        table = self._tables.get(key, lambda: results.read_scores(folder, OF_IMAGE))
        number = pc.index(table["image_id"], image_id).as_py()
        if number < 0:
            return None
        return table.slice(number, 1).to_pylist()[0] | {"folder": folder, "night": nights.dates[folder]}

    def patch_scores(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row of an image with its map, as far as it kept one."""
        found = results.read_images(row["folder"], row["category"], [row["image_id"]], ["image_id", *MAPS]).to_pylist()
        return row | (found[0] if found else dict.fromkeys(MAPS))

    def labels(self) -> Labels:
        """All labels; see `read_labels`."""
        return self._labels.read()

    def queue(self, nights: NightRows, question: Question, limit: int, offset: int, with_labelled: bool) -> Queue:
        """Images that await a label: see `next_images`."""
        labels, kept = None if with_labelled else self.labels().current, QUEUE_IMAGES

        def ordered(count: int) -> Ordered:
            return self._ordered.get(
                (_key(nights.files), question, count), lambda: ordered_images(nights, question, count)
            )

        while True:
            found = ordered(kept)
            queue = next_images(found, labels, question.drawn, limit, offset)
            if len(queue.rows) == limit or len(found.table) == found.n_images:
                return queue
            kept *= 4

    def categories(self) -> list[str]:
        """The categories of all nights, sorted."""
        nights = self.nights()
        query = "SELECT DISTINCT category FROM rows ORDER BY category"
        return self._categories.get(_key(nights.files), lambda: nights.query(query)["category"].to_pylist())

    def evaluation(self, nights: NightRows) -> list[dict[str, Any]]:
        """What labels tell (`Evaluation.rows`), as they were at most `LISTED_AGAIN_S` seconds ago."""
        now = int(time.monotonic() / max(LISTED_AGAIN_S, 1e-3))
        return self._evaluations.get((_key(nights.files), now), lambda: evaluate_labels(nights, self.labels()).rows())

    def facts(self, row: dict[str, Any]) -> dict[str, Any]:
        """What ``run.json`` of a row's night says of its category; empty if nothing, as while it is being scored."""
        try:
            return self._facts.get(
                _run_key(row), lambda: results.read_run(row["folder"])["categories"][row["category"]]
            )
        except (UsageError, KeyError, TypeError):
            return {}

    def scale(self, row: dict[str, Any]) -> tuple[ImageSize, Scale] | None:
        """The input size of the model that scored a row, and the colours of its maps; None if it kept none."""
        sides = self.facts(row).get("size")
        if sides is None:
            return None
        size = ImageSize(**sides)
        scale = self._scales.get(_run_key(row), lambda: read_scale(row["folder"], row["category"], size))
        return None if scale is None else (size, scale)


def _run_key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What is the same for the rows of a category that one run has written."""
    return row["folder"], row["category"], row["run_id"]


def _key(files: Mapping[str, Sequence[FileEntry]]) -> tuple[Any, ...]:
    """What is the same for the same files in the same state."""
    return tuple((folder, tuple(entries)) for folder, entries in files.items())


def with_labels(rows: Sequence[dict[str, Any]], labels: pa.Table) -> list[dict[str, Any]]:
    """Rows of a queue, each with its label, or None; ``labels`` are the current ones."""
    said = {(row["folder"], row["image_id"]): row for row in labels.to_pylist()}
    shown = []
    for row in rows:
        label = said.get((row["folder"], row["image_id"]))
        kept = None if label is None else {key: label[key] for key in ("judgement", "defect", "reviewer")}
        shown.append(row | {"label": kept})
    return shown
