"""Images that are there twice: the same bytes, the same pixels, or nearly the same picture.

Near duplicates are found by their small grey thumbnails (`measure.THUMBNAIL`). Two things are taken out of each first:
light, by subtracting a Gaussian blur of a tenth of the side, and what all images of the category share, by subtracting
their mean. Without the second, all bottles of one production line are alike: of MVTec AD's 292, every one correlates
with some other by 0.90 or more, half of them by 0.99. What is left is scaled to length 1, and two images of a category
are near duplicates if it correlates by ``NEAR`` or more, and by more than chance explains: where images differ in few
ways, as a grid of holes differs in its place alone, many are alike without being the same (see `level`). Below ``FEW``
images there is no saying what a category shares; then, and for a category that is one picture over and over, near are
those whose thumbnails without light correlate by ``COPY``.

Found are copies compressed anew, resized, brightened or darkened, and the same thing photographed again in place or
under another light; not copies that are mirrored, or shifted, cropped or turned by more than about a hundredth of
their side. Of magnetic tile's 1,344 images, where each tile lay under up to six lights, 940 are in 247 groups, none
of more than twelve; 67 % of the good test images and 1.5 % of the defective ones have a near duplicate among the
training images. Of bottle's 292 images 6 are in 2 groups. Of the generated perforated plates, none of which is there
twice, 8 of 94 are in pairs; a level of 0.9 alone would take 61 for near duplicates.
"""

from __future__ import annotations

from typing import NamedTuple

import faiss
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.special import betaincinv

from mvad.data.sampling import evenly_spaced
from mvad.inspection.measure import THUMBNAIL

NEAR = 0.90
COPY = 0.9998
FEW = 8
CHANCE = 0.5  # pairs of different images that a category may be expected to have above its level
SAMPLE = 1000  # images that the level is computed from
FLAT = 0.5  # grey levels: a thumbnail that varies less shows nothing to compare by
BLUR = 0.094 * THUMBNAIL  # pixels of a thumbnail
NEIGHBOURS = 8  # of each image: images of a group find each other through one another
EXACT_UP_TO = 100_000  # images of a category; above, only the nearest cells of a partition are searched
CELLS_SEARCHED = 16


class Twins(NamedTuple):
    """Near duplicates among n images.

    Attributes
    ----------
    group : (n,) int64
        Equal for images that belong together, directly or through others; -1: the image is alone.
    nearest : (n,) int64
        Its nearest near duplicate; -1 if there is none.
    similarity : (n,) float32
        Correlation with that one; NaN if there is none.
    """

    group: NDArray[np.int64]
    nearest: NDArray[np.int64]
    similarity: NDArray[np.float32]


