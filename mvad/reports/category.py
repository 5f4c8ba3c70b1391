"""What a report says about one category: scores, mistakes, errors, and the images that are worth a look."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from mvad import results
from mvad.calibration import UNKNOWN_PRODUCT
from mvad.data.image_size import ImageSize
from mvad.data.images import ignored_share
from mvad.html.charts import Chart, histogram, precision_recall, roc
from mvad.reports.flagged import Flagged, read_flagged
from mvad.reports.thresholds import Stops, stops
from mvad.results.stored_maps import one_threshold
from mvad.results.verdicts import Outcome, outcomes, stored_calibration

SHOWN_COLUMNS = (
    *("image_id", "label", "defect", "score", "p_value", "is_anomaly", "verdict"),
    *("nearest_category", "strange_share"),
)
COLUMNS = (*SHOWN_COLUMNS, "category", "split", "threshold", "status", "error")
WHAT_IF_RATES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3)  # false-alarm rates
MAX_ERRORS = 30
MAX_REASONS = 8
MAX_DEFECTS = 40
GALLERIES = {  # title, lead and sentence if there are none, by label and whether there is a threshold
    (1, True): (
        "Missed defects",
        "Defective images that are not flagged, lowest scores first.",
        "None: every defective image is flagged.",
    ),
    (1, False): (
        "Defective images that score lowest",
        "There is no threshold; these images are the hardest to tell from good ones.",
        "",
    ),
    (0, True): (
        "False alarms",
        "Good images that are flagged, highest scores first.",
        "None: no good image is flagged.",
    ),
    (0, False): (
        "Good images that score highest",
        "There is no threshold; these images would be the first false alarms.",
        "",
    ),
}


@dataclass(frozen=True)
class Gallery:
    """Images to look at."""

    title: str
    lead: str  # what they have in common
    empty: str  # said if there are none
    rows: list[dict[str, Any]]
    total: int


@dataclass(frozen=True)
class Category:
    """The facts of one category."""

    name: str
    facts: Mapping[str, Any]  # what run.json says of it
    summary: Mapping[str, Any]  # its row of summary.json
    threshold: float | None
    scores: Chart | None
    curves: dict[str, Chart]
    what_if: list[Outcome]  # what other false-alarm rates would flag; empty without calibration
    stops: Stops | None  # what other thresholds would flag; None if nothing was scored
    flagged: Flagged
    outcomes: dict[str, int]  # images found, missed, falsely flagged, rightly passed; empty without labels or threshold
    defects: list[dict[str, Any]]  # one row per defect type
    galleries: list[Gallery]
    errors: list[dict[str, Any]]  # the first unreadable files
    n_errors: int
    reasons: list[tuple[str, int]]  # of errors, and how often each occurs
    calibration_note: str | None  # why the calibration scores are not shown; None if they are, or if there are none

    @property
    def size(self) -> ImageSize | None:
        """The model's input; None if nothing was scored with a model."""
        return ImageSize(**self.facts["size"]) if self.facts.get("size") else None

    @property
    def ignored(self) -> str | None:
        """The share of each image that is not looked at; None if all is."""
        if self.size is None or self.size.ignore is None:
            return None
        return f"{100 * ignored_share(self.size):.1f} %"

    @property
    def shown_ids(self) -> list[str]:
        """The ids of all images in the galleries, each once."""
        return list(dict.fromkeys(row["image_id"] for gallery in self.galleries for row in gallery.rows))

    @property
    def has_drifted(self) -> bool:
        drift = self.facts.get("drift") or {}
        return bool(drift.get("drifted", drift.get("moved")))  # results of earlier versions have ``moved`` only


def read_category(
    source: str, name: str, facts: Mapping[str, Any], summary: Mapping[str, Any], models: str | None, max_images: int
) -> Category:
    """Read one category of the results in ``source`` (a URI), except for its patch scores.

    ``models`` is the URI of the folder of models, if they are not where ``run.json`` says.
    """
    rows = results.read_scores(source, COLUMNS, name)
    failed = rows.filter(pc.equal(rows["status"], "error"))
    scored = rows.filter(pc.and_(pc.equal(rows["status"], "ok"), pc.equal(rows["split"], "test")))
    scored = scored.filter(pc.is_finite(scored["score"]))
    labelled = scored.filter(pc.is_valid(scored["label"]))
    labels, scores = labelled["label"].to_numpy(), labelled["score"].to_numpy()
    calibration, note = stored_calibration(source, name, facts, models)
    threshold = one_threshold(scored["threshold"])
    unknown = rows.filter(pc.and_(pc.equal(rows["status"], "ok"), pc.equal(rows["category"], UNKNOWN_PRODUCT)))
    unlabelled = scored.filter(pc.is_null(scored["label"]))["score"].to_numpy()
    if calibration is None:
        calibration = np.empty(0, np.float32)
    rates = sorted({*WHAT_IF_RATES, facts.get("false_alarm_rate") or WHAT_IF_RATES[0]})
    groups = {"good": scores[labels == 0], "defective": scores[labels == 1], "unlabelled": unlabelled}
    decided = _outcomes(labelled)
    return Category(
        name=name,
        facts=facts,
        summary=summary,
        threshold=threshold,
        scores=histogram({**groups, "calibration": calibration}, threshold) if len(scored) else None,
        curves=_curves(labels, scores, decided),
        what_if=outcomes(scored, rates, facts.get("n_calibration") or 0),
        stops=stops(scored["score"].to_numpy(), pc.fill_null(scored["label"], -1).to_numpy(), threshold),
        flagged=read_flagged(source, name),
        outcomes=decided,
        defects=_defects(labelled),
        galleries=_galleries(scored, set(labels.tolist()), max_images) + _unknown_products(unknown, max_images),
        errors=failed.slice(0, MAX_ERRORS).select(["image_id", "split", "error"]).to_pylist(),
        n_errors=len(failed),
        reasons=Counter(failed["error"].to_pylist()).most_common(MAX_REASONS),
        calibration_note=note,
    )


