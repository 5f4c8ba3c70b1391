"""The patch of an image that is farthest from a memory bank, found without comparing every patch with every vector.

PatchCore's image score (arXiv 2106.08265, section 3.3) needs one patch only: that whose nearest neighbour in the bank
is farthest away. The distance of a patch to any vector of the bank bounds its nearest-neighbour distance from above, so
a patch is out as soon as some vector is nearer to it than the farthest patch is to all of them. Vectors near to each
patch are guessed, and then patches are settled by falling bound until no bound is left that could win.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mvad.search.exact_search import TIES, ExactSearch


class WorstPatch(NamedTuple):
    """Of each image, its farthest patch, that patch's distance to the bank and the nearest vector there: (n,) each."""

    patch: Tensor
    distance: Tensor
    nearest: Tensor


def worst_patches(search: ExactSearch, patches: Tensor) -> WorstPatch:
    """The farthest patch of each image, the first of several; whichever images come together, the answer is the same.

    Parameters
    ----------
    patches : (n, p, d) float32 on the bank's device
    """
    images, per_image, width = patches.shape
    rows = patches.reshape(-1, width)
    places = search.along_axes(rows)
    bounds = search.distances(rows, search.guess(places)).view(images, per_image)
    # Rounding must not decide which of nearly tied patches are settled: the answer would depend on the company.
    reach = bounds * (1 + TIES)
    left = torch.ones_like(bounds, dtype=torch.bool)
    patch = torch.full((images,), per_image, device=rows.device)
    farthest = WorstPatch(patch, torch.full((images,), -torch.inf, device=rows.device), torch.zeros_like(patch))
    at_once = 1
    while left.any():
        highest = torch.where(left, reach, -torch.inf).topk(min(at_once, per_image), dim=1).indices
        of = torch.arange(images, device=rows.device).repeat_interleave(highest.shape[1])
        chosen = highest.flatten()
        (open_,) = torch.nonzero(left[of, chosen], as_tuple=True)
        of, chosen = of[open_], chosen[open_]
        left[of, chosen] = False
        places_of = of * per_image + chosen
        distances, nearest = search.nearest(rows[places_of], places[places_of], bounds[of, chosen])
        _take(farthest, of, chosen, distances, nearest)
        left &= reach >= farthest.distance[:, None]
        at_once *= 2  # many that are nearly as far as each other are settled in few rounds
    return farthest


def _take(farthest: WorstPatch, of: Tensor, patches: Tensor, distances: Tensor, nearest: Tensor) -> None:
    """Take over the patches, each of one image, that are farther than all others and before, or as far and first."""
    best = torch.full_like(farthest.distance, -torch.inf).scatter_reduce_(0, of, distances, "amax")
    best = torch.maximum(best, farthest.distance)
    (ahead,) = torch.nonzero(distances == best[of], as_tuple=True)
    stays = torch.where(farthest.distance == best, farthest.patch, torch.iinfo(torch.int64).max)
    first = stays.scatter_reduce(0, of[ahead], patches[ahead], "amin")
    won = ahead[patches[ahead] == first[of[ahead]]]
    images = of[won]
    farthest.patch[images], farthest.distance[images], farthest.nearest[images] = (
        patches[won],
        distances[won],
        nearest[won],
    )
