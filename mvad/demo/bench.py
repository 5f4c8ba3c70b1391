"""Scoring a handful of images: features once a backbone and size, then every bank that an image is compared with."""

from __future__ import annotations

import functools
import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mvad.data.image_size import ImageSize
from mvad.demo.catalogue import Catalogue, Group, Offer
from mvad.detectors import METHODS, Detector, State
from mvad.errors import UsageError
from mvad.features.extractor import ExtractorSpec
from mvad.model_store import read_arrays

NETWORKS = 4  # ready to run, at most; a folder of models has one as a rule

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """One image to score.

    Attributes
    ----------
    pixels
        (crop, crop, 3) uint8 RGB for every image size that it is scored at.
    category
        None: to be guessed.
    grid
        Whether the grid of patch scores is wanted.
    """

    pixels: Mapping[ImageSize, NDArray[np.uint8]]
    category: str | None
    grid: bool = False


@dataclass
class Finding:
    """What became of a sample.

    Attributes
    ----------
    scores
        Raw image scores by category: of the one that was asked for, or of all that it was compared with.
    category
        The one that was asked for, or the guess; None if there is an error.
    grid
        (height, width) float32, if wanted and of a method that localises.
    error
        Why there is no score, in a sentence.
    """

    scores: dict[str, float] = field(default_factory=dict)
    category: str | None = None
    grid: NDArray[np.float32] | None = None
    error: str | None = None


class Shelf:
    """Detectors that are ready, up to so many bytes of arrays; those used longest ago make room."""

    def __init__(self, catalogue: Catalogue, limit: int, device: str) -> None:
        self._catalogue, self._limit, self._device = catalogue, limit, device
        self._ready: OrderedDict[str, tuple[Detector, int]] = OrderedDict()

    @property
    def categories(self) -> list[str]:
        """Of the detectors that are ready, those used longest ago first."""
        return list(self._ready)

    def take(self, category: str) -> Detector:
        """The detector of a category, read if need be; UsageError if its model is damaged."""
        if category not in self._ready:
            model = self._catalogue[category].model
            arrays = read_arrays(model)
            size = sum(array.nbytes for array in arrays.values())
            while self._ready and size + sum(held for _, held in self._ready.values()) > self._limit:
                self._ready.popitem(last=False)
            self._ready[category] = METHODS[model.method].from_state(State(model.settings, arrays), self._device), size
        self._ready.move_to_end(category)
        return self._ready[category][0]


class Bench:
    """Scores images of any category; each is scored on its own, whatever its company.

    Parameters
    ----------
    packages
        What extracts the features of each group of models.
    limit
        Bytes of models that are held ready.
    """

    def __init__(
        self, catalogue: Catalogue, packages: Mapping[Group, ExtractorSpec], limit: int, device: str = "cpu"
    ) -> None:
        self.catalogue = catalogue
        self.shelf = Shelf(catalogue, limit, device)
        self._extractor = functools.lru_cache(maxsize=NETWORKS)(lambda group: packages[group].load(device))

    def score(self, samples: Sequence[Sample]) -> list[Finding]:
        """Score images; where a category is not given, it is guessed by `guess` among all."""
        findings = [Finding() for _ in samples]
        features: dict[Group, dict[int, dict[str, Tensor]]] = {}
        for group in dict.fromkeys(offer.group for offer in self.catalogue.values()):
            own = [name for name, offer in self.catalogue.items() if offer.group == group]
            rows = [row for row, sample in enumerate(samples) if sample.category is None or sample.category in own]
            if rows:
                features[group] = self._extract(group, rows, samples, findings)
                for category in own:
                    self._score_as(category, features[group], samples, findings)
        for row, (sample, finding) in enumerate(zip(samples, findings, strict=True)):
            if finding.error or not finding.scores:
                finding.error = finding.error or "no model could score the image"
                continue
            finding.category = sample.category or guess(finding.scores, self.catalogue)
            if sample.grid:
                offer = self.catalogue[finding.category]
                self._add_grid(finding, features[offer.group][row][offer.feature])
        return findings

    def _extract(
        self, group: Group, rows: Sequence[int], samples: Sequence[Sample], findings: Sequence[Finding]
    ) -> dict[int, dict[str, Tensor]]:
        try:
            found = self._extractor(group)(np.stack([samples[row].pixels[group[1]] for row in rows]))
        except Exception as error:
            for row in rows:
                findings[row].error = failure(error)
            return {}
        return {
            row: {kind: values[number : number + 1] for kind, values in found.items()}
            for number, row in enumerate(rows)
        }

    def _score_as(
        self,
        category: str,
        features: Mapping[int, Mapping[str, Tensor]],
        samples: Sequence[Sample],
        findings: Sequence[Finding],
    ) -> None:
        """Score those that are to be compared with a category, and note where that fails."""
        rows = [row for row in features if samples[row].category in (None, category)]
        if not rows:
            return
        kind = self.catalogue[category].feature
        try:
            scores = self.shelf.take(category).image_scores(torch.cat([features[row][kind] for row in rows]))
        except Exception as error:
            for row in rows:
                if samples[row].category == category:  # a guess does without
                    findings[row].error = failure(error)
            return
        for row, score in zip(rows, scores, strict=True):
            if np.isfinite(score):
                findings[row].scores[category] = float(score)
            elif samples[row].category == category:
                findings[row].error = f"the model of {category} gives this image no finite score"

    def _add_grid(self, finding: Finding, features: Tensor) -> None:
        try:
            grid = self.shelf.take(str(finding.category)).score(features).grid
        except Exception as error:
            finding.error = failure(error)
            return
        if grid is not None and np.isfinite(grid).all():
            finding.grid = grid[0]


def guess(scores: Mapping[str, float], catalogue: Catalogue) -> str:
    """The category that an image most likely shows: where its score is least strange (`Offer.strangeness`).

    Scores of models without calibration say nothing across categories; they count only if no model has any, by
    themselves.
    """
    strange = {name: catalogue[name].strangeness(score) for name, score in scores.items()}
    compared = {name: value for name, value in strange.items() if value is not None} or scores
    return min(compared, key=lambda name: compared[name])


def ranking(scores: Mapping[str, float], catalogue: Catalogue) -> list[tuple[str, float]]:
    """Categories with the score's strangeness for each, the guess first; without calibration there is none."""
    strange = {name: catalogue[name].strangeness(score) for name, score in scores.items()}
    known = [(name, value) for name, value in strange.items() if value is not None]
    return sorted(known, key=lambda pair: pair[1])


def failure(error: Exception) -> str:
    """A sentence for who uploaded an image; what is no fault of theirs is also logged in full."""
    if isinstance(error, UsageError):
        return str(error)
    log.error("scoring failed", exc_info=error)
    return f"the image could not be scored ({type(error).__name__})"


def offer_sizes(catalogue: Catalogue, category: str | None) -> set[ImageSize]:
    """The image sizes that a sample needs to be scored as a category, or as any."""
    offers: list[Offer] = list(catalogue.values()) if category is None else [catalogue[category]]
    return {offer.model.size for offer in offers}
