"""Find images that occur more than once: the same pixels, or nearly the same picture.

Near duplicates are found by small grey fingerprints (`fingerprints`), in two ways. Lighting is removed from each first,
by subtracting a Gaussian blur of a tenth of the side.

Frames of one scene, by a camera that hardly moves, differ by noise alone. Two images are such frames if one is the
other in another brightness, shifted by up to a hundredth of the side, but for a difference of up to ``MAX_NOISE`` grey
levels and a tenth of its variance. The shift is that of a first-order expansion (tangent distance: Simard, LeCun,
Denker, Efficient pattern recognition using a new transformation distance, NIPS 1992). Noise of 2 to 8 grey levels per
pixel leaves 0.4 to 1.1 at this size. Where two frames belong together, a third may be up to twice as far off: one frame
left behind would spoil what is held out. Different parts in the same place under the same light leave more: of MVTec
AD's bottles, half leave 3.9 or more to the most similar other one.

The same object under another light leaves more than noise. For it, what all images of the category share is removed,
too, by subtracting their mean. Otherwise all bottles of one production line are alike: of MVTec AD's 292, every
one correlates with some other by 0.90 or more, half of them by 0.99. The remainder is scaled to length 1. Two images of
a category are near duplicates if it correlates by ``MIN_CORRELATION`` or more, and by more than chance explains: where
images differ in few ways, as a grid of holes differs only in its position, many are alike without being the same (see
`chance_level`). Fewer than ``MIN_IMAGES`` images do not show what a category shares; there, near duplicates are frames
of one scene alone.

This finds copies that were recompressed, resized, brightened or darkened, and the same object photographed again in
place or under another light. It does not find copies that are mirrored, or shifted, cropped or rotated by more than
about a hundredth of their side. Of magnetic tile's 1,344 images, where each tile was photographed under up to six
lights, 976 are in 234 groups, none larger than 15; 70 % of the good test images and 1.5 % of the defective ones
have a near duplicate among the training images. Of bottle's 292 images, 6 are in 2 groups. Of the 94 generated
perforated plates, which are all different, 8 are in pairs; with a fixed limit of 0.9 alone, 61 would be. Where near
duplicates are held out together, fewer such pairs are risked (``GROUPED_CHANCE_PAIRS``).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import faiss
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.special import betaincinv

from mvad.data.sampling import evenly_spaced
from mvad.search.fingerprints import FINGERPRINT_SIDE

MIN_CORRELATION = 0.90
MAX_NOISE = 1.2  # grey levels, root mean square over a fingerprint; between frames of one scene
MIN_EXPLAINED = 0.9  # of the variance of a frame, by another frame of the scene
MAX_SHIFT = 0.01 * FINGERPRINT_SIDE  # pixels of a fingerprint, between frames of one scene
MIN_CANDIDATE_CORRELATION = 0.7  # of pairs that may be frames of one scene
MAX_EXCESS = 2.0  # times farther off may be a third frame, next to two that are that near
PAIRS_AT_ONCE = 4096
MAX_GROUPED_IMAGES = 20_000  # `group_near_duplicates` compares so many consecutive images with each other
MIN_IMAGES = 8  # of a category, to know what its images share
CHANCE_PAIRS = 0.5  # pairs of different images that are expected above the chance level of a category, to look at
GROUPED_CHANCE_PAIRS = 0.01  # the same, to hold out together
CHANCE_SAMPLE = 1000  # images that the chance level is estimated from
MIN_STD = 0.5  # grey levels; a fingerprint that varies less shows nothing to compare
BLUR_SIGMA = 0.094 * FINGERPRINT_SIDE  # pixels of a fingerprint
N_NEIGHBOURS = 8  # compared with each image; larger groups are connected through their members
MAX_EXACT_IMAGES = 100_000  # of a category; in larger ones, only the nearest cells of a partition are searched
NPROBE = 16  # cells searched


class NearDuplicates(NamedTuple):
    """Near duplicates among n images; arrays of shape (n,)."""

    group: NDArray[np.int64]  # equal for near duplicates, directly or through others; -1 for an image without any
    nearest: NDArray[np.int64]  # the most similar near duplicate; -1 if there is none
    similarity: NDArray[np.float32]  # the correlation with it; NaN if there is none

    @classmethod
    def none(cls, n_images: int) -> NearDuplicates:
        missing = np.full(n_images, -1, np.int64)
        return cls(missing, missing.copy(), np.full(n_images, np.nan, np.float32))


def exact_duplicates(digests: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Groups of equal (n, 32) uint8 digests: (n,) int64, numbered in the order of first members, -1 if unique."""
    return _numbered(np.ascontiguousarray(digests).view("V32").ravel())


