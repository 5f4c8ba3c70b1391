"""Decide what is anomalous: per image before its row is written, or on a category's images together."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mvad import calibration
from mvad.calibration import DecisionRule
from mvad.results.store import list_parts, read_scores, rewrite


def decide(scores: pa.Array, rule: DecisionRule) -> dict[str, pa.Array]:
    """Columns ``p_value``, ``threshold`` and ``is_anomaly`` of images with these scores, null where there is none."""
    n_images = len(scores)
    p_values = pa.nulls(n_images, pa.float64())
    if rule.calibration is not None:
        values = calibration.p_values(scores.cast(pa.float64()).to_numpy(zero_copy_only=False), rule.calibration)
        p_values = pa.array(values, pa.float64(), mask=np.isnan(values))
    thresholds = pa.array([rule.threshold] * n_images, pa.float64())
    verdicts = pc.greater(scores.cast(pa.float64()), thresholds)
    return {"p_value": p_values, "threshold": thresholds, "is_anomaly": verdicts}


def decide_together(out: str, category: str, rate: float) -> None:
    """Decide on a category's images in OUT (a URI) together, by Benjamini-Hochberg at ``rate``.

    Rewrites ``threshold``, the largest score that is not flagged, and ``is_anomaly``.
    """
    table = read_scores(out, ["score", "p_value"], category)
    table = table.filter(pc.is_valid(table["p_value"]))
    flagged = calibration.control_fdr(table["p_value"].to_numpy(), rate)
    passed = table["score"].to_numpy()[~flagged]
    threshold = float(passed.max()) if len(passed) else -np.inf

    def change(rows: pa.Table) -> pa.Table:
        thresholds = pc.if_else(pc.is_valid(rows["p_value"]), threshold, pa.scalar(None, pa.float64()))
        verdicts = pc.greater(rows["score"].cast(pa.float64()), thresholds)
        for name, values in (("threshold", thresholds), ("is_anomaly", verdicts)):
            rows = rows.set_column(rows.schema.get_field_index(name), name, values)
        return rows

    for _, file in list_parts(out, category):
        rewrite(file, change)
