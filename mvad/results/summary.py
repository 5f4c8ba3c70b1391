"""The summary of a run: one row per category, then the mean; ``note`` says why a number is missing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mvad import calibration
from mvad.calibration import UNKNOWN_PRODUCT, DecisionRule
from mvad.console import plural
from mvad.data.image_size import ImageSize
from mvad.errors import ImageError, ResultsError
from mvad.metrics.image import image_metrics
from mvad.results.schema import SCORES
from mvad.results.store import list_parts, read_by_category, read_rows, read_scores
from mvad.results.verdicts import FIXED, UNCERTAIN, decide_together, outcomes

if TYPE_CHECKING:
    import pyarrow.dataset as pads

    from mvad.data.images import MaskRemarks
    from mvad.metrics.pixel import PixelMetrics

MEAN = "mean"  # category of the last row, and of no other unless there is a category of this name
OTHER_RATES = (0.01, 0.05, 0.1)  # false-alarm rates at which outcomes are counted besides the one asked for
N_MOST_ANOMALOUS = 5
_FACTS = ("method", "backbone", "n_train", "threshold", "n_calibration", "fit_seconds", "score_seconds")
_SUMMED = (
    *("n_train", "n_good", "n_defect", "n_error", "n_scored", "n_flagged", "n_found", "n_false_alarms", "n_uncertain"),
    *("fit_seconds", "score_seconds"),
)
_AVERAGED = (
    "image_auroc",
    "image_ap",
    "image_f1_max",
    "recall_at_threshold",
    "false_alarm_rate",
    "pixel_auroc",
    "pixel_aupro",
    "pixel_ap",
    "pixel_f1_max",
    "pixel_aupro_5",
    "pixel_aupimo",
    "defects_touched",
)


def evaluate(
    out: str,
    facts: Mapping[str, dict[str, Any]],
    rules: Mapping[str, DecisionRule] | None = None,
    fdr: float | None = None,
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Read each category's score rows once, and say what they show.

    Parameters
    ----------
    facts
        What ``run.json`` in OUT (a URI) says of each category. Added are ``drift`` where ``rules`` has calibration
        scores, ``outcomes`` at several false-alarm rates, the ``most_anomalous`` images, and ``damage`` where a file of
        rows is damaged.
    rules
        How each category was decided on; default: verdicts and drift stay as they are.
    fdr
        Decide on each category's images together, at this rate.

    Returns
    -------
    The rows of the summary, and the unreadable images: image_id, category, split and error, sorted by image id.
    """
    rules = rules or {}
    calibrations = {name: rule.calibration for name, rule in rules.items() if rule.calibration is not None}
    if fdr is not None:
        for category in calibrations:
            if rules[category].rule != FIXED:
                with suppress(ResultsError):  # met again when the category is read
                    decide_together(out, category, fdr, rules[category].uncertain_threshold)
    summary, errors = [], []
    columns = [
        "image_id",
        "split",
        "label",
        "score",
        "p_value",
        "threshold",
        "is_anomaly",
        "verdict",
        "status",
        "error",
    ]
    for category, rows in read_by_category(out, sorted(facts), columns):
        facts[category].pop("damage", None)
        if isinstance(rows, ResultsError):
            facts[category]["damage"] = str(rows)
            no_rows = SCORES.empty_table().select(columns)
            summary.append({**_category_row(out, category, no_rows, facts[category]), "note": str(rows)})
            continue
        if category in calibrations:
            facts[category]["drift"] = _drift(rows, calibrations[category])
        failed = rows.filter(pc.equal(rows["status"], "error")).select(["image_id", "split", "error"])
        errors += [{**row, "category": category} for row in failed.to_pylist()]
        summary.append(_category_row(out, category, rows, facts[category]))
    return [*summary, _mean_row(summary)], sorted(errors, key=lambda row: row["image_id"])


def _drift(rows: pa.Table, scores: NDArray[np.float32]) -> dict[str, Any] | None:
    """How the scores of images that are not known to be defective lie against the calibration scores."""
    rows = rows.filter(pc.and_(pc.equal(rows["split"], "test"), pc.equal(rows["status"], "ok")))
    good = rows.filter(pc.not_equal(pc.fill_null(rows["label"], 0), 1))
    drift = calibration.measure_drift(good["score"].to_numpy(), scores)
    return None if drift is None else {**drift._asdict(), "moved": drift.drifted}


