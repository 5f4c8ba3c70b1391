"""What a page says about one category: its scores, its mistakes, its errors, and which images are worth a look."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from mvad import results, storage
from mvad.errors import UsageError
from mvad.model_store import read_calibration, read_model
from mvad.reports.charts import Chart, histogram, precision_recall, roc
from mvad.results.stored_maps import one_threshold

COLUMNS = ("image_id", "split", "label", "defect", "score", "p_value", "threshold", "is_anomaly", "status", "error")
SHOWN = ("image_id", "label", "defect", "score", "p_value", "is_anomaly")  # of an image that is shown
LISTED_ERRORS = 30
LISTED_REASONS = 8
LISTED_DEFECTS = 40


@dataclass(frozen=True)
class Gallery:
    """Images to be looked at: a heading, what they have in common, what it means if there are none."""

    title: str
    lead: str
    empty: str
    rows: list[dict[str, Any]]
    total: int


@dataclass(frozen=True)
class Category:
    """The facts of one category.

    Attributes
    ----------
    facts, summary
        Of ``run.json`` and of its row of ``summary.json``.
    outcomes
        Images found, missed, falsely flagged and rightly passed; empty without labels or threshold.
    defects
        A row a kind of defect.
    errors, reasons
        The first unreadable files, and how often each reason occurs.
    calibration_note
        Why the calibration scores are not shown; None if they are, or if there are none.
    """

    name: str
    facts: Mapping[str, Any]
    summary: Mapping[str, Any]
    threshold: float | None
    scores: Chart | None
    curves: dict[str, Chart]
    outcomes: dict[str, int]
    defects: list[dict[str, Any]]
    galleries: list[Gallery]
    errors: list[dict[str, Any]]
    n_errors: int
    reasons: list[tuple[str, int]]
    calibration_note: str | None

    @property
    def shown(self) -> list[str]:
        """The ids of all images in the galleries, each once."""
        return list(dict.fromkeys(row["image_id"] for gallery in self.galleries for row in gallery.rows))


def read_category(
    out: str, name: str, facts: Mapping[str, Any], summary: Mapping[str, Any], models: str | None, most: int
) -> Category:
    """Read one category of the results in OUT (a URI); grids of patch scores stay where they are.

    Parameters
    ----------
    models
        URI of the folder of models, if they are not where ``run.json`` says.
    most
        Images shown at most.
    """
    rows = results.read_scores(out, COLUMNS, name)
    failed = rows.filter(pc.equal(rows["status"], "error"))
    scored = rows.filter(pc.and_(pc.equal(rows["status"], "ok"), pc.equal(rows["split"], "test")))
    scored = scored.filter(pc.is_finite(scored["score"]))
    known = scored.filter(pc.is_valid(scored["label"]))
    labels, scores = known["label"].to_numpy(), known["score"].to_numpy()
    calibration, note = _calibration(out, name, facts, models)
    threshold = one_threshold(scored["threshold"])
    unknown = scored.filter(pc.is_null(scored["label"]))["score"].to_numpy()
    groups = {"good": scores[labels == 0], "defective": scores[labels == 1], "unlabelled": unknown}
    outcomes = _outcomes(known)
    return Category(
        name=name,
        facts=facts,
        summary=summary,
        threshold=threshold,
        scores=histogram({**groups, "calibration": calibration}, threshold) if len(scored) else None,
        curves=_curves(labels, scores, outcomes),
        outcomes=outcomes,
        defects=_defects(known),
        galleries=_galleries(scored, labels, most),
        errors=failed.slice(0, LISTED_ERRORS).select(["image_id", "split", "error"]).to_pylist(),
        n_errors=len(failed),
        reasons=Counter(failed["error"].to_pylist()).most_common(LISTED_REASONS),
        calibration_note=note,
    )


def _calibration(
    out: str, name: str, facts: Mapping[str, Any], models: str | None
) -> tuple[NDArray[np.float32], str | None]:
    """The calibration scores of the model that the category was scored with, or why they cannot be had."""
    none = np.empty(0, np.float32)
    if not facts.get("n_calibration"):
        return none, None
    within = (facts["method"], storage.folder_name(name))
    places = [storage.join(out, "models", *within)]
    if models is not None:
        places.insert(0, storage.join(models, *within))
    elif facts.get("model"):
        places.append(storage.to_uri(facts["model"]))
    for place in places:
        try:
            model = read_model(place)
            found = read_calibration(model) if model.model_id == facts["model_id"] else None
        except UsageError:
            continue
        if found is not None:
            return found, None
    return none, "its model is not at hand; say where the models are with --models"


def _outcomes(known: pa.Table) -> dict[str, int]:
    judged = known.filter(pc.is_valid(known["is_anomaly"]))
    if not len(judged):
        return {}
    defective = judged["label"].to_numpy() == 1
    flagged = judged["is_anomaly"].to_numpy(zero_copy_only=False)
    return {
        "found": int((defective & flagged).sum()),
        "missed": int((defective & ~flagged).sum()),
        "false_alarms": int((~defective & flagged).sum()),
        "passed": int((~defective & ~flagged).sum()),
    }


def _curves(labels: NDArray[np.int8], scores: NDArray[np.float32], outcomes: Mapping[str, int]) -> dict[str, Chart]:
    if set(labels.tolist()) != {0, 1}:
        return {}
    operating = trade = None
    if outcomes:
        recall = outcomes["found"] / max(outcomes["found"] + outcomes["missed"], 1)
        operating = (outcomes["false_alarms"] / max(outcomes["false_alarms"] + outcomes["passed"], 1), recall)
        flagged = outcomes["found"] + outcomes["false_alarms"]
        trade = (recall, outcomes["found"] / flagged) if flagged else None
    return {
        "ROC": roc(labels, scores, operating),
        "Precision and recall": precision_recall(labels, scores, trade),
    }


def _defects(known: pa.Table) -> list[dict[str, Any]]:
    """How well each kind of defect is found, the one that is ranked worst first."""
    labels, scores = known["label"].to_numpy(), known["score"].to_numpy()
    kinds = np.array(known["defect"].to_pylist(), object)
    good = labels == 0
    rows = []
    for kind in sorted({kind for kind in kinds[~good] if kind}):
        mine = (kinds == kind) & ~good
        flagged = known["is_anomaly"].filter(pa.array(mine)).drop_null()
        row = {"kind": kind, "count": int(mine.sum()), "median": float(np.median(scores[mine]))}
        row["found"] = pc.sum(flagged).as_py() if len(flagged) else None
        both = mine | good
        row["auroc"] = float(roc_auc_score(mine[both], scores[both])) if good.any() else None
        rows.append(row)
    rows.sort(key=lambda row: (1 if row["auroc"] is None else row["auroc"], row["kind"]))
    return rows[:LISTED_DEFECTS]


def _galleries(scored: pa.Table, labels: NDArray[np.int8], most: int) -> list[Gallery]:
    kinds = [label for label in (1, 0) if (labels == label).any()]
    each = -(-most // (1 + len(kinds)))
    galleries = [_top(scored, "Most anomalous", "The highest scores of all.", "", each)]
    if 1 in kinds:
        mine = scored.filter(pc.fill_null(pc.equal(scored["label"], 1), False))
        judged = mine.filter(pc.is_valid(mine["is_anomaly"]))
        if len(judged):
            missed = judged.filter(pc.invert(judged["is_anomaly"]))
            lead = "Defective images that are not flagged, the lowest scores first."
            empty = "None: every defective image is flagged."
            galleries.append(_top(missed, "Missed defects", lead, empty, each, "ascending"))
        else:
            lead = "There is no threshold; these are hardest to tell from good ones."
            galleries.append(_top(mine, "Defective images that score lowest", lead, "", each, "ascending"))
    if 0 in kinds:
        mine = scored.filter(pc.fill_null(pc.equal(scored["label"], 0), False))
        judged = mine.filter(pc.is_valid(mine["is_anomaly"]))
        if len(judged):
            alarms = judged.filter(judged["is_anomaly"])
            lead = "Good images that are flagged, the highest scores first."
            galleries.append(_top(alarms, "False alarms", lead, "None: no good image is flagged.", each))
        else:
            lead = "There is no threshold; these would be the first false alarms."
            galleries.append(_top(mine, "Good images that score highest", lead, "", each))
    return galleries if most and len(scored) else []


def _top(rows: pa.Table, title: str, lead: str, empty: str, most: int, order: str = "descending") -> Gallery:
    chosen = rows.sort_by([("score", order), ("image_id", "ascending")]).slice(0, most).select(SHOWN)
    return Gallery(title, lead, empty, chosen.to_pylist(), len(rows))
