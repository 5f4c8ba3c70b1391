"""Nearest neighbours in a memory bank, by comparing every query with every vector."""

from __future__ import annotations

import functools

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mvad.runtime.tensors import as_tensor

CENTRES = 16_384
GPU_SHARE = 0.5  # of a GPU's free memory that a bank may take; a larger one stays in main memory


class MemoryBank:
    """A read-only set of feature vectors to search.

    Parameters
    ----------
    vectors : (m, d) float32
        Used where it lies, without a copy, on a CPU; copied once to a GPU that has room for it.
    device
        Of queries and answers.
    """

    def __init__(self, vectors: NDArray[np.float32], device: str | torch.device = "cpu") -> None:
        self.vectors = vectors
        self.device = torch.device(device)
        # Vectors that stay behind are moved as they are needed.
        self.tensor = as_tensor(vectors, self.device if _fits(vectors.nbytes, self.device) else "cpu")

    def __len__(self) -> int:
        return len(self.vectors)

    def rows(self, indices: Tensor) -> Tensor:
        """A copy of some of the vectors, on the bank's device."""
        return self.tensor[indices.to(self.tensor.device)].to(self.device)

    @functools.cached_property
    def squared_lengths(self) -> Tensor:
        """(m,) float32, on the bank's device."""
        parts = [torch.linalg.vector_norm(rows, dim=1).square_() for rows in self.tensor.split(CENTRES)]
        return torch.cat(parts).to(self.device)

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
        found = nearest_blocked(queries, self.tensor, self.squared_lengths, k)
        differences = queries[:, None, :] - self.rows(found)
        return torch.linalg.vector_norm(differences, dim=2).cpu().numpy(), found.cpu().numpy()


def _fits(size: int, device: torch.device) -> bool:
    return device.type != "cuda" or size <= GPU_SHARE * torch.cuda.mem_get_info(device)[0]


def nearest_blocked(queries: Tensor, centres: Tensor, norms: Tensor, k: int) -> Tensor:
    """Indices of the k nearest centres, (n, k) int64, a stretch of centres at a time: the search of GPUs.

    ``norms`` are the squared lengths of the centres, which may lie on another device than the queries.
    """
    best = torch.empty((len(queries), 0), device=queries.device)
    where = torch.empty((len(queries), 0), dtype=torch.int64, device=queries.device)
    for start in range(0, len(centres), CENTRES):
        stretch = slice(start, start + CENTRES)
        ranks = torch.addmm(norms[stretch], queries, centres[stretch].to(queries.device).T, alpha=-2)
        values, places = torch.topk(ranks, min(k, ranks.shape[1]), dim=1, largest=False)
        best, where = torch.cat([best, values], 1), torch.cat([where, places + start], 1)
        best, order = torch.topk(best, min(k, best.shape[1]), dim=1, largest=False)
        where = torch.gather(where, 1, order)
    return where
