"""Scoring of a few images: features once per backbone and image size, then every model they are compared with."""

import functools
import logging
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mvad.data.image_size import ImageSize
from mvad.demo.category_models import CategoryModels, ExtractorKey, detect_category
from mvad.detectors import METHODS, Detector, State
from mvad.detectors.base import Nearest
from mvad.errors import UsageError
from mvad.features.specs import ExtractorSpec
from mvad.model_store import read_arrays

MAX_LOADED_EXTRACTORS = 4

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """One image to score; ``pixels`` are (crop, crop, 3) uint8 RGB for each image size that it is scored at."""

    pixels: Mapping[ImageSize, NDArray[np.uint8]]
    category: str | None  # None: to be detected
    wants_map: bool = False  # whether the patch scores are returned, too
    wants_nearest: bool = False  # and what the model has learnt that is most like it


@dataclass
class SampleResult:
    """The raw image scores of a sample by category, or a sentence that says why it has none."""

    scores: dict[str, float] = field(default_factory=dict)  # of all categories that it was compared with
    category: str | None = None  # the requested or detected one; None if there is an error
    patch_scores: NDArray[np.float32] | None = None  # (rows, columns), if requested and the method localises
    nearest: Nearest | None = None  # if requested, and the method has a memory bank
    error: str | None = None


class ModelCache:
    """Loaded detectors of up to ``max_bytes`` bytes of arrays; the least recently used are dropped first."""

    def __init__(self, models: CategoryModels, max_bytes: int, device: str) -> None:
        self._models, self._max_bytes, self._device = models, max_bytes, device
        self._loaded: OrderedDict[str, tuple[Detector, int]] = OrderedDict()

    @property
    def categories(self) -> list[str]:
        """Categories of the loaded detectors, the least recently used first."""
        return list(self._loaded)

    def detector(self, category: str, shape: Sequence[int]) -> Detector:
        """The detector of a category, loaded if necessary, for features of a shape; ModelError if it is damaged."""
        if category not in self._loaded:
            model = self._models[category].model
            arrays = read_arrays(model, shape)
            n_bytes = sum(array.nbytes for array in arrays.values())
            while self._loaded and n_bytes + sum(size for _, size in self._loaded.values()) > self._max_bytes:
                self._loaded.popitem(last=False)
            state = State(model.settings, arrays)
            self._loaded[category] = METHODS[model.method].from_state(state, self._device), n_bytes
        self._loaded.move_to_end(category)
        return self._loaded[category][0]


class DemoScorer:
    """Scores images of any category; the score of an image does not depend on the other images.

    ``extractor_specs`` are the feature extractors of groups of models, ``max_model_bytes`` limits the arrays of the
    models that stay loaded.
    """

    def __init__(
        self,
        models: CategoryModels,
        extractor_specs: Mapping[ExtractorKey, ExtractorSpec],
        max_model_bytes: int,
        device: str = "cpu",
    ) -> None:
        self.models = models
        self.cache = ModelCache(models, max_model_bytes, device)
        self._extractor = functools.lru_cache(MAX_LOADED_EXTRACTORS)(lambda key: extractor_specs[key].load(device))

    def score(self, samples: Sequence[Sample]) -> list[SampleResult]:
        """Score samples; a category that is not given is detected (`category_models.detect_category`)."""
        results = [SampleResult() for _ in samples]
        features: dict[ExtractorKey, dict[int, dict[str, Tensor]]] = {}  # by row and kind
        for key in dict.fromkeys(model.extractor_key for model in self.models.values()):
            categories = [category for category, model in self.models.items() if model.extractor_key == key]
            rows = [row for row, sample in enumerate(samples) if sample.category in (None, *categories)]
            features[key] = {}
            if rows:
                with _reporting_to([results[row] for row in rows]):
                    extracted = self._extractor(key)(np.stack([samples[row].pixels[key[1]] for row in rows]))
                    for number, row in enumerate(rows):
                        features[key][row] = {kind: array[number : number + 1] for kind, array in extracted.items()}
                for category in categories:
                    self._score_category(category, features[key], samples, results)
        for row, (sample, result) in enumerate(zip(samples, results, strict=True)):
            if result.error or not result.scores:
                result.error = result.error or "no model could score the image"
                continue
            result.category = sample.category or detect_category(result.scores, self.models)
            if not sample.wants_map and not sample.wants_nearest:
                continue
            model = self.models[result.category]
            with _reporting_to([result]):
                image = features[model.extractor_key][row][model.feature_kind]
                detector = self.cache.detector(result.category, image.shape[1:])
                grids = detector.score(image).grid if sample.wants_map else None
                if grids is not None and np.isfinite(grids).all():
                    result.patch_scores = grids[0]
                if sample.wants_nearest:
                    result.nearest = detector.nearest(image)
        return results

    def _score_category(
        self,
        category: str,
        features: Mapping[int, Mapping[str, Tensor]],
        samples: Sequence[Sample],
        results: Sequence[SampleResult],
    ) -> None:
        """Score the samples that are compared with a category; a failure is an error only where it was requested."""
        rows = [row for row in features if samples[row].category in (None, category)]
        if not rows:
            return
        kind = self.models[category].feature_kind
        with _reporting_to([results[row] for row in rows if samples[row].category == category]):
            images = torch.cat([features[row][kind] for row in rows])
            scores = self.cache.detector(category, images.shape[1:]).image_scores(images)
            for row, score in zip(rows, scores, strict=True):
                if np.isfinite(score):
                    results[row].scores[category] = float(score)
                elif samples[row].category == category:
                    results[row].error = f"the model of {category} gives this image no finite score"


@contextmanager
def _reporting_to(results: Iterable[SampleResult]) -> Iterator[None]:
    """Describe an error in the results, to people who uploaded an image; unexpected ones are also logged in full."""
    try:
        yield
    except Exception as error:
        for result in results:
            if isinstance(error, UsageError):
                result.error = str(error)
            else:
                log.error("scoring failed", exc_info=error)
                result.error = f"the image could not be scored ({type(error).__name__})"
