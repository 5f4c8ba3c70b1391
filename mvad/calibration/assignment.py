"""Assign images to categories: each goes to the one whose good images its patches are most like.

The anomaly score of an image cannot say what product it shows. It is the score of the worst patch, which a defect
decides: beyond the calibration scores the ranks of all categories tie at 1 / (n + 1), and a defect that one bank of
patches has nothing near to may be nearer to the bank of another product. So ranks are taken patch by patch: a patch is
strange to a category if it scores above 99 % of the patches of its held-out good images. The share of strange patches
is about 0.01 for a good image of the category, about the area of the defect for a defective one, and for another
product the area that the product takes up, near 1 where it fills the image. Patches of a background that products
share are strange to none of them, and do not decide; the median patch, or a mean over all of the image, may be of the
background alone.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mvad.calibration.conformal import require_finite, threshold

UNKNOWN_PRODUCT = "unknown product"  # stands for the category of images that fit none, or cannot be assigned
STRANGE_RATE = 0.01  # of the patches of good images


class PatchReference(NamedTuple):
    """What the patches of a category's held-out good images score."""

    limit: float  # patches above it are strange: see `threshold`, conformal
    mean: float


class Fits(NamedTuple):
    """How well images fit categories; lower is better."""

    share: NDArray[np.floating]  # (n, categories): of the patches, those that are strange to the category
    level: NDArray[np.floating]  # (n, categories): mean score of the patches, of good images of the category 1


class Assignment(NamedTuple):
    """To which categories images belong."""

    best: NDArray[np.int64]  # (n,) index of the category that fits best
    share: NDArray[np.floating]  # (n,) of the patches, those that are strange to that category
    margin: NDArray[np.floating]  # (n,) by how much that share is larger for the second best; NaN without a second
    unknown: NDArray[np.bool_]  # (n,) whether not even the best fits


def patch_reference(scores: NDArray[np.float32]) -> PatchReference:
    """Summarise scores of patches of held-out good images, (n, patches); ValueError if one is not finite, or none."""
    return PatchReference(threshold(scores.ravel(), "conformal", STRANGE_RATE), float(require_finite(scores).mean()))


def fit_of(scores: NDArray[np.float32], reference: PatchReference) -> tuple[float, float]:
    """The share of strange patches, and the level, of one image whose patches have these scores, (patches,)."""
    # Scores of nothing but duplicates are 0.
    level = float(scores.mean(dtype=np.float64)) / max(reference.mean, np.finfo(np.float32).tiny)
    return float((scores > reference.limit).mean()), level


def assign(fits: Fits, unknown_above: float) -> Assignment:
    """Choose for each image the category with the smallest share of strange patches, of equal ones the lowest level.

    What still ties goes to the first of the categories. An image is unknown if more than ``unknown_above`` of its
    patches are strange to the best category. So a defective image is never called unknown unless its defect changes
    about that share of the image; and an unknown product is called so if it fills more than that share, and nothing of
    it is like the known ones.
    """
    order = np.lexsort((fits.level, fits.share), axis=1)
    ordered = np.take_along_axis(fits.share, order, axis=1)
    share = ordered[:, 0]
    margin = ordered[:, 1] - share if ordered.shape[1] > 1 else np.full(len(share), np.nan)
    return Assignment(order[:, 0], share, margin, share > unknown_above)
