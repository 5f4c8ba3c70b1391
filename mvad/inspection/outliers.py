"""Images that stand out from the others of their category: too dark, blurred, of one colour, or something else.

Values are compared by the modified z-score, 0.6745 (x - median) / MAD (Iglewicz and Hoaglin, How to Detect and Handle
Outliers, 1993), whose median and deviation a few bad images cannot move. The reference is the category's training
images, or all its images where fewer than ``LEAST`` of them can be read. Of n values an outlier is one beyond
3.5 (1 + 8 / n): the usual 3.5, and more where few images make both unsteady. Of sets of normal values, at most one in
fifty then has an outlier at n from 8 to 50, and one in thirteen at 200.
"""

from __future__ import annotations

from typing import NamedTuple

import faiss
import numpy as np
from numpy.typing import NDArray

LEAST = 8  # images that a median and a deviation mean something for
CUTOFF, UNSTEADY = 3.5, 8.0
BLANK = 2.0  # grey levels of contrast
LEAST_SPREAD = {"brightness": 2.0, "sharpness": 0.05, "unusual": 0.05}  # of the MAD: grey levels, and log2
NEAREST = 3  # the neighbour whose distance says how unusual features are


class Scores(NamedTuple):
    """Modified z-scores of n images; NaN where there is nothing to compare with.

    ``sharpness`` is of the logarithm. ``unusual`` is that of the logarithm of the distance to the third nearest of
    the reference images in the space of pooled features: it is high for another product or another view.
    """

    brightness: NDArray[np.float32]
    sharpness: NDArray[np.float32]
    unusual: NDArray[np.float32]
    reasons: list[str]  # why an image stands out, "" if it does not


def stand_out(
    brightness: NDArray[np.float32],
    contrast: NDArray[np.float32],
    sharpness: NDArray[np.float32],
    features: NDArray[np.float32] | None,
    reference: NDArray[np.bool_],
) -> Scores:
    """Compare the readable images of one category with each other.

    Parameters
    ----------
    brightness, contrast, sharpness : (n,)
        As in `measure.Measured`.
    features : (n, d)
        Pooled features, or None.
    reference : (n,)
        The training images.
    """
    if reference.sum() < LEAST:
        reference = np.ones(len(brightness), bool)
    log_sharpness = np.log2(np.maximum(sharpness, 1e-3))
    z = {
        "brightness": robust_z(brightness, reference, LEAST_SPREAD["brightness"]),
        "sharpness": robust_z(log_sharpness, reference, LEAST_SPREAD["sharpness"]),
        "unusual": np.full(len(brightness), np.nan, np.float32),
    }
    if features is not None and reference.sum() > NEAREST:
        z["unusual"] = robust_z(_log_distance(features, reference), reference, LEAST_SPREAD["unusual"])
    cutoff = CUTOFF * (1 + UNSTEADY / max(1, reference.sum()))
    reasons = [
        _reason(contrast[row], {name: float(values[row]) for name, values in z.items()}, cutoff)
        for row in range(len(contrast))
    ]
    return Scores(**z, reasons=reasons)


def robust_z(values: NDArray[np.float32], reference: NDArray[np.bool_], least: float) -> NDArray[np.float32]:
    """Modified z-scores of values; NaN without ``LEAST`` reference values. ``least``: the smallest MAD to divide by."""
    own = values[reference]
    if len(own) < LEAST:
        return np.full(len(values), np.nan, np.float32)
    middle = np.median(own)
    spread = max(float(np.median(np.abs(own - middle))), least)
    return (0.6745 * (values - middle) / spread).astype(np.float32)


def _log_distance(features: NDArray[np.float32], reference: NDArray[np.bool_]) -> NDArray[np.float32]:
    """log2 of the distance of each image to its ``NEAREST``-th nearest among the reference, itself not counted."""
    rows = np.ascontiguousarray(features, np.float32)
    own = np.ascontiguousarray(rows[reference])
    squares = np.maximum(faiss.knn(rows, own, min(NEAREST + 1, len(own)))[0], 0)
    place = np.where(reference, min(NEAREST, len(own) - 1), NEAREST - 1)
    return np.log2(np.sqrt(squares[np.arange(len(rows)), place]) + 1e-3).astype(np.float32)


def _reason(contrast: float, z: dict[str, float], cutoff: float) -> str:
    if contrast < BLANK:
        return "nearly one colour"
    reasons = []
    if abs(z["brightness"]) > cutoff:
        reasons.append("much darker" if z["brightness"] < 0 else "much brighter")
    if abs(z["sharpness"]) > cutoff:
        reasons.append("blurred" if z["sharpness"] < 0 else "much sharper or noisier")
    if z["unusual"] > cutoff:
        reasons.append("looks unlike the others")
    return ", ".join(reasons)
