"""The patches of an image that are farthest from a memory bank, without an exact search for every patch.

PatchCore's image score (arXiv 2106.08265, section 3.3) needs one patch only: the one whose nearest neighbour in the
bank is farthest away. The distance of a patch to any vector of the bank is an upper bound of its nearest-neighbour
distance. So a patch is ruled out as soon as some vector is nearer to it than the farthest patch found so far is to the
whole bank. Upper bounds come from approximate neighbours. Patches are then searched exactly in the order of falling
bounds, until no remaining bound exceeds the largest distance.

A mean of the k farthest patches needs k of them: then a patch is ruled out once k others are known to be farther.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from mvad.search.exact_search import TIE_TOLERANCE, ExactSearch
from mvad.search.layer_banks import LayerSearch

CLOSER_PATCHES = 64  # of each image, whose bounds are brought closer to their distances


class WorstPatch(NamedTuple):
    """The farthest patch of each image."""

    patch: Tensor  # (n,) int64: its index among the patches of the image
    distance: Tensor  # (n,) float32: its distance to the bank
    nearest: Tensor  # (n,) int64: the index of its nearest vector in the bank; (n, layers) of several banks
    bounds: Tensor  # (n, p) float32: upper bounds of the distances of all patches, none above the farthest's
    largest: Tensor  # (n, k) float32: the k largest distances, falling; -inf for those that are not known


def worst_patches(
    search: ExactSearch | LayerSearch, patches: Tensor, at_least: float = -torch.inf, k: int = 1
) -> WorstPatch:
    """Find the farthest patch of each image, the first one if several are equally far, and the k largest distances.

    ``patches``: (n, p, d) float32, on the bank's device. The result for an image does not depend on the other images.
    An image of which no patch can be as far as ``at_least`` has the distance -inf, and bounds below it. Of the k
    largest distances those are known that are at least so large. All others have bounds below the k-th largest.
    """
    n_images, per_image, width = patches.shape
    rows = patches.reshape(-1, width)
    projections = search.project(rows)
    approximate = search.approximate_nearest(projections)
    bounds = search.distances(rows, approximate).view(n_images, per_image)
    _lower_largest(bounds, search, rows, projections, at_least, max(CLOSER_PATCHES, 2 * k))
    # Near ties are all searched: otherwise rounding, which depends on the other images, would decide which ones are.
    upper_bound = bounds * (1 + TIE_TOLERANCE)
    unsettled = upper_bound >= at_least
    patch = torch.full((n_images,), per_image, device=rows.device)
    distance = torch.full((n_images,), -torch.inf, device=rows.device)
    largest = distance[:, None].repeat(1, k)
    nearest = approximate.new_zeros((n_images, *approximate.shape[1:]))
    worst = WorstPatch(patch, distance, nearest, bounds.clone(), largest)
    settled = torch.full_like(bounds, -torch.inf) if k > 1 else None
    patches_per_round = k
    while unsettled.any():
        top_k = min(patches_per_round, per_image)
        candidates = torch.where(unsettled, upper_bound, -torch.inf).topk(top_k, dim=1).indices.flatten()
        image_of = torch.arange(n_images, device=rows.device).repeat_interleave(top_k)
        (still_open,) = torch.nonzero(unsettled[image_of, candidates], as_tuple=True)
        image_of, candidates = image_of[still_open], candidates[still_open]
        unsettled[image_of, candidates] = False
        row_of = image_of * per_image + candidates
        distances, nearest = search.nearest(rows[row_of], projections[row_of], bounds[image_of, candidates])
        worst.bounds[image_of, candidates] = distances
        _keep_better(worst, image_of, candidates, distances, nearest)
        if settled is None:
            largest[:, 0] = worst.distance
        else:
            settled[image_of, candidates] = distances
            largest[:, :per_image] = settled.topk(min(k, per_image), dim=1).values
        unsettled &= upper_bound >= largest[:, -1:]
        patches_per_round *= 2  # so that many nearly equal patches take few rounds
    return worst


def _lower_largest(
    bounds: Tensor, search: ExactSearch | LayerSearch, rows: Tensor, projections: Tensor, at_least: float, count: int
) -> None:
    """Bring the largest bounds of each image, (n, p), closer to the distances, so that few patches are searched."""
    per_image = bounds.shape[1]
    values, patches = bounds.topk(min(count, per_image), dim=1)
    image_of, column = torch.nonzero(values >= at_least, as_tuple=True)
    patch = patches[image_of, column]
    row_of = image_of * per_image + patch
    bounds[image_of, patch] = search.closer_bounds(rows[row_of], projections[row_of], values[image_of, column])


def _keep_better(worst: WorstPatch, image_of: Tensor, patches: Tensor, distances: Tensor, nearest: Tensor) -> None:
    """Replace the worst patch of each image by a farther one, or by an earlier one that is as far."""
    largest = torch.full_like(worst.distance, -torch.inf).scatter_reduce_(0, image_of, distances, "amax")
    largest = torch.maximum(largest, worst.distance)
    (contenders,) = torch.nonzero(distances == largest[image_of], as_tuple=True)
    current = torch.where(worst.distance == largest, worst.patch, torch.iinfo(torch.int64).max)
    first = current.scatter_reduce(0, image_of[contenders], patches[contenders], "amin")
    better = contenders[patches[contenders] == first[image_of[contenders]]]
    images = image_of[better]
    worst.patch[images] = patches[better]
    worst.distance[images] = distances[better]
    worst.nearest[images] = nearest[better]
