"""The models of the demo by category, and what their calibration says about a score."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mvad.anomaly_maps.colours import Scale, threshold_scale
from mvad.anomaly_maps.regions import Region, find_regions
from mvad.calibration import DecisionRule, median_and_spread, p_values
from mvad.data.image_size import ImageSize
from mvad.detectors import METHODS
from mvad.errors import ModelError, UsageError
from mvad.features.backbone_spec import BackboneSpec
from mvad.model_store import ModelInfo, ModelSet, find_models, models_for
from mvad.options import ServeOptions
from mvad.results.verdicts import Verdict, decide
from mvad.scoring.jobs import decision_rule
from mvad.storage import to_uri

MAX_REGIONS = 20  # of an image
ExtractorKey = tuple[BackboneSpec, ImageSize]  # models with the same key share a feature extractor


@dataclass(frozen=True)
class CategoryModel:
    """The model of a category with its decision rule."""

    model: ModelInfo
    rule: DecisionRule

    @property
    def extractor_key(self) -> ExtractorKey:
        return self.model.backbone, self.model.size

    @property
    def feature_kind(self) -> str:
        """The kind of features that the model's method uses."""
        return METHODS[self.model.method].feature

    def p_value(self, score: float) -> float | None:
        """Conformal p-value of a score (`calibration.p_values`); None without calibration."""
        if self.rule.calibration is None or not np.isfinite(score):
            return None
        return float(p_values([score], self.rule.calibration)[0])

    def is_anomaly(self, score: float) -> bool | None:
        """Whether a score is above the threshold; None without a threshold."""
        return None if self.rule.threshold is None else bool(score > self.rule.threshold)

    def verdict(self, score: float) -> Verdict | None:
        """Whether a score is good, uncertain or anomalous; None without a threshold."""
        return decide(pa.array([score], pa.float64()), self.rule)["verdict"][0].as_py()

    @property
    def finite_threshold(self) -> float | None:
        """The threshold if it is finite; None if it is not, or without calibration."""
        threshold = self.rule.threshold
        return None if threshold is None or not np.isfinite(threshold) else float(threshold)

    @cached_property
    def _median_and_spread(self) -> tuple[float, float] | None:
        return None if self.rule.calibration is None else median_and_spread(self.rule.calibration)

    def standardised_score(self, score: float) -> float | None:
        """How far a score lies above the median calibration score, in units of `_median_and_spread`.

        Unlike p-values, which are equally small for all images of other products, it tells how much better one
        category fits than another. None without calibration.
        """
        if self._median_and_spread is None:
            return None
        median, spread = self._median_and_spread
        return (score - median) / spread

    def regions(self, patch_scores: NDArray[np.float32], width: int, height: int) -> list[Region] | None:
        """The regions of an image of ``width`` x ``height`` pixels; None without a pixel threshold."""
        threshold = self.rule.pixel_threshold
        if threshold is None:
            return None
        return find_regions(patch_scores, self.model.size, threshold, width, height)[0][:MAX_REGIONS]

    def colour_scale(self) -> Scale | None:
        """The colours of this category's maps; None without a finite threshold."""
        if self._median_and_spread is None or self.finite_threshold is None:
            return None
        return threshold_scale(*self._median_and_spread, self.finite_threshold)


CategoryModels = Mapping[str, CategoryModel]


def read_category_models(folder: str, options: ServeOptions) -> tuple[dict[str, CategoryModel], ModelSet]:
    """Read the models below a folder by category, without their arrays; damaged ones have errors in the set.

    UsageError if none can be used, there is none of a requested category, or there are several methods.
    """
    found = find_models(to_uri(folder), options.method)
    models = found if options.categories is None else models_for(sorted(set(options.categories)), found)
    for category in [*(options.categories or ()), *options.threshold_categories]:
        if category not in models and category not in models.errors:
            raise UsageError(f"{folder} has no model for {category}; it has models for: {', '.join(sorted(found))}.")
    category_models: dict[str, CategoryModel] = {}
    errors: dict[str, ModelError] = {}
    for category in sorted(models):
        try:
            category_models[category] = CategoryModel(models[category], decision_rule(models[category], options))
        except ModelError as error:
            errors[category] = error
    return category_models, models.without(errors)


def rank_categories(scores: Mapping[str, float], models: CategoryModels) -> list[tuple[str, float]]:
    """Categories with their standardised scores, lowest first; those without calibration are left out."""
    standardised = {category: models[category].standardised_score(score) for category, score in scores.items()}
    return sorted([(name, value) for name, value in standardised.items() if value is not None], key=itemgetter(1))


def detect_category(scores: Mapping[str, float], models: CategoryModels) -> str:
    """The category that an image most likely shows: the one with the lowest standardised score.

    Raw scores cannot be compared across categories; they decide only where no model is calibrated.
    """
    ranking = rank_categories(scores, models)
    return ranking[0][0] if ranking else min(scores, key=lambda category: scores[category])