def _category_row(out: str, category: str, table: pa.Table, facts: dict[str, Any]) -> dict[str, Any]:
    n_train_error = len(table.filter(pc.equal(table["split"], "train")))
    table = table.filter(pc.equal(table["split"], "test"))
    scored = table.filter(pc.equal(table["status"], "ok"))
    labelled = scored.filter(pc.and_(pc.is_valid(scored["label"]), pc.is_valid(scored["score"])))
    labels = labelled["label"].to_numpy()
    seconds = facts.get("score_seconds")
    row: dict[str, Any] = {name: facts.get(name) for name in _FACTS}
    row |= {
        "category": category,
        "n_good": int((labels == 0).sum()),
        "n_defect": int((labels == 1).sum()),
        "n_error": len(table) - len(scored) + n_train_error,
        "n_scored": len(scored),
        "n_flagged": int(pc.sum(pc.fill_null(scored["is_anomaly"], False)).as_py() or 0),
        "images_per_second": len(scored) / seconds if seconds else None,
    }
    if row["threshold"] is not None:
        row["n_uncertain"] = pc.sum(pc.equal(scored["verdict"], UNCERTAIN)).as_py() or 0
        if len(labels):
            flagged_labels = labelled.filter(labelled["is_anomaly"])["label"].to_numpy()
            row["n_found"] = int((flagged_labels == 1).sum())
            row["n_false_alarms"] = int((flagged_labels == 0).sum())
    rates = {*OTHER_RATES, facts.get("false_alarm_rate") or OTHER_RATES[0]}
    facts["outcomes"] = [one._asdict() for one in outcomes(scored, sorted(rates), facts.get("n_calibration") or 0)]
    facts["most_anomalous"] = _most_anomalous(scored)
    drift = facts.get("drift")
    if drift:
        row |= {"drift_p_value": drift["ks_p_value"], "drift_share_below": drift["share_below"]}
        row |= {"drift_median_shift": drift["median_shift"], "drifted": drift["moved"]}
    reason = _reason(table, len(scored), labels)
    if reason:
        return {**row, "note": facts.get("note") or reason}
    row |= image_metrics(labels, labelled["score"].to_numpy())
    if row["threshold"] is not None:
        row["recall_at_threshold"] = row["n_found"] / row["n_defect"]
        row["false_alarm_rate"] = row["n_false_alarms"] / row["n_good"]
    if "size" not in facts:  # scored by a run that was killed before it said with what
        return row
    pixels, row["note"] = _pixel_metrics(out, category, ImageSize(**facts["size"]), facts.get("pixel_threshold"))
    return row | pixels


def _most_anomalous(scored: pa.Table) -> list[dict[str, Any]]:
    """The images with the highest scores, highest first."""
    scored = scored.filter(pc.is_finite(scored["score"]))
    highest = scored.sort_by([("score", "descending"), ("image_id", "ascending")]).slice(0, N_MOST_ANOMALOUS)
    return highest.select(["image_id", "score", "p_value", "verdict"]).to_pylist()


def _reason(images: pa.Table, n_scored: int, labels: NDArray[np.int8]) -> str | None:
    if not len(images):
        return "no test images"
    if not n_scored:
        return f"no test image could be scored; the first: {images['error'][0].as_py()}"
    if not len(labels):
        return "the images carry no labels"
    if not (labels == 1).any():
        return "no defective test images: a ranking needs both kinds"
    if not (labels == 0).any():
        return "no good test images: a ranking needs both kinds"
    return None


