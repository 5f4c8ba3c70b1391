"""The models that a demo has, and what each takes to be anomalous."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mvad.anomaly_maps.colours import Scale
from mvad.calibration import p_values
from mvad.data.image_size import ImageSize
from mvad.detectors import METHODS
from mvad.errors import UsageError
from mvad.features.backbone_spec import BackboneSpec
from mvad.model_store import ModelInfo, find_models
from mvad.options import ServeOptions
from mvad.pipeline.flow import decision_rule
from mvad.results import DecisionRule
from mvad.storage import to_uri

Group = tuple[BackboneSpec, ImageSize]  # models that look at the same features


@dataclass(frozen=True)
class Offer:
    """A category that images can be scored as: its model, and what its calibration says of a score."""

    model: ModelInfo
    judge: DecisionRule

    @property
    def group(self) -> Group:
        return self.model.backbone, self.model.size

    @property
    def feature(self) -> str:
        """The kind of features that its method wants."""
        return METHODS[self.model.method].feature

    def p_value(self, score: float) -> float | None:
        """The conformal p-value of a score (`calibration.p_values`); None without calibration."""
        if self.judge.calibration is None or not np.isfinite(score):
            return None
        return float(p_values([score], self.judge.calibration)[0])

    def is_anomaly(self, score: float) -> bool | None:
        """Whether a score is above the threshold; None without one."""
        return None if self.judge.threshold is None else bool(score > self.judge.threshold)

    @cached_property
    def _middling(self) -> tuple[float, float] | None:
        """Median and spread of the calibration scores."""
        if self.judge.calibration is None:
            return None
        scores = self.judge.calibration.astype(np.float64)
        median = float(np.median(scores))
        spread = float(np.quantile(scores, 0.9) - median)
        return median, max(spread, 1e-3 * abs(median), 1e-12)

    def strangeness(self, score: float) -> float | None:
        """How far a score lies above the median calibration score, in units of that up to their 90 % quantile.

        Unlike p-values, which all images of other products share, it says how much stranger one is than another.
        None without calibration.
        """
        if self._middling is None:
            return None
        median, spread = self._middling
        return (score - median) / spread

    def scale(self) -> Scale | None:
        """The colours of this category's maps, whose peaks are image scores; None without a threshold.

        They begin at the median calibration score and have their middle at the threshold.
        """
        if self._middling is None or self.judge.threshold is None or not np.isfinite(self.judge.threshold):
            return None
        median, spread = self._middling
        reach = self.judge.threshold - median
        if reach <= 0:  # a high false-alarm rate flags what is below the middle, too
            reach = spread
        return Scale(self.judge.threshold - reach, self.judge.threshold + reach, True)


Catalogue = Mapping[str, Offer]


def kinds_of(catalogue: Catalogue, group: Group) -> list[str]:
    """The kinds of features that the models of a group want."""
    return sorted({offer.feature for offer in catalogue.values() if offer.group == group})


def read_catalogue(folder: str, options: ServeOptions) -> dict[str, Offer]:
    """The models below FOLDER by category, without their arrays.

    Raises
    ------
    UsageError
        There are none, or none of a category that was asked for; a model is damaged; or there are several methods.
    """
    found = find_models(to_uri(folder), options.method)
    names = options.category_names or sorted(found)
    unknown = [name for name in names if name not in found]
    if unknown:
        raise UsageError(f"{folder} has no model for {unknown[0]}; it has models for: {', '.join(sorted(found))}.")
    return {name: Offer(found[name], decision_rule(found[name], options.judging)) for name in sorted(set(names))}