def _outcomes(labelled: pa.Table) -> dict[str, int]:
    decided = labelled.filter(pc.is_valid(labelled["is_anomaly"]))
    if not len(decided):
        return {}
    groups = decided.group_by(["label", "is_anomaly"]).aggregate([([], "count_all")]).to_pylist()
    counts = Counter({(group["label"], group["is_anomaly"]): group["count_all"] for group in groups})
    names = {"found": (1, True), "missed": (1, False), "false_alarms": (0, True), "passed": (0, False)}
    return {name: counts[key] for name, key in names.items()}


def _curves(labels: NDArray[np.int8], scores: NDArray[np.float32], outcomes: Mapping[str, int]) -> dict[str, Chart]:
    if set(labels.tolist()) != {0, 1}:
        return {}
    roc_point = precision_point = None
    if outcomes:
        recall = outcomes["found"] / max(outcomes["found"] + outcomes["missed"], 1)
        roc_point = (outcomes["false_alarms"] / max(outcomes["false_alarms"] + outcomes["passed"], 1), recall)
        n_flagged = outcomes["found"] + outcomes["false_alarms"]
        precision_point = (recall, outcomes["found"] / n_flagged) if n_flagged else None
    return {
        "ROC": roc(labels, scores, roc_point),
        "Precision and recall": precision_recall(labels, scores, precision_point),
    }


def _defects(labelled: pa.Table) -> list[dict[str, Any]]:
    """How well each defect type is found, the one that is ranked worst first."""
    labels, scores = labelled["label"].to_numpy(), labelled["score"].to_numpy()
    defects = np.array(labelled["defect"].to_pylist(), object)
    good = labels == 0
    rows = []
    for defect in sorted({defect for defect in defects[~good] if defect}):
        members = (defects == defect) & ~good
        flagged = labelled["is_anomaly"].filter(pa.array(members))
        compared = members | good
        rows.append(
            {
                "defect": defect,
                "count": int(members.sum()),
                "found": pc.sum(flagged).as_py(),
                "median": float(np.median(scores[members])),
                "auroc": float(roc_auc_score(members[compared], scores[compared])) if good.any() else None,
            }
        )
    rows.sort(key=lambda row: (1 if row["auroc"] is None else row["auroc"], row["defect"]))
    return rows[:MAX_DEFECTS]


def _galleries(scored: pa.Table, labels: set[int], max_images: int) -> list[Gallery]:
    if not max_images or not len(scored):
        return []
    n_each = -(-max_images // (1 + len(labels)))
    galleries = [_gallery(scored, "Most anomalous", "The images with the highest scores.", "", n_each)]
    for label, order in ((1, "ascending"), (0, "descending")):
        if label not in labels:
            continue
        rows = scored.filter(pc.equal(scored["label"], label))
        decided = rows.filter(pc.is_valid(rows["is_anomaly"]))
        if len(decided):
            rows = decided.filter(pc.not_equal(decided["is_anomaly"], label == 1))
        words = GALLERIES[label, len(decided) > 0]
        galleries.append(_gallery(rows, *words, n_each, order))
    return galleries


def _unknown_products(unknown: pa.Table, max_images: int) -> list[Gallery]:
    """The images that fit no category, those that fit worst first."""
    if not max_images or not len(unknown):
        return []
    worst = unknown.sort_by([("strange_share", "descending"), ("image_id", "ascending")]).slice(0, max_images)
    lead = "They fit no category, and have no score. Those with the most parts that no category knows come first."
    return [Gallery("Unknown products", lead, "None.", worst.select(SHOWN_COLUMNS).to_pylist(), len(unknown))]


def _gallery(rows: pa.Table, title: str, lead: str, empty: str, max_rows: int, order: str = "descending") -> Gallery:
    shown = rows.sort_by([("score", order), ("image_id", "ascending")]).slice(0, max_rows).select(SHOWN_COLUMNS)
    return Gallery(title, lead, empty, shown.to_pylist(), len(rows))
