"""Precision and recall of verdicts, estimated from labels, and thresholds by what mistakes cost.

Images are sampled apart among those that were flagged and those that passed (a stratified sample), of each category and
week. A part that was labelled entirely is known; of others, only images that were drawn at random say how often
something is so: the most abnormal ones are no sample of the rest.

Intervals are those of Clopper and Pearson (Biometrika 26, 1934), at the effective sample size of a stratified sample
(Korn & Graubard, Survey Methodology 24, 1998).
"""

from __future__ import annotations

import datetime
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from scipy import stats

from mvad.nights.labels import Labels
from mvad.nights.rows import NightRows

CONFIDENCE = 0.95
COUNTS = """
    SELECT category, night, is_anomaly AS flagged, count(*) AS n FROM rows
    WHERE status = 'ok' AND is_anomaly IS NOT NULL GROUP BY ALL
"""
LABELLED = """
    SELECT folder, image_id, category, night, is_anomaly AS flagged, score FROM rows
    WHERE status = 'ok' AND is_anomaly IS NOT NULL AND image_id IN (SELECT unnest($ids))
"""
THRESHOLDS = """
    SELECT category, arg_max(threshold, coalesce(night, DATE '0001-01-01')) AS threshold FROM rows
    WHERE threshold IS NOT NULL GROUP BY category
"""


class Estimate(NamedTuple):
    """A share, and the interval that holds it with the confidence that was asked for; NaN if nothing is known."""

    value: float
    low: float
    high: float


UNKNOWN = Estimate(math.nan, 0.0, 1.0)


@dataclass
class Stratum:
    """The images of a category and week that were flagged, or that passed, and what is known of them."""

    n_images: int
    labelled: list[Mapping[str, Any]] = field(default_factory=list)  # of them, by a label that is not "unsure"
    n_unsure: int = 0

    @property
    def is_complete(self) -> bool:
        """Whether all of its images were labelled, if only as unsure."""
        return len(self.labelled) + self.n_unsure >= self.n_images

    @property
    def sample(self) -> list[Mapping[str, Any]]:
        """The labelled images that speak for all."""
        return self.labelled if self.is_complete else [row for row in self.labelled if row["drawn"] == "random"]

    @property
    def weight(self) -> float:
        """How many images each of the sample stands for."""
        return self.n_images / len(self.sample)

    @property
    def share(self) -> float:
        """The share of defective images in the sample."""
        return sum(row["judgement"] == "defect" for row in self.sample) / len(self.sample)


def defective_share(strata: Iterable[Stratum], confidence: float = CONFIDENCE) -> Estimate:
    """The share of defective images in strata together; strata without a sample are taken to be like the others."""
    known = [stratum for stratum in strata if stratum.n_images and stratum.sample]
    total = sum(stratum.n_images for stratum in known)
    if not total:
        return UNKNOWN
    value = sum(stratum.n_images * stratum.share for stratum in known) / total
    if all(stratum.is_complete and not stratum.n_unsure for stratum in known):
        return Estimate(value, value, value)
    size = _effective_size(known, total, value)
    tail = (1 - confidence) / 2
    low = float(stats.beta.ppf(tail, size * value, size * (1 - value) + 1)) if value > 0 else 0.0
    high = float(stats.beta.ppf(1 - tail, size * value + 1, size * (1 - value))) if value < 1 else 1.0
    return Estimate(value, min(low, value), max(high, value))


def _effective_size(strata: Sequence[Stratum], total: int, value: float) -> float:
    """The size of a simple random sample that would tell the share as exactly."""
    weights = [stratum.n_images / total for stratum in strata]
    sizes = [len(stratum.sample) for stratum in strata]
    unweighted = 1 / sum(weight**2 / size for weight, size in zip(weights, sizes, strict=True))
    shares = [stratum.share for stratum in strata]
    variances = (share * (1 - share) / size for share, size in zip(shares, sizes, strict=True))
    variance = sum(weight**2 * each for weight, each in zip(weights, variances, strict=True))
    return min(value * (1 - value) / variance if variance > 0 else unweighted, sum(sizes))


def recall(flagged: Sequence[Stratum], passed: Sequence[Stratum]) -> Estimate:
    """The share of all defective images that was flagged.

    The interval holds it if those of both shares do, each with half of the doubt.
    """
    counts = [sum(stratum.n_images for stratum in strata) for strata in (flagged, passed)]
    confidence = 1 - (1 - CONFIDENCE) / 2
    found, missed = (
        Estimate(0.0, 0.0, 0.0) if not n else defective_share(strata, confidence)
        for n, strata in zip(counts, (flagged, passed), strict=True)
    )

    def share(of_flagged: float, of_passed: float) -> float:
        defective = counts[0] * of_flagged + counts[1] * of_passed
        return counts[0] * of_flagged / defective if defective else math.nan

    low, high = share(found.low, missed.high), share(found.high, missed.low)
    value = share(found.value, missed.value)
    return Estimate(value, 0.0 if math.isnan(low) else low, 1.0 if math.isnan(high) else high)