def _pixel_metrics(
    out: str, category: str, size: ImageSize, threshold: float | None
) -> tuple[dict[str, float], str | None]:
    """Pixel metrics of the test images whose truth is known per pixel: good ones, and defective ones with a mask.

    Pixels are those of the part of the image that the model saw, at the image's own size.
    """
    from mvad.data.images import MaskRemarks
    from mvad.metrics.pixel import PixelMetrics

    has_map, has_mask = _map_conditions()
    remarks, damaged = MaskRemarks(), []
    try:
        if not len(read_scores(out, ["mask_uri"], category, has_map & has_mask)):
            return {}, None
        metrics = PixelMetrics(*map_range(out, category), threshold)
        for row in rows_with_truth(out, category):
            try:
                add_image(metrics, row, size, remarks)
            except ImageError as error:
                damaged.append(f"{row['image_id']}: {error}")
    except ResultsError as error:
        return {}, f"no pixel metrics: {error}"
    notes = remarks.sentences()
    if damaged:
        notes.append(f"pixel metrics without {plural(len(damaged), 'image')}: {min(damaged)}")
    result = metrics.result()
    if not result:
        notes.insert(0, "no pixel metrics: the masks mark no pixel, or all")
    return result, "; ".join(notes) or None


def map_range(out: str, category: str) -> tuple[float, float]:
    """The range of the values of a category's maps in OUT (a URI); 0 and 0 without maps."""
    from mvad.results.stored_maps import patch_score_range

    return patch_score_range([uri for _, uri in list_parts(out, category)]) or (0.0, 0.0)


def rows_with_truth(out: str, category: str) -> Iterator[dict[str, Any]]:
    """The rows, for `add_image`, of test images that have a map and whose truth is known per pixel: see `read_rows`."""
    import pyarrow.dataset as pads

    has_map, has_mask = _map_conditions()
    columns = ["image_id", "label", "mask_uri", "width", "height", "patch_scores", "patch_grid"]
    return read_rows(out, columns, category, has_map & (has_mask | (pads.field("label") == 0)))


def _map_conditions() -> tuple[pads.Expression, pads.Expression]:
    """Whether a row is a test image's with a map, and whether it has a mask."""
    from pyarrow.dataset import field

    has_map = (field("split") == "test") & field("patch_grid").is_valid()
    return has_map, field("label").is_valid() & field("mask_uri").is_valid()


def add_image(metrics: PixelMetrics, row: dict[str, Any], size: ImageSize, remarks: MaskRemarks) -> None:
    """Add an image to the metrics of its category, unless its mask cannot be used; ImageError if its map cannot."""
    from mvad.anomaly_maps.geometry import map_on_image, seen_box
    from mvad.data.images import ignored_on_image, load_mask
    from mvad.results.stored_maps import stored_map

    width, height, truth, seen = row["width"], row["height"], None, None
    model_map = stored_map(row, size)
    if model_map is None:
        return
    box = seen_box(size, width, height)
    inside = slice(box.top, box.bottom), slice(box.left, box.right)
    if row["mask_uri"]:
        try:
            mask = load_mask(row["mask_uri"], width, height)
        except ImageError as error:
            remarks.add_unusable(row["mask_uri"], error)
            return
        remarks.add(mask, width, height)
        if row["label"] == 1 or mask.share:
            truth = mask.pixels[inside]
    ignored = ignored_on_image(size, width, height)
    if ignored is not None:
        seen = ~ignored[inside]
    metrics.add(truth, map_on_image(model_map, size, width, height), seen)


def mean_of(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """The mean of a number over the rows that have it; None if none has."""
    numbers = [row[name] for row in rows if row.get(name) is not None]
    return float(np.mean(numbers)) if numbers else None


def _mean_row(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The mean of each metric over the categories that have it; counts and seconds are sums."""
    mean: dict[str, Any] = {"category": MEAN}
    for name in ("method", "backbone"):
        values = {row[name] for row in rows if row["category"] != UNKNOWN_PRODUCT}
        mean[name] = values.pop() if len(values) == 1 else None
    for name in _SUMMED:
        numbers = [row[name] for row in rows if row.get(name) is not None]
        mean[name] = sum(numbers) if numbers else None
    mean |= {name: mean_of(rows, name) for name in _AVERAGED}
    missing = [row["category"] for row in rows if row.get("image_auroc") is None]
    if missing and len(missing) < len(rows):
        mean["note"] = f"without {', '.join(missing)}"
    images = sum(row["images_per_second"] * row["score_seconds"] for row in rows if row["images_per_second"])
    mean["images_per_second"] = images / mean["score_seconds"] if mean["score_seconds"] else None
    return mean
