"""Whitening of patch features: they are centred, and decorrelated by the training patches' regularised covariance.

What a patch becomes must not depend on the patches next to it, and sums must not depend on the number of threads; but
matrix products are rounded differently for each shape. So factors are brought to whole numbers that are small enough
for every sum of their products to be a whole number below 2^53, which float64 holds exactly, in whatever order the
library adds.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mvad.runtime.tensors import as_tensor

EXACT_BITS = 53  # whole numbers of so many bits are exact in float64
SUM_ROWS, SUM_BITS = 32, 24  # patches that are summed at a time, and bits of their features
FEATURE_BITS = 24  # of a patch that is whitened: all that float32 has
MIN_VARIANCE = 1e-12  # relative to the mean square: features that vary less are constant but for rounding


class PatchSums(NamedTuple):
    """Sums over some patches, from which their mean and covariance follow; those of two sets add up."""

    n_patches: int
    total: NDArray[np.float64]  # (d,)
    products: NDArray[np.float64]  # (d, d): sum of the outer products of each patch with itself

    def plus(self, other: PatchSums) -> PatchSums:
        return PatchSums(self.n_patches + other.n_patches, self.total + other.total, self.products + other.products)


def patch_sums(patches: Tensor) -> PatchSums:
    """Sum (n, d) patches and their outer products: the same on any device, with any number of threads.

    Features are rounded to `SUM_BITS` bits, each relative to its largest value in `SUM_ROWS` patches.
    """
    width = patches.shape[1]
    total, products = (torch.zeros(shape, dtype=torch.float64, device=patches.device) for shape in (width, 2 * [width]))
    buffer = torch.empty_like(products)
    for rows in patches.split(SUM_ROWS):
        values = rows.double()
        unit = _power_above(values.abs().amax(dim=0)) / 2**SUM_BITS
        values.div_(unit).round_().mul_(unit)  # whole numbers of units, whose sums are exact
        total += values.sum(dim=0)
        products += torch.mm(values.T, values, out=buffer)
    return PatchSums(len(patches), total.cpu().numpy(), products.cpu().numpy())


class Whitening:
    """Centres patches, and multiplies them by a matrix, in float64.

    Parameters
    ----------
    mean : (d,) float64
    matrix : (d, d) float64
    """

    def __init__(self, mean: NDArray[np.float64], matrix: NDArray[np.float64], device: str | torch.device) -> None:
        self.mean, self.matrix = mean, matrix
        self._mean = as_tensor(mean, device)
        bits = EXACT_BITS - FEATURE_BITS - math.ceil(math.log2(len(matrix)))
        values = as_tensor(matrix, device)
        unit = _power_above(values.abs().amax()) / 2**bits
        upper = (values / unit).round_()
        lower = ((values / unit - upper) * 2**bits).round_()  # twice the bits in two products
        self._factors, self._unit, self._lower = torch.cat([upper, lower], dim=1), unit, 2.0**-bits

    @classmethod
    def learn(cls, sums: Sequence[PatchSums], regularisation: float, device: str | torch.device) -> Whitening:
        """Whiten by the mean and covariance C of patches, given by sums over parts of them, in this order.

        The matrix is (C + r m I)^(-1/2), r the regularisation and m the mean eigenvalue of C. Patches that are all
        alike are only centred.
        """
        count, total, products = functools.reduce(PatchSums.plus, sums)
        mean, squares = total / count, products / count
        covariance = torch.from_numpy(squares - np.outer(mean, mean))
        variance = float(covariance.trace()) / len(mean)
        if variance <= MIN_VARIANCE * float(np.trace(squares)) / len(mean):
            return cls(mean, np.eye(len(mean)), device)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # with more threads, sums are rounded differently
        try:
            values, vectors = torch.linalg.eigh(covariance)
            scales = (values.clamp_min(0) + regularisation * variance).rsqrt()
            matrix = (vectors * scales) @ vectors.T
        finally:
            torch.set_num_threads(threads)
        return cls(mean, matrix.numpy(), device)

    def __call__(self, rows: Tensor) -> Tensor:
        """Whiten (n, d) float32 patches: float64; each is rounded to `FEATURE_BITS` bits, relative to its largest."""
        centred = rows.double().sub_(self._mean)
        unit = _power_above(centred.abs().amax(dim=1, keepdim=True)) / 2**FEATURE_BITS
        upper, lower = (centred.div_(unit).round_() @ self._factors).chunk(2, dim=1)
        return (upper + lower * self._lower).mul_(unit * self._unit)


def _power_above(values: Tensor) -> Tensor:
    """The least power of two above each of some float64 values, none negative."""
    values = values.clamp_min(torch.finfo(torch.float32).tiny)
    return values / torch.frexp(values).mantissa