def _numbered(values: NDArray[Any]) -> NDArray[np.int64]:
    _, first, inverse, counts = np.unique(values, return_index=True, return_inverse=True, return_counts=True)
    repeated = np.flatnonzero(counts > 1)
    number = np.full(len(counts), -1, np.int64)
    number[repeated[np.argsort(first[repeated])]] = np.arange(len(repeated))
    return number[inverse.ravel()]


def near_duplicates(
    fingerprints: NDArray[np.uint8], max_exact_images: int = MAX_EXACT_IMAGES, chance_pairs: float = CHANCE_PAIRS
) -> NearDuplicates:
    """Find near duplicates among the images of one category by their (n, side, side) uint8 fingerprints.

    Images whose fingerprints vary by less than ``MIN_STD`` grey levels without lighting, such as black ones, are left
    out. The search is exact for up to ``max_exact_images``.
    """
    count = len(fingerprints)
    details, structured = _remove_lighting(fingerprints)
    vectors = _unit(details)
    edges = _frames_of_one_scene(details, _similar_pairs(vectors, MIN_CANDIDATE_CORRELATION, max_exact_images))
    if len(structured) >= MIN_IMAGES:
        centred = _unit(vectors - vectors.mean(axis=0))
        edges += _similar_pairs(centred, max(MIN_CORRELATION, chance_level(centred, chance_pairs)), max_exact_images)
    group, nearest, similarity = duplicates = NearDuplicates.none(count)
    if not edges:
        return duplicates
    left, right = (structured[np.concatenate([edge[end] for edge in edges])] for end in (0, 1))
    correlations = np.concatenate([edge[2] for edge in edges])
    for starts, ends in ((left, right), (right, left)):
        for image, other, correlation in zip(starts, ends, correlations, strict=True):
            if not similarity[image] >= correlation:
                nearest[image], similarity[image] = other, correlation
    graph = coo_array((np.ones(len(left), bool), (left, right)), shape=(count, count))
    group[:] = _numbered(connected_components(graph, directed=False)[1])
    return duplicates


def near_duplicates_of_distinct(
    fingerprints: NDArray[np.uint8], exact: NDArray[np.int64], chance_pairs: float = CHANCE_PAIRS
) -> NearDuplicates:
    """Near duplicates among images of which exact duplicates (as `exact_duplicates` numbers them) count once."""
    repeated = np.flatnonzero(exact >= 0)
    _, first, inverse = np.unique(exact[repeated], return_index=True, return_inverse=True)
    leader = np.arange(len(exact))
    leader[repeated] = repeated[first[inverse]]
    distinct, inverse = np.unique(leader, return_inverse=True)
    near = near_duplicates(fingerprints[distinct], chance_pairs=chance_pairs)
    nearest = np.where(near.nearest < 0, -1, distinct[near.nearest])
    return NearDuplicates(near.group[inverse], nearest[inverse], near.similarity[inverse])


