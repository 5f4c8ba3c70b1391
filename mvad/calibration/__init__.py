"""Turn scores into decisions: thresholds, p-values, drift, and the sentences about them; every name here is public."""
# ruff: noqa: F401

from mvad.calibration.assignment import (
    UNKNOWN_PRODUCT,
    Assignment,
    Fits,
    PatchReference,
    assign,
    fit_of,
    patch_reference,
)
from mvad.calibration.conformal import (
    MIN_CALIBRATION_SCORES,
    RULES,
    DecisionRule,
    control_fdr,
    fold_splits,
    kfold,
    median_and_spread,
    min_images,
    one_per_group,
    p_values,
    rank,
    threshold,
)
from mvad.calibration.drift import Drift, measure_drift
from mvad.calibration.suspects import find_suspects, suspect_rows, suspects_warning, suspects_with_duplicates
from mvad.calibration.wording import (
    calibration_caveat,
    calibration_unit,
    drift_warning,
    found_line,
    guarantee,
    too_few_warning,
)
