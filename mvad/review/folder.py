"""A folder of nights while it is looked at: its files are listed again when they may have changed."""

from __future__ import annotations

import datetime
import threading
import time
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from mvad import results
from mvad.anomaly_maps.colours import Scale
from mvad.data.image_size import ImageSize
from mvad.errors import UsageError
from mvad.nights.labels import Labels, current_labels, read_labels
from mvad.nights.rows import NightRows
from mvad.nights.trends import Trends
from mvad.results.stored_maps import read_scale

LISTED_AGAIN_S = 5.0
MAX_KEPT = 1000  # parts of the nights, and scales of colours


class NightsFolder:
    """The nights below a folder (a URI), for several threads."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.trends = Trends()
        self._lock = threading.Lock()
        self._listed: NightRows | None = None
        self._listed_at = 0.0
        self._parts: dict[tuple[str, ...], NightRows] = {}
        self._scales: dict[tuple[str, str, str], tuple[ImageSize, Scale] | None] = {}

    def nights(self) -> NightRows:
        """All nights, as they were at most `LISTED_AGAIN_S` seconds ago; UsageError if there are none."""
        with self._lock:
            if self._listed is None or time.monotonic() - self._listed_at > LISTED_AGAIN_S:
                listed = NightRows.open(self.root)
                if self._listed is None or listed.files != self._listed.files:
                    self._listed, self._parts = listed, {}
                self._listed_at = time.monotonic()
            return self._listed

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
        return self._part(nights, folders)

    def night(self, name: str) -> NightRows | None:
        """The night of a folder's name; None if there is none."""
        nights = self.nights()
        folders = [folder for folder in nights.files if nights.name_of(folder) == name]
        return self._part(nights, folders) if folders else None

    def _part(self, nights: NightRows, folders: Sequence[str]) -> NightRows:
        """The part of nights of some folders: the same object for the same question, as it keeps a connection."""
        with self._lock:
            key = tuple(folders)
            if key not in self._parts:
                if len(self._parts) > len(nights.files) + MAX_KEPT:
                    self._parts.clear()
                files = {folder: nights.files[folder] for folder in folders}
                self._parts[key] = NightRows(nights.root, files, {folder: nights.dates[folder] for folder in folders})
            return self._parts[key]

    def labels(self) -> Labels:
        """All labels; see `read_labels`."""
        return read_labels(self.root)

    def current_labels(self) -> pa.Table:
        """The last label of each image."""
        return current_labels(self.labels().table)

    def facts(self, night: NightRows, row: dict[str, Any]) -> dict[str, Any]:
        """What ``run.json`` of a row's night says of its category; empty if nothing."""
        (folder,) = night.files
        try:
            return results.read_run(folder)["categories"][row["category"]]
        except (UsageError, KeyError, TypeError):
            return {}

    def scale(self, night: NightRows, row: dict[str, Any]) -> tuple[ImageSize, Scale] | None:
        """The input size of the model that scored a row, and the colours of its maps; None if it kept none."""
        (folder,) = night.files
        key = folder, row["category"], row["model_id"]
        if key not in self._scales:
            if len(self._scales) >= MAX_KEPT:
                self._scales.clear()
            self._scales[key] = self._read_scale(folder, row["category"], self.facts(night, row).get("size"))
        return self._scales[key]

    @staticmethod
    def _read_scale(folder: str, category: str, sides: dict[str, Any] | None) -> tuple[ImageSize, Scale] | None:
        if sides is None:
            return None
        size = ImageSize(**sides)
        scale = read_scale(folder, category, size)
        return None if scale is None else (size, scale)
