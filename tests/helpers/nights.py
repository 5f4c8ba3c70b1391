"""Nights that alarms tell of, without any scoring."""

import datetime

from mvad.alarms.document import Night
from mvad.results.schema import SUMMARY

DAY = datetime.date(2026, 11, 23)


def row(category, **values):
    """A category's row of a night's summary: 20 images, none flagged."""
    counts = {"n_scored": 20, "n_flagged": 0, "n_uncertain": 0, "n_error": 0, "n_good": 0, "n_defect": 0, "n_train": 8}
    return dict.fromkeys(SUMMARY.names) | {"category": category, "threshold": 2.0} | counts | values


def night(**values):
    """A night with one category of each state."""
    rows = [
        row("bracket"),
        row("plate", drifted=True, drift_median_shift=1.5, drift_p_value=1e-6),
        row("ring", n_scored=0, n_error=3, threshold=None, note="no test image could be scored; the first: cut off"),
        row("weave", n_flagged=2, n_uncertain=1),
    ]
    worst = [{"image_id": "weave/d2.png", "score": 25.0, "p_value": 0.02, "verdict": "anomalous"}]
    errors = [{"image_id": f"ring/{n}.png", "category": "ring", "split": "test", "error": "cut off"} for n in range(3)]
    whole = {
        "date": DAY,
        "run_id": "20261123T023000Z-0a1b2c3d",
        "exit_code": 3,
        "out": "file:///nights/date=2026-11-23",
        "rows": rows,
        "facts": {"weave": {"most_anomalous": worst}},
        "missing": ["cam4"],
        "errors": errors,
    }
    return Night(**whole | values)
