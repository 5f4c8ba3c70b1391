"""Exact nearest neighbours in a memory bank."""

from __future__ import annotations

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mvad.tensors import as_tensor

CENTRES = 16_384
ROUNDING = 1e-5  # of squared lengths: above what the expanded form of a squared distance can be wrong by
PAIRS = 1 << 23  # of queries and vectors that are compared at a time


class MemoryBank:
    """A read-only set of feature vectors to search.

    Parameters
    ----------
    vectors : (m, d) float32
        Used where it lies, without a copy, on a CPU; copied once to a GPU.
    """

    def __init__(self, vectors: NDArray[np.float32], device: str | torch.device = "cpu") -> None:
        self.vectors = vectors
        self.device = torch.device(device)
        self.tensor = as_tensor(vectors, self.device)
        self._norms = torch.linalg.vector_norm(self.tensor, dim=1).square_()

    def __len__(self) -> int:
        return len(self.vectors)

    def nearest(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest vector of each of a few queries; the first where several are equally near.

        All vectors that may be nearest, given the rounding of the fast expanded form of the distance, are compared by
        their differences, so that the answer does not depend on what other queries come with one.

        Parameters
        ----------
        queries : (n, d) float32 tensor on the bank's device

        Returns
        -------
        distances : (n,) float32
        indices : (n,) int64
        """
        slack = ROUNDING * (torch.linalg.vector_norm(queries, dim=1).square_() + self._norms.max())
        distances, indices = [], []
        for part, within in zip(
            queries.split(max(1, PAIRS // len(self))), slack.split(max(1, PAIRS // len(self))), strict=True
        ):
            ranks = torch.addmm(self._norms, part, self.tensor.T, alpha=-2)
            close = ranks <= (ranks.amin(dim=1) + within)[:, None]
            for query, row in zip(part, close, strict=True):
                candidates = torch.nonzero(row).flatten()
                between = torch.linalg.vector_norm(self.tensor[candidates] - query, dim=1)
                first = between.argmin()
                distances.append(between[first])
                indices.append(candidates[first])
        return torch.stack(distances), torch.stack(indices)

    def search(self, queries: Tensor, k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The k nearest vectors of each query.

        Candidates are ranked by the fast expanded form of the distance; the distances returned are computed anew from
        the differences, which keeps small ones accurate.

        Parameters
        ----------
        queries : (n, d) float32 tensor on the bank's device
        k
            Cut to the size of the bank.

        Returns
        -------
        distances : (n, k) float32
            Euclidean, each row ascending up to rounding.
        indices : (n, k) int64
        """
        k = min(k, len(self))
        if self.device.type == "cpu":
            rows = queries.numpy()
            indices = faiss.knn(rows, self.vectors, k)[1]
            distances = np.empty(indices.shape, np.float32)
            for column in range(k):
                distances[:, column] = np.linalg.norm(rows - self.vectors[indices[:, column]], axis=1)
            return distances, indices
        found = nearest_blocked(queries, self.tensor, self._norms, k)
        differences = queries[:, None, :] - self.tensor[found]
        return torch.linalg.vector_norm(differences, dim=2).cpu().numpy(), found.cpu().numpy()


def nearest_blocked(queries: Tensor, centres: Tensor, norms: Tensor, k: int) -> Tensor:
    """Indices of the k nearest centres, (n, k) int64, a stretch of centres at a time: the search of GPUs.

    ``norms`` are the squared lengths of the centres.
    """
    best = torch.empty((len(queries), 0), device=queries.device)
    where = torch.empty((len(queries), 0), dtype=torch.int64, device=queries.device)
    for start in range(0, len(centres), CENTRES):
        stretch = slice(start, start + CENTRES)
        ranks = torch.addmm(norms[stretch], queries, centres[stretch].T, alpha=-2)
        values, places = torch.topk(ranks, min(k, ranks.shape[1]), dim=1, largest=False)
        best, where = torch.cat([best, values], 1), torch.cat([where, places + start], 1)
        best, order = torch.topk(best, min(k, best.shape[1]), dim=1, largest=False)
        where = torch.gather(where, 1, order)
    return where
