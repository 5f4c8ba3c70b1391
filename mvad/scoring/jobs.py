"""Scoring jobs: one model each, how it decides, and where its rows go."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mvad import storage
from mvad.anomaly_maps.regions import MapRule
from mvad.calibration import DecisionRule
from mvad.data.images import is_same_mask, read_ignore
from mvad.data.manifest import ignore_uris
from mvad.errors import ModelError, UsageError
from mvad.model_store import ModelInfo, read_calibration, read_map_peaks
from mvad.results import verdicts
from mvad.results.schema import RowOrigin

if TYPE_CHECKING:
    from mvad.options import DecisionOptions, ScoreOptions
    from mvad.results.run_record import Run

NO_MODEL = "no model"  # prefix of the error of an image whose category has no model
MODEL_UNUSABLE = "the model cannot be used"  # prefix of the error of an image whose model is damaged
SCORING_FAILED = "scoring failed"  # prefix of the error of an image whose model failed


@dataclass(frozen=True)
class ScoringJob:
    """One model to score the images of its category with."""

    model: ModelInfo
    rule: DecisionRule
    out: str  # URI of the folder that score rows go to
    origin: RowOrigin
    map_threshold: float  # images that score above this keep their patch scores
    max_regions: int = 20

    @property
    def run_id(self) -> str:
        return self.origin.run_id

    @property
    def map_rule(self) -> MapRule:
        """What is found in the maps of images, and which are kept."""
        return MapRule(self.model.size, self.rule.pixel_threshold, self.map_threshold, self.max_regions)

    @property
    def category(self) -> str:
        return self.model.category


def scoring_jobs(
    models: Iterable[ModelInfo], run: Run, options: ScoreOptions, errors: Mapping[str, ModelError] | None = None
) -> list[ScoringJob]:
    """One job per model, whose rows go to the folder of a run; the run notes it.

    A model whose calibration is damaged gets no job; the run notes why, as it does for ``errors`` of other models, by
    category. If that leaves none, the first error is raised.
    """

    def rule_or_error(model: ModelInfo) -> DecisionRule | ModelError:
        try:
            return decision_rule(model, options)
        except ModelError as error:
            return error

    models, jobs, unusable = list(models), [], dict(errors or {})
    for model, rule in zip(models, storage.parallel_map(rule_or_error, models), strict=True):
        if isinstance(rule, ModelError):
            unusable[model.category] = rule
            continue
        run.add_model(model, rule)
        map_threshold = _map_threshold(options.maps, rule)
        jobs.append(ScoringJob(model, rule, run.folder, run.origin, map_threshold, options.max_regions))
    for category, error in unusable.items():
        if not jobs:
            raise error
        run.add_failure(category, f"{MODEL_UNUSABLE}: {error.reason}")
    return jobs


def decision_rule(model: ModelInfo, options: DecisionOptions) -> DecisionRule:
    """The threshold that options and a model's calibration scores, if any, set; ModelError if those are damaged."""
    scores, peaks = read_calibration(model), read_map_peaks(model)
    return verdicts.decision_rule(model.model_id, model.method, model.category, scores, options, model.record, peaks)


def ignore_remarks(models: Mapping[str, ModelInfo], ignore: Mapping[str, str]) -> list[str]:
    """What to say of masks beside the images (URIs by category, "" for all others) that are not those of the models."""
    remarks, read = [], functools.cache(read_ignore)  # categories may share a mask
    for category, uri in ignore_uris(ignore, models).items():
        model = models[category]
        try:
            if is_same_mask(read(uri), model.size.ignore):
                continue
            used = "nothing is ignored" if model.size.ignore is None else "the model's is used"
            reason = (
                f"{storage.readable(uri)} is not what the model was fitted with: {used}; fit it again to change that"
            )
        except UsageError as error:
            reason = str(error)
        remarks.append(f"{category}: {reason}")
    return remarks


def _map_threshold(maps: str, rule: DecisionRule) -> float:
    """The score above which an image keeps its map; without a threshold no image is known to be anomalous."""
    if maps == "anomalous" and rule.threshold is not None:
        return min(rule.threshold, math.inf if rule.uncertain_threshold is None else rule.uncertain_threshold)
    return -math.inf if maps == "all" else math.inf
