"""Decide what is anomalous: per image before its row is written, on a category's images together, or again later."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mvad import calibration, storage
from mvad.calibration import DecisionRule
from mvad.detectors import find_method
from mvad.errors import UsageError
from mvad.model_store import VERSION_LENGTH, VERSIONS, read_calibration, read_model
from mvad.results.store import list_parts, read_scores, rewrite

if TYPE_CHECKING:
    from mvad.options import DecisionOptions

Verdict = Literal["good", "uncertain", "anomalous"]
GOOD, UNCERTAIN, ANOMALOUS = get_args(Verdict)
FIXED = "fixed"  # the rule of a threshold that is given, and does not follow from calibration


def decision_rule(
    model_id: str,
    method: str,
    category: str,
    scores: NDArray[np.float32] | None,
    options: DecisionOptions,
    record: Mapping[str, Any] | None = None,
    peaks: NDArray[np.float32] | None = None,
) -> DecisionRule:
    """The rule that options and calibration scores, (n,) or None, set for the images of a category.

    Without calibration there is no threshold unless one is given. ``record`` is that of the model, or what ``run.json``
    says of the category: see `calibration_caveat`. ``peaks`` of the maps of held-out images, (n,), give the pixel
    threshold.
    """
    rule = _decision_rule(model_id, method, category, scores, options, record)
    if peaks is None or len(peaks) < calibration.MIN_CALIBRATION_SCORES:
        return rule
    return rule._replace(pixel_threshold=calibration.threshold(peaks, "conformal", options.false_alarm_rate))


def _decision_rule(
    model_id: str,
    method: str,
    category: str,
    scores: NDArray[np.float32] | None,
    options: DecisionOptions,
    record: Mapping[str, Any] | None,
) -> DecisionRule:
    fixed, rate, band = options.fixed_threshold(category), options.false_alarm_rate, options.uncertain_rate
    rule = options.threshold_rule or find_method(method).default_rule
    caveat = calibration.calibration_caveat(scores, record, rule, rate) if record and fixed is None else None
    if scores is None or len(scores) < calibration.MIN_CALIBRATION_SCORES:
        return DecisionRule(model_id, rule=None if fixed is None else FIXED, threshold=fixed, caveat=caveat)
    band_rule = "conformal" if rule == "sigma" else rule  # the sigma rule knows no rates
    uncertain_threshold = None if band is None else calibration.threshold(scores, band_rule, band)
    if fixed is not None:
        return DecisionRule(model_id, scores, FIXED, fixed, uncertain_threshold=uncertain_threshold)
    return DecisionRule(
        model_id,
        scores,
        rule,
        calibration.threshold(scores, rule, rate),
        calibration.guarantee(rule, rate, len(scores), calibration.calibration_unit(record or {})),
        caveat is None and len(scores) < calibration.min_images(rule, rate),
        None if rule == "sigma" else rate,
        uncertain_threshold,
        caveat=caveat,
    )


def rule_facts(rule: DecisionRule) -> dict[str, Any]:
    """What ``run.json`` says of the rule that decided on a category."""
    return {
        "threshold": rule.threshold,
        "threshold_rule": rule.rule,
        "false_alarm_rate": rule.rate,
        "uncertain_threshold": rule.uncertain_threshold,
        "promise": rule.guarantee,
        "pixel_threshold": rule.pixel_threshold,
    }


def decide(scores: pa.Array, rule: DecisionRule) -> dict[str, pa.Array]:
    """Columns ``p_value``, ``threshold``, ``is_anomaly`` and ``verdict`` of images with these scores.

    They are null where there is no score, no calibration or no threshold.
    """
    n_images = len(scores)
    p_values = pa.nulls(n_images, pa.float64())
    if rule.calibration is not None:
        values = calibration.p_values(scores.cast(pa.float64()).to_numpy(zero_copy_only=False), rule.calibration)
        p_values = pa.array(values, pa.float64(), mask=np.isnan(values))
    thresholds = pa.array([rule.threshold] * n_images, pa.float64())
    return {"p_value": p_values, **_verdicts(scores, thresholds, rule.uncertain_threshold)}


def _verdicts(
    scores: pa.Array | pa.ChunkedArray, thresholds: pa.Array | pa.ChunkedArray, uncertain_threshold: float | None
) -> dict[str, pa.Array | pa.ChunkedArray]:
    scores = scores.cast(pa.float64())
    is_anomaly = pc.greater(scores, thresholds)
    verdict = pc.if_else(is_anomaly, ANOMALOUS, GOOD)
    if uncertain_threshold is not None:
        is_uncertain = pc.and_(pc.invert(is_anomaly), pc.greater(scores, uncertain_threshold))
        verdict = pc.if_else(is_uncertain, UNCERTAIN, verdict)
    return {"threshold": thresholds, "is_anomaly": is_anomaly, "verdict": verdict}


def decide_together(out: str, category: str, rate: float, uncertain_threshold: float | None = None) -> None:
    """Decide on a category's images in OUT (a URI) together, by Benjamini-Hochberg at ``rate``.

    Rewrites ``threshold``, the largest score that is not flagged, ``is_anomaly`` and ``verdict``.
    """
    table = read_scores(out, ["score", "p_value"], category)
    table = table.filter(pc.is_valid(table["p_value"]))
    flagged = calibration.control_fdr(table["p_value"].to_numpy(), rate)
    passed = table["score"].to_numpy()[~flagged]
    threshold = float(passed.max()) if len(passed) else -np.inf
    _rewrite(out, category, "p_value", threshold, uncertain_threshold)


def _rewrite(out: str, category: str, key: str, threshold: float | None, uncertain_threshold: float | None) -> None:
    """Give a threshold to the rows of a category whose column ``key`` is not null; file by file, each at once."""

    def change(rows: pa.Table) -> pa.Table:
        value = pa.scalar(threshold, pa.float64())
        thresholds = pc.if_else(pc.is_valid(rows[key]), value, pa.scalar(None, pa.float64()))
        for name, column in _verdicts(rows["score"], thresholds, uncertain_threshold).items():
            if name in rows.column_names:
                rows = rows.set_column(rows.schema.get_field_index(name), name, column)
            else:  # rows of an earlier version
                rows = rows.append_column(name, column)
        return rows

    for _, file in list_parts(out, category):
        rewrite(file, change)


def rules_again(
    out: str, categories: Mapping[str, Mapping[str, Any]], options: DecisionOptions, models: str | None = None
) -> dict[str, DecisionRule]:
    """The rules by which categories of results in OUT (a URI) are decided on again.

    ``categories`` is what ``run.json`` says of them, and ``models`` the URI of the folder of models, if they are not
    where it says. Stored p-values are enough for the conformal rule. UsageError if another rule needs the calibration
    scores and the model is gone, or if there would be no verdict at all.
    """
    scored = {name: facts for name, facts in categories.items() if facts.get("model_id")}
    rules = {name: _rule_again(out, name, facts, options, models) for name, facts in scored.items()}
    if all(rule.threshold is None for rule in rules.values()):
        raise UsageError(
            f"no model of the results in {storage.readable(out)} is calibrated, so there is no threshold for a rate; "
            "give one with --threshold."
        )
    # Regions stay as they are.
    return {name: rule._replace(pixel_threshold=scored[name].get("pixel_threshold")) for name, rule in rules.items()}


def _rule_again(
    out: str, category: str, facts: Mapping[str, Any], options: DecisionOptions, models: str | None
) -> DecisionRule:
    scores, reason = stored_calibration(out, category, facts, models)
    n_scores = facts.get("n_calibration") or 0
    if scores is not None or n_scores < calibration.MIN_CALIBRATION_SCORES:
        return decision_rule(facts["model_id"], facts["method"], category, scores, options, facts)
    rule = options.threshold_rule or find_method(facts["method"]).default_rule
    fixed, rate, band = options.fixed_threshold(category), options.false_alarm_rate, options.uncertain_rate
    if fixed is None and rule != "conformal":
        raise UsageError(f"the rule {rule} needs the calibration scores of {category!r}, and {reason}.")
    rows = read_scores(out, ["score", "p_value"], category)
    band_threshold = None if band is None else _conformal_threshold(rows, n_scores, band)
    if fixed is not None:
        return DecisionRule(facts["model_id"], rule=FIXED, threshold=fixed, uncertain_threshold=band_threshold)
    return DecisionRule(
        facts["model_id"],
        rule=rule,
        threshold=_conformal_threshold(rows, n_scores, rate),
        guarantee=calibration.guarantee(rule, rate, n_scores, calibration.calibration_unit(facts)),
        rate=rate,
        uncertain_threshold=band_threshold,
    )


def _conformal_threshold(rows: pa.Table, n_calibration: int, rate: float) -> float | None:
    """The largest score of the rows that the conformal rule does not flag; None if no row has a p-value."""
    rows = rows.filter(pc.is_valid(rows["p_value"]))
    if not len(rows):
        return None
    scores, flagged = rows["score"].to_numpy(), _conformal_flags(rows["p_value"].to_numpy(), n_calibration, rate)
    return float(np.nextafter(scores.min(), -np.inf) if flagged.all() else scores[~flagged].max())


def _conformal_flags(p_values: NDArray[np.float64], n_calibration: int, rate: float) -> NDArray[np.bool_]:
    """Which images score above the conformal threshold, by their p-values; the lowest one is 1 / (n + 1)."""
    return p_values <= max(rate, 1 / (n_calibration + 1))


def decide_again(
    out: str, categories: dict[str, dict[str, Any]], rules: Mapping[str, DecisionRule], fdr: float | None
) -> None:
    """Rewrite the verdicts of results in OUT (a URI), and what ``categories`` say of them."""
    for category, rule in rules.items():
        categories[category] |= rule_facts(rule)
        _rewrite(out, category, "model_id", rule.threshold, rule.uncertain_threshold)
        if fdr is not None and rule.rule != FIXED and rule.threshold is not None:
            decide_together(out, category, fdr, rule.uncertain_threshold)


def stored_calibration(
    out: str, category: str, facts: Mapping[str, Any], models: str | None
) -> tuple[NDArray[np.float32] | None, str | None]:
    """The calibration scores of the model that scored a category, or None and why they are missing.

    ``facts`` is what ``run.json`` in OUT (a URI) says of the category, and ``models`` the URI of the folder of models,
    if they are not where it says.
    """
    if not facts.get("n_calibration"):
        return None, None
    folder = (facts["method"], storage.folder_name(category))
    uris = [storage.join(out, "models", *folder)]
    if models is not None:
        uris.insert(0, storage.join(models, *folder))
    elif facts.get("model"):
        uris.append(storage.to_uri(facts["model"]))
    version = storage.join(VERSIONS, facts["model_id"][:VERSION_LENGTH])  # where it is once it has been replaced
    for uri in [*uris, *(storage.join(uri, version) for uri in uris)]:
        with contextlib.suppress(UsageError):
            model = read_model(uri)
            scores = read_calibration(model) if model.model_id == facts["model_id"] else None
            if scores is not None:
                return scores, None
    return None, "the model was not found; give the folder of its models with --models"


class Outcome(NamedTuple):
    """What the conformal rule would flag of a category's images at a false-alarm rate."""

    rate: float
    n_flagged: int
    n_found: int  # flagged and labelled defective
    n_false_alarms: int  # flagged and labelled good
    n_needed: int  # good images that calibration lacks to keep the rate; more than the rate are flagged without them


def outcomes(rows: pa.Table, rates: Sequence[float], n_calibration: int) -> list[Outcome]:
    """What would be flagged at each of some rates, by the p-values of score rows; empty if there are none."""
    rows = rows.filter(pc.is_valid(rows["p_value"]))
    if not len(rows) or not n_calibration:
        return []
    p_values, labels = rows["p_value"].to_numpy(), pc.fill_null(rows["label"], -1).to_numpy()
    result = []
    for rate in rates:
        flagged = _conformal_flags(p_values, n_calibration, rate)
        n_found, n_false_alarms = (int((flagged & (labels == label)).sum()) for label in (1, 0))
        n_needed = max(0, calibration.min_images("conformal", rate) - n_calibration)
        result.append(Outcome(rate, int(flagged.sum()), n_found, n_false_alarms, n_needed))
    return result