def same(digests: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Groups of equal digests: (n,) int64, numbered in the order of their first members, -1 for what is alone.

    Parameters
    ----------
    digests : (n, 32) uint8
    """
    groups = np.full(len(digests), -1, np.int64)
    if not len(digests):
        return groups
    rows = np.ascontiguousarray(digests).view("V32").ravel()
    _, first, inverse, counts = np.unique(rows, return_index=True, return_inverse=True, return_counts=True)
    repeated = np.flatnonzero(counts > 1)
    number = np.full(len(counts), -1, np.int64)
    number[repeated[np.argsort(first[repeated])]] = np.arange(len(repeated))
    return number[inverse.ravel()]


def near(thumbnails: NDArray[np.uint8]) -> Twins:
    """Near duplicates among the images of one category, as the module says.

    The search is exact up to ``EXACT_UP_TO`` images. Images whose thumbnails vary by less than ``FLAT`` grey levels
    once their light is gone, such as black ones, take no part.

    Parameters
    ----------
    thumbnails : (n, THUMBNAIL, THUMBNAIL) uint8
    """
    count = len(thumbnails)
    vectors, structured = _without_light(thumbnails)
    edges = _pairs(vectors, COPY)
    if len(structured) >= FEW:
        own = _unit(vectors - vectors.mean(axis=0))
        edges += _pairs(own, max(NEAR, level(own)))
    group, nearest = np.full(count, -1, np.int64), np.full(count, -1, np.int64)
    similarity = np.full(count, np.nan, np.float32)
    if not edges:
        return Twins(group, nearest, similarity)
    left, right = (structured[np.concatenate([edge[end] for edge in edges])] for end in (0, 1))
    alike = np.concatenate([edge[2] for edge in edges])
    for start, end in ((left, right), (right, left)):
        for one, other, value in zip(start, end, alike, strict=True):
            if not similarity[one] >= value:
                nearest[one], similarity[one] = other, value
    graph = coo_array((np.ones(len(left), bool), (left, right)), shape=(count, count))
    members = connected_components(graph, directed=False)[1]
    in_pairs = nearest >= 0
    _, first, inverse = np.unique(members[in_pairs], return_index=True, return_inverse=True)
    group[in_pairs] = np.argsort(np.argsort(first))[inverse]
    return Twins(group, nearest, similarity)


def level(vectors: NDArray[np.float32]) -> float:
    """The correlation that ``CHANCE`` pairs of different images are expected to exceed, from 0 to 1.

    Directions that are equally likely in d dimensions have products t with P(|t| > x) = I_(1 - x^2)((d - 1) / 2, 1 / 2)
    and a mean fourth power of 3 / (d (d + 2)). The images are taken for such, with the d that fits their own fourth
    powers; the few products of true duplicates among them hardly change it.

    Parameters
    ----------
    vectors : (n, m) float32
        Of length 1, centred; two or more.
    """
    count = len(vectors)
    some = vectors[evenly_spaced(count, SAMPLE)].astype(np.float64)
    products = (some @ some.T)[np.triu_indices(len(some), 1)]
    dimensions = np.sqrt(1 + 3 / max(float((products**4).mean()), 1e-12)) - 1
    share = min(1.0, 2 * CHANCE / (count * (count - 1) / 2))
    return float(np.sqrt(1 - betaincinv(max(dimensions - 1, 0.1) / 2, 0.5, share)))


Edges = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]


def _without_light(thumbnails: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Unit vectors of the thumbnails that show something, and which those are."""
    grey = thumbnails.astype(np.float32)
    rest = grey - gaussian_filter(grey, (0, BLUR, BLUR), mode="nearest")
    rest = rest.reshape(len(grey), THUMBNAIL * THUMBNAIL)
    rest -= rest.mean(axis=1, keepdims=True)
    structured = np.flatnonzero(rest.std(axis=1) >= FLAT)
    return _unit(rest[structured]), structured


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    # A vector of nothing but rounding has no direction: it stays short, and near to none.
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-4)


def _pairs(vectors: NDArray[np.float32], least: float) -> list[Edges]:
    """Pairs of vectors whose product is ``least`` or more, among the nearest few of each."""
    count = len(vectors)
    if count < 2:
        return []
    vectors = np.ascontiguousarray(vectors, np.float32)
    wanted = min(NEIGHBOURS + 1, count)
    if count <= EXACT_UP_TO:
        products, found = faiss.knn(vectors, vectors, wanted, metric=faiss.METRIC_INNER_PRODUCT)
    else:
        cells = int(4 * np.sqrt(count))
        index = faiss.IndexIVFFlat(
            faiss.IndexFlatIP(vectors.shape[1]), vectors.shape[1], cells, faiss.METRIC_INNER_PRODUCT
        )
        index.train(vectors[:: max(1, count // (64 * cells))])
        index.add(vectors)
        index.nprobe = CELLS_SEARCHED
        products, found = index.search(vectors, wanted)
    left = np.repeat(np.arange(count), wanted)
    right, products = found.ravel().astype(np.int64), products.ravel()
    chosen = (products >= least) & (right != left) & (right >= 0)
    return [(left[chosen], right[chosen], np.minimum(products[chosen], 1.0))] if chosen.any() else []