def group_near_duplicates(fingerprints: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Number the groups of exact and near duplicates among the images of one category, singles included: (n,) int64.

    Groups are numbered in the order of their first members, so without duplicates the numbers are 0 to n - 1. Among
    more than ``MAX_GROUPED_IMAGES``, only duplicates within as many consecutive images are found, which bounds memory
    and keeps the time proportional to n: frames of one scene usually stand next to each other.
    """
    groups = np.arange(len(fingerprints))
    for start in range(0, len(fingerprints), MAX_GROUPED_IMAGES):
        block = np.ascontiguousarray(fingerprints[start : start + MAX_GROUPED_IMAGES])
        exact = _numbered(block.reshape(len(block), -1).view(f"V{block[0].nbytes}").ravel())
        near = near_duplicates_of_distinct(block, exact, GROUPED_CHANCE_PAIRS).group
        for members in (exact, near):  # exact duplicates are in the same near group, if they are in one
            _, first, inverse = np.unique(members, return_index=True, return_inverse=True)
            repeated = members >= 0
            groups[start : start + len(block)][repeated] = start + first[inverse][repeated]
    return np.unique(groups, return_inverse=True)[1].astype(np.int64)


def chance_level(vectors: NDArray[np.float32], chance_pairs: float = CHANCE_PAIRS) -> float:
    """The correlation, from 0 to 1, that ``chance_pairs`` pairs of different images are expected to exceed.

    Directions that are equally likely in d dimensions have products t with P(|t| > x) = I_(1 - x^2)((d - 1) / 2, 1 / 2)
    and a mean fourth power of 3 / (d (d + 2)). The images are taken for such, with the d that fits their own fourth
    powers; the few products of true duplicates among them hardly change it. ``vectors`` are (n, m), centred, of length
    1, and two or more.
    """
    count = len(vectors)
    sample = vectors[evenly_spaced(count, CHANCE_SAMPLE)].astype(np.float64)
    products = (sample @ sample.T)[np.triu_indices(len(sample), 1)]
    dimensions = np.sqrt(1 + 3 / max(float((products**4).mean()), 1e-12)) - 1
    share = min(1.0, 2 * chance_pairs / (count * (count - 1) / 2))
    return float(np.sqrt(1 - betaincinv(max(dimensions - 1, 0.1) / 2, 0.5, share)))


Edges = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]


def _remove_lighting(fingerprints: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Fingerprints that have structure without lighting, one per row, in grey levels; and which those are."""
    grey = fingerprints.astype(np.float32)
    details = grey - gaussian_filter(grey, (0, BLUR_SIGMA, BLUR_SIGMA), mode="nearest")
    details = details.reshape(len(grey), FINGERPRINT_SIDE * FINGERPRINT_SIDE)
    details -= details.mean(axis=1, keepdims=True)
    structured = np.flatnonzero(details.std(axis=1) >= MIN_STD)
    return details[structured], structured


def _frames_of_one_scene(details: NDArray[np.float32], candidates: list[Edges]) -> list[Edges]:
    """Those of the candidate pairs that differ as frames of one scene do: by brightness, a small shift and noise."""
    kept = []
    pictures = details.reshape(-1, FINGERPRINT_SIDE, FINGERPRINT_SIDE)
    for left, right, products in candidates:
        excess = np.empty(len(left))
        for start in range(0, len(left), PAIRS_AT_ONCE):
            pairs = slice(start, start + PAIRS_AT_ONCE)
            excess[pairs] = _excess(pictures[left[pairs]], pictures[right[pairs]])
        close = excess <= 1
        has_frame = np.zeros(len(pictures), bool)
        has_frame[left[close]] = has_frame[right[close]] = True
        close |= (excess <= MAX_EXCESS) & (has_frame[left] | has_frame[right])
        kept.append((left[close], right[close], products[close]))
    return kept


def _excess(pictures: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float64]:
    """How far two pictures are from being frames of one scene, for (n, side, side) each: (n,), at most 1 if they are.

    It is the largest of three ratios, of noise, of unexplained variance and of shift to what frames may have of it.
    """
    inner = np.s_[:, 1:-1, 1:-1]  # slopes are known here
    slopes = np.gradient(pictures, axis=(1, 2))
    parts = [part[inner].reshape(len(part), -1).astype(np.float64) for part in (pictures, *slopes, others)]
    *parts, target = [part - part.mean(axis=1, keepdims=True) for part in parts]
    basis = np.stack(parts, axis=1)
    normal = basis @ basis.transpose(0, 2, 1) + 1e-6 * np.eye(len(parts))  # a picture may have slopes in one direction
    weights = np.linalg.solve(normal, basis @ target[..., None])
    residual = ((target - (weights * basis).sum(axis=1)) ** 2).mean(axis=1)
    unexplained = residual / np.maximum((target**2).mean(axis=1), 1e-12)
    shift = np.abs(weights[:, 1:, 0]).max(axis=1) / np.maximum(weights[:, 0, 0], 1e-12)
    ratios = np.sqrt(residual) / MAX_NOISE, np.sqrt(unexplained / (1 - MIN_EXPLAINED)), shift / MAX_SHIFT
    return np.max(ratios, axis=0)


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    # A vector of rounding errors alone has no direction: it stays short, and similar to no other.
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-4)


def _similar_pairs(vectors: NDArray[np.float32], min_product: float, max_exact_images: int) -> list[Edges]:
    """Pairs of vectors with a product of at least ``min_product``, among the nearest few of each."""
    count = len(vectors)
    if count < 2:
        return []
    vectors = np.ascontiguousarray(vectors, np.float32)
    n_results = min(N_NEIGHBOURS + 1, count)
    if count <= max_exact_images:
        products, neighbours = faiss.knn(vectors, vectors, n_results, metric=faiss.METRIC_INNER_PRODUCT)
    else:
        n_cells = int(4 * np.sqrt(count))
        width = vectors.shape[1]
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, n_cells, faiss.METRIC_INNER_PRODUCT)
        index.nprobe = NPROBE
        index.train(vectors[:: max(1, count // (64 * n_cells))])
        index.add(vectors)
        products, neighbours = index.search(vectors, n_results)
    left = np.repeat(np.arange(count), n_results)
    right, products = neighbours.ravel().astype(np.int64), products.ravel()
    similar = (products >= min_product) & (right != left) & (right >= 0)
    return [(left[similar], right[similar], np.minimum(products[similar], 1.0))] if similar.any() else []
