"""Find images that differ from the others of their category: too dark, blurred, of one colour, or of something else.

Values are compared by the modified z-score, 0.6745 (x - median) / MAD (Iglewicz and Hoaglin, How to Detect and Handle
Outliers, 1993), whose median and deviation a few bad images cannot move. The reference is the category's training
images, or all its images if fewer than ``MIN_REFERENCE`` of those can be read. Of n values an outlier is one beyond 3.5
(1 + 8 / n): the usual 3.5, and more where few images make both estimates unsteady. Of sets of normal values, at most
one in fifty then has an outlier at n from 8 to 50, and one in thirteen at 200.
"""

from typing import NamedTuple

import faiss
import numpy as np
from numpy.typing import NDArray

from mvad.calibration.suspects import MIN_REFERENCE, modified_z_scores, outlier_cutoff

BLANK_CONTRAST = 2.0  # grey levels
MIN_MAD = {"brightness": 2.0, "sharpness": 0.05, "unusual": 0.05}  # grey levels, and log2 of the others
N_NEIGHBOURS = 3  # the distance to this neighbour says how unusual features are

Values = NDArray[np.float32]


class OutlierScores(NamedTuple):
    """Modified z-scores of n images, arrays of shape (n,); NaN where there is nothing to compare with."""

    brightness: Values
    sharpness: Values  # of its logarithm
    unusual: Values  # of `_log_distances`; high for another product or another view
    reasons: list[str]  # why an image is an outlier, "" if it is not


def find_outliers(
    brightness: Values, contrast: Values, sharpness: Values, features: Values | None, reference: NDArray[np.bool_]
) -> OutlierScores:
    """Compare the n readable images of one category with each other.

    The (n,) measurements are those of `measure.Measurement`, ``features`` are pooled ones, (n, d), and ``reference`` is
    true for training images.
    """
    if reference.sum() < MIN_REFERENCE:
        reference = np.ones(len(brightness), bool)
    sharpnesses = log_sharpness(sharpness)
    z_scores = {
        "brightness": modified_z_scores(brightness, brightness[reference], MIN_MAD["brightness"]),
        "sharpness": modified_z_scores(sharpnesses, sharpnesses[reference], MIN_MAD["sharpness"]),
        "unusual": np.full(len(brightness), np.nan, np.float32),
    }
    if features is not None and reference.sum() > N_NEIGHBOURS:
        distances = _log_distances(features, reference)
        z_scores["unusual"] = modified_z_scores(distances, distances[reference], MIN_MAD["unusual"])
    cutoff = outlier_cutoff(int(reference.sum()))
    reasons = [
        _reason(contrast[row], {name: float(values[row]) for name, values in z_scores.items()}, cutoff)
        for row in range(len(contrast))
    ]
    return OutlierScores(**z_scores, reasons=reasons)


def log_sharpness(sharpness: Values) -> Values:
    """log2 of sharpness, which may be 0."""
    return np.log2(np.maximum(sharpness, 1e-3))


def _log_distances(features: Values, reference: NDArray[np.bool_]) -> Values:
    """log2 of each image's feature distance to its ``N_NEIGHBOURS``-th nearest reference image other than itself."""
    queries = np.ascontiguousarray(features, np.float32)
    references = np.ascontiguousarray(queries[reference])
    squares = np.maximum(faiss.knn(queries, references, min(N_NEIGHBOURS + 1, len(references)))[0], 0)
    rank = np.where(reference, min(N_NEIGHBOURS, len(references) - 1), N_NEIGHBOURS - 1)
    return np.log2(np.sqrt(squares[np.arange(len(queries)), rank]) + 1e-3).astype(np.float32)


def _reason(contrast: float, z_scores: dict[str, float], cutoff: float) -> str:
    if contrast < BLANK_CONTRAST:
        return "nearly one colour"
    reasons = []
    if abs(z_scores["brightness"]) > cutoff:
        reasons.append("much darker" if z_scores["brightness"] < 0 else "much brighter")
    if abs(z_scores["sharpness"]) > cutoff:
        reasons.append("blurred" if z_scores["sharpness"] < 0 else "much sharper or noisier")
    if z_scores["unusual"] > cutoff:
        reasons.append("looks unlike the others")
    return ", ".join(reasons)
