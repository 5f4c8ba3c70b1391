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

CLOSER_PATCHES = 96  # of each image, whose bounds are brought closer to their distances


class WorstPatch(NamedTuple):
    """The farthest patch of each image."""

    patch: Tensor  # (n,) int64: its index among the patches of the image
    distance: Tensor  # (n,) float32: its distance to the bank
    nearest: Tensor  # (n,) int64: the index of its nearest vector in the bank; (n, layers) of several banks
    bounds: Tensor  # (n, p) float32: upper bounds of the distances of all patches, none above the farthest's
    largest: Tensor  # (n, k) float32: the k largest distances, falling; -inf for those that are not known


def worst_patches(
    search: ExactSearch | LayerSearch,
    patches: Tensor,
    at_least: float = -torch.inf,
    k: int = 1,
    close_from: float = -torch.inf,
) -> WorstPatch:
    """Find the farthest patch of each image, the first one if several are equally far, and the k largest distances.

    ``patches``: (n, p, d) float32, on the bank's device. The result for an image does not depend on the other images.
    An image of which no patch can be as far as ``at_least`` has the distance -inf, and bounds below it. Of the k
    largest distances those are known that are at least so large. All others have bounds below the k-th largest. Bounds
    from ``close_from`` on are near the distances, others may be far from them.
    """
    # Quickly found bounds rule most patches out where it is known what they are compared with.
    quick = search.can_be_quick and min(at_least, close_from) > -torch.inf
    settling = _Settling(search, patches, at_least, k, quick=quick)
    if quick:
        settling.lower(settling.unsettled | (settling.worst.bounds >= close_from))
    settling.lower_largest(max(CLOSER_PATCHES, 2 * k))
    patches_per_round = k
    while settling.unsettled.any():
        settling.settle(patches_per_round)
        patches_per_round *= 2  # so that many nearly equal patches take few rounds
    return settling.worst


class _Settling:
    """What is known of the distances of the patches of each image, (n, p, d), to a bank.

    ``unsettled``, (n, p), are the patches that may be farther than the k-th largest distance known.
    """

    def __init__(
        self, search: ExactSearch | LayerSearch, patches: Tensor, at_least: float, k: int, *, quick: bool
    ) -> None:
        n_images, per_image, width = patches.shape
        self.search, self.at_least, self.k = search, at_least, k
        self.rows = patches.reshape(-1, width)
        self.projections = search.project(self.rows)
        approximate = search.approximate_nearest(self.projections, quick=quick)
        bounds = search.distances(self.rows, approximate).view(n_images, per_image)
        farthest = torch.full((n_images,), -torch.inf, device=self.rows.device)
        self.worst = WorstPatch(
            patch=torch.full((n_images,), per_image, device=self.rows.device),
            distance=farthest,
            nearest=approximate.new_zeros((n_images, *approximate.shape[1:])),
            bounds=bounds,
            largest=farthest[:, None].repeat(1, k),
        )
        self.distances = torch.full_like(bounds, -torch.inf)  # of the patches that are settled
        self.unsettled = torch.ones_like(bounds, dtype=torch.bool)
        self._rule_out()

    def _rule_out(self) -> None:
        # Near ties are all searched: otherwise rounding, which depends on the other images, would decide which are.
        self.unsettled &= self._upper_bounds >= self.worst.largest[:, -1:].clamp_min(self.at_least)

    @property
    def _upper_bounds(self) -> Tensor:
        return self.worst.bounds * (1 + TIE_TOLERANCE)

    def _largest_unsettled(self, count: int) -> tuple[Tensor, Tensor]:
        """The image and the number of those unsettled patches that have the largest bounds, of each image."""
        count = min(count, self.unsettled.shape[1])
        patches = torch.where(self.unsettled, self._upper_bounds, -torch.inf).topk(count, dim=1).indices
        image_of, column = torch.nonzero(self.unsettled.gather(1, patches), as_tuple=True)
        return image_of, patches[image_of, column]

    def _rows_of(self, image_of: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        row_of = image_of * self.unsettled.shape[1] + patches
        return self.rows[row_of], self.projections[row_of]

    def lower(self, where: Tensor) -> None:
        """Bring the bounds of some patches, (n, p), closer to the distances."""
        image_of, patches = torch.nonzero(where, as_tuple=True)
        if len(patches):
            rows, projections = self._rows_of(image_of, patches)
            bounds = self.search.distances(rows, self.search.approximate_nearest(projections))
            self.worst.bounds[image_of, patches] = torch.minimum(self.worst.bounds[image_of, patches], bounds)
            self._rule_out()

    def lower_largest(self, count: int) -> None:
        """Bring the largest bounds of each image, of patches that are unsettled, nearly to the distances."""
        image_of, patches = self._largest_unsettled(count)
        if len(patches):
            bounds = self.worst.bounds[image_of, patches]
            closer = self.search.closer_bounds(*self._rows_of(image_of, patches), bounds)
            self.worst.bounds[image_of, patches] = closer
            self._rule_out()

    def settle(self, count: int) -> None:
        """Search those unsettled patches of each image exactly that have the largest bounds."""
        image_of, patches = self._largest_unsettled(count)
        if not len(patches):
            return
        bounds = self.worst.bounds[image_of, patches]
        distances, nearest = self.search.nearest(*self._rows_of(image_of, patches), bounds)
        self.unsettled[image_of, patches] = False
        self.worst.bounds[image_of, patches] = self.distances[image_of, patches] = distances
        _keep_better(self.worst, image_of, patches, distances, nearest)
        per_image = self.unsettled.shape[1]
        self.worst.largest[:, :per_image] = self.distances.topk(min(self.k, per_image), dim=1).values
        self._rule_out()


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
