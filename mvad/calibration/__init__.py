"""Turn scores into decisions: thresholds, p-values, drift, and the sentences about them."""

from mvad.calibration.conformal import RULES, control_fdr, fold_splits, kfold, min_images, p_values, rank, threshold
from mvad.calibration.decision import DecisionRule
from mvad.calibration.drift import Drift, measure_drift
from mvad.calibration.wording import drift_warning, guarantee, too_few_warning

__all__ = [
    "RULES",
    "DecisionRule",
    "Drift",
    "control_fdr",
    "drift_warning",
    "fold_splits",
    "guarantee",
    "kfold",
    "measure_drift",
    "min_images",
    "p_values",
    "rank",
    "threshold",
    "too_few_warning",
]
