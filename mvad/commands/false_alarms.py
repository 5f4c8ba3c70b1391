from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc

from mvad import calibration, fitting, pipeline, storage
from mvad.console import Reporter
from mvad.data.manifest import read_manifest
from mvad.detectors import Pretrained, find_method
from mvad.errors import UsageError
from mvad.options import Data, FalseAlarmOptions, takes

if TYPE_CHECKING:
    from mvad.comparison.splits import SplitScores


@takes(FalseAlarmOptions)
def false_alarms(data: Data, options: FalseAlarmOptions) -> list[dict[str, Any]]:
    """Measure the false-alarm rates that thresholds achieve, over random splits of the good images in DATA.

    Each split fits and calibrates on a part of the good images, and counts false alarms in the others, and defects that
    are found. Good images are those of train/good and test/good; near duplicates are on one side of a split, and count
    once.

    Returns
    -------
    One row per category and rate: ``rate`` asked for, ``n`` calibration and ``n_fresh`` other images of a split. Of the
    achieved rates their ``mean`` and its 95 % interval, ``low`` to ``high`` (Student's t over the splits, which share
    images and so are not quite independent), the ``smallest`` and the ``largest``. ``found``: the mean share of the
    ``n_defect`` defective images that are flagged, None if there are none. For the conformal rule, the rate it
    guarantees (``expected``), and ``expected_low`` to ``expected_high``, within which 90 % of the splits should lie:
    beta-binomial, of calibration sets and fresh images of these sizes.

    Raises
    ------
    UsageError
        Unusable input or an unknown name.

    Examples
    --------
    >>> options = {"backbone": "efficientnet_lite0", "categories": "weave", "limit": 6, "image_size": 64, "quiet": True}
    >>> [row["rate"] for row in mvad.false_alarms("sample", splits=1, folds=2, rates="0.1,0.2", **options)]
    [0.1, 0.2]
    """
    from mvad.comparison.splits import score_splits  # needs Ray

    report = Reporter(options.quiet)
    if issubclass(find_method(options.method), Pretrained) or not options.calibrates:
        raise UsageError("false-alarms is for methods that fit a category by itself, and calibrate.")
    manifest = read_manifest(data, options, to_learn=True)
    images = manifest.table.filter(pc.is_valid(manifest.table["label"]))
    if not pc.any(pc.equal(images["label"], 0)).as_py():
        raise UsageError(f"no good images under {storage.readable(manifest.root)}.")
    options = fitting.with_recipe(options, report.info)
    network, ignores = fitting.load_network(options), fitting.read_ignores(manifest, options)
    with pipeline.job_session(options, report):
        scores = score_splits(images, network, options, ignores, report)
    rows = [
        {"category": split_scores.category, **achieved(split_scores, rate, options)}
        for split_scores in scores
        for rate in options.rates
    ]
    cells = []
    for row in rows:
        guaranteed = f"{row['expected']:.2%}" if "expected" in row else "-"
        expected = f"{row['expected_low']:.1%} to {row['expected_high']:.1%}" if "expected" in row else "-"
        interval = f"{row['low']:.2%} to {row['high']:.2%}"
        splits = f"{row['smallest']:.1%} to {row['largest']:.1%}"
        line = [row["category"], row["rule"], f"{row['rate']:.2%}", f"{row['n']:,}", guaranteed, f"{row['mean']:.2%}"]
        found = "-" if row["found"] is None else f"{row['found']:.1%}"
        cells.append([*line, interval, splits, expected, found])
    titles = ("rule", "asked", "calibration", "guaranteed", "achieved", "95 % interval", "splits", "expected", "found")
    report.table(["category"], titles, cells)
    return rows


def achieved(scores: SplitScores, rate: float, options: FalseAlarmOptions) -> dict[str, Any]:
    """Achieved rates of one threshold rule."""
    from scipy import stats

    rule = options.threshold_rule or find_method(options.method).default_rule
    thresholds = np.array([calibration.threshold(row, rule, rate) for row in scores.calibration])[:, None]
    rates = (scores.fresh > thresholds).mean(axis=1)
    n_splits, mean, half = len(rates), float(rates.mean()), 0.0
    if n_splits > 1:
        half = float(stats.t.ppf(0.975, n_splits - 1) * rates.std(ddof=1) / np.sqrt(n_splits))
    row: dict[str, Any] = {"rule": rule, "rate": rate, "n": scores.calibration.shape[1]}
    row |= {"n_fresh": scores.fresh.shape[1], "n_defect": scores.defective.shape[1]}
    row["found"] = float((scores.defective > thresholds).mean()) if row["n_defect"] else None
    row |= {"splits": n_splits, "mean": mean, "low": max(0.0, mean - half), "high": mean + half}
    row |= {"smallest": float(rates.min()), "largest": float(rates.max())}
    if rule == "conformal":  # what to expect if all good images are exchangeable
        n, m = row["n"], row["n_fresh"]
        n_above = n + 1 - calibration.rank(n, rate)  # calibration scores at or above the threshold
        law = stats.betabinom(m, n_above, n + 1 - n_above)
        low, high = (float(law.ppf(share) / m) for share in (0.05, 0.95))
        row |= {"expected": n_above / (n + 1), "expected_low": low, "expected_high": high}
    return row