@dataclass
class Evaluation:
    """What labels tell of the rows of many nights, by category and week."""

    strata: dict[tuple[str, str | None], dict[bool, Stratum]]
    thresholds: dict[str, float]  # of each category in its last night, if there is one

    @property
    def categories(self) -> list[str]:
        return sorted({category for category, _ in self.strata})

    def rows(self) -> list[dict[str, Any]]:
        """One row for each category and week, then one for each category."""
        table = [
            {"category": category, "week": week, **_facts([parts])}
            for (category, week), parts in sorted(self.strata.items(), key=lambda item: (item[0][0], item[0][1] or ""))
        ]
        for name in self.categories:
            of_category = [parts for (category, _), parts in self.strata.items() if category == name]
            table.append({"category": name, "week": None, **_facts(of_category)})
        return table

    def cost(self, category: str, threshold: float, missed: float, false_alarm: float) -> float:
        """The cost of mistakes per 1,000 images with this threshold, by labelled images and what they stand for.

        ``missed`` is the cost of a defective image that passes, ``false_alarm`` that of a good one that does not.
        """
        total, n_images = 0.0, 0
        for stratum in self._of(category):
            n_images += stratum.n_images
            for row in stratum.sample:
                is_defect, is_flagged = row["judgement"] == "defect", row["score"] > threshold
                if is_defect != is_flagged:
                    total += stratum.weight * (missed if is_defect else false_alarm)
        return 1000 * total / max(1, n_images)

    def cheapest_threshold(self, category: str, missed: float, false_alarm: float) -> float | None:
        """The threshold of the lowest `cost`, between two labelled scores; None without labels of both kinds.

        Of several that cost the same, it is the middle one.
        """
        rows = [row for stratum in self._of(category) for row in stratum.sample]
        if {row["judgement"] for row in rows} != {"good", "defect"}:
            return None
        scores = sorted({row["score"] for row in rows})
        middles = [(score + following) / 2 for score, following in itertools.pairwise(scores)]
        candidates = [scores[0] - 1e-3, *middles, scores[-1]]
        costs = [self.cost(category, candidate, missed, false_alarm) for candidate in candidates]
        best = [candidate for candidate, cost in zip(candidates, costs, strict=True) if cost <= min(costs)]
        return best[len(best) // 2]

    def _of(self, category: str) -> list[Stratum]:
        return [part for (name, _), parts in self.strata.items() if name == category for part in parts.values()]


def _facts(parts: Sequence[Mapping[bool, Stratum]]) -> dict[str, Any]:
    flagged, passed = ([part[is_flagged] for part in parts] for is_flagged in (True, False))
    labelled = [row for stratum in (*flagged, *passed) for row in stratum.labelled]
    kinds = Counter((row["judgement"], row["flagged"]) for row in labelled)
    facts: dict[str, Any] = {
        "n_images": sum(stratum.n_images for stratum in (*flagged, *passed)),
        "n_flagged": sum(stratum.n_images for stratum in flagged),
        "n_labelled": len(labelled),
        "n_unsure": sum(stratum.n_unsure for stratum in (*flagged, *passed)),
        "n_confirmed": kinds["defect", True],
        "n_false_alarms": kinds["good", True],
        "n_missed": kinds["defect", False],
    }
    for name, estimate in (("precision", defective_share(flagged)), ("recall", recall(flagged, passed))):
        known = not math.isnan(estimate.value)
        facts |= {
            name: estimate.value if known else None,
            f"{name}_low": estimate.low if known else None,
            f"{name}_high": estimate.high if known else None,
        }
    return facts


def evaluate_labels(nights: NightRows, labels: Labels) -> Evaluation:
    """Evaluate the verdicts of rows by labels; the last label of each image counts.

    Labels of images that have no row any more, or none with a verdict, say nothing.
    """
    strata: dict[tuple[str, str | None], dict[bool, Stratum]] = defaultdict(
        lambda: {True: Stratum(0), False: Stratum(0)}
    )
    for row in nights.query(COUNTS).to_pylist():
        strata[row["category"], _week(row["night"])][row["flagged"]].n_images += row["n"]
    judged = {(row["folder"], row["image_id"]): row for row in labels.current.to_pylist()}
    # Whoever labels an image again does not change how it was drawn first.
    random = {
        (row["folder"], row["image_id"])
        for row in labels.table.select(["folder", "image_id", "drawn"]).to_pylist()
        if row["drawn"] == "random"
    }
    ids = sorted({image_id for _, image_id in judged})
    for row in nights.query(LABELLED, {"ids": ids}).to_pylist() if ids else ():
        key = nights.name_of(row["folder"]), row["image_id"]
        label = judged.get(key)
        if label is None:
            continue
        stratum = strata[row["category"], _week(row["night"])][row["flagged"]]
        if label["judgement"] == "unsure":
            stratum.n_unsure += 1
        else:
            drawn = "random" if key in random else label["drawn"]
            stratum.labelled.append({**row, "judgement": label["judgement"], "drawn": drawn})
    return Evaluation(dict(strata), {row["category"]: row["threshold"] for row in nights.query(THRESHOLDS).to_pylist()})


def _week(night: datetime.date | None) -> str | None:
    """The ISO week of a night, such as 2026-W48."""
    if night is None:
        return None
    year, week, _ = night.isocalendar()
    return f"{year}-W{week:02}"
