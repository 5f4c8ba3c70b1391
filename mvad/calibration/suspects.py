"""Good images that may not be good: training images whose held-out scores are outliers among those of the others.

Scores are compared by the modified z-score, 0.6745 (x - median) / MAD (Iglewicz and Hoaglin, How to Detect and Handle
Outliers, 1993), of their logarithms: scores of good images are skewed, and a few bad images among them cannot move the
median and the MAD (both have a breakdown point of 50 %: Rousseeuw and Croux, Alternatives to the median absolute
deviation, Journal of the American Statistical Association 1993). Only high scores are suspects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mvad.storage.text import shown_name

MIN_REFERENCE = 8  # scores, for a meaningful median and deviation
CUTOFF, SMALL_SAMPLE_FACTOR = 3.5, 8.0
MIN_MAD = 0.02  # of log scores: a suspect scores at least a tenth above the median
MAX_NAMED = 5  # suspects that a warning names


def modified_z_scores(values: NDArray[Any], reference: NDArray[Any], min_mad: float = 0.0) -> NDArray[np.float32]:
    """Modified z-scores of (n,) values, by the median and MAD (at least ``min_mad``) of (m,) reference values.

    NaN if the latter are fewer than ``MIN_REFERENCE``, or if half of them are equal and ``min_mad`` is 0.
    """
    if len(reference) < MIN_REFERENCE:
        return np.full(len(values), np.nan, np.float32)
    median = np.median(reference)
    mad = max(float(np.median(np.abs(reference - median))), min_mad)
    return (0.6745 * (values - median) / (mad or np.nan)).astype(np.float32)


def outlier_cutoff(n: int) -> float:
    """The modified z-score beyond which a value is an outlier among n: 3.5, and more where few make both unsteady."""
    return CUTOFF * (1 + SMALL_SAMPLE_FACTOR / max(1, n))


def find_suspects(scores: NDArray[Any], reference: NDArray[Any]) -> NDArray[np.bool_]:
    """Say which held-out scores of good images, (n,), are outliers above reference scores of good images, (m,).

    Scores that can be negative, such as log likelihoods, are compared as they are. None are outliers if a reference
    score is not finite, or if there are fewer than ``MIN_REFERENCE``. A NaN among ``scores`` is no outlier.
    """
    scores, reference = np.asarray(scores, np.float64), np.asarray(reference, np.float64)
    if not len(reference) or not np.isfinite(reference).all():
        return np.zeros(len(scores), bool)
    min_mad = 0.0
    if reference.min() > 0 and not (scores <= 0).any():
        scores, reference, min_mad = np.log(scores), np.log(reference), MIN_MAD
    return modified_z_scores(scores, reference, min_mad) > outlier_cutoff(len(reference))


def suspects_with_duplicates(
    scores: NDArray[Any], groups: NDArray[np.int64], reference: NDArray[Any]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Suspects and their near duplicates.

    Parameters
    ----------
    scores : (n,), NaN where an image has no held-out score
    groups : (n,), the number of each image's group of near duplicates
    reference : (m,), one score of each group that has any

    Returns
    -------
    The indices of the images of all groups with a suspect, (k,) in rising order, and the score of each, (k,): its own,
    or the highest of its group if it has none.
    """
    suspects = np.flatnonzero(np.isin(groups, groups[find_suspects(scores, reference)]))
    highest = {group: np.nanmax(scores[groups == group]) for group in np.unique(groups[suspects])}
    own = scores[suspects].astype(np.float64)
    of_group = np.array([highest[group] for group in groups[suspects]], np.float64)
    return suspects, np.where(np.isnan(own), of_group, own)


def suspect_rows(image_ids: NDArray[Any], scores: NDArray[Any], *, dropped: bool) -> list[dict[str, Any]]:
    """Suspects as a model's record has them, from their ids and scores, (k,) each."""
    return [
        {"image_id": name, "score": round(float(score), 6), "dropped": dropped}
        for name, score in zip(image_ids.tolist(), scores, strict=True)
    ]


def suspects_warning(
    category: str, suspects: Sequence[Mapping[str, Any]], n_examined: int | None = None, n_images: int | None = None
) -> str | None:
    """Name suspects, as in a model's record, in one sentence; None if there are none.

    ``n_examined`` of ``n_images`` could be suspects; None if all.
    """
    parts = []
    for is_dropped in (False, True):
        found = sorted((one for one in suspects if one["dropped"] == is_dropped), key=lambda one: -one["score"])
        if not found:
            continue
        names = ", ".join(f"{one['image_id']!r} ({one['score']:.3g})" for one in found[:MAX_NAMED])
        more = f" and {len(found) - MAX_NAMED:,} more" if len(found) > MAX_NAMED else ""
        images = f"{len(found):,} training image{'' if len(found) == 1 else 's'}"
        if is_dropped:
            parts.append(f"{images} left out, by their scores not like the others: {names}{more}")
        else:
            verb = "scores" if len(found) == 1 else "score"
            parts.append(f"{images} {verb} unlike the others and may not be good: {names}{more}")
    if not parts:
        return None
    if not any(one["dropped"] for one in suspects):
        parts.append("look at them, and leave them out with --drop-suspects if they are not")
    if n_examined is not None and n_images is not None and n_examined < n_images:
        parts.append(f"only {n_examined:,} of {n_images:,} images were looked at, those that calibrate")
    return f"{shown_name(category)}: {'; '.join(parts)}"
