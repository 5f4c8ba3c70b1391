"""A memory bank of feature vectors, and nearest neighbours by comparing every query with every vector."""

import functools

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mvad.runtime.tensors import as_tensor

VECTORS_PER_CHUNK = 16_384
MAX_GPU_SHARE = 0.5  # a bank larger than this share of a GPU's free memory stays in main memory


class MemoryBank:
    """A read-only set of feature vectors to search, (m, d) float32, for queries and results on one device.

    The vectors are used in place, without a copy, on a CPU, and copied once to a GPU with enough free memory.
    """

    def __init__(self, vectors: NDArray[np.float32], device: str | torch.device = "cpu") -> None:
        self.vectors = vectors
        self.device = torch.device(device)
        # Vectors that stay in main memory are moved to the device as they are needed.
        fits = self.device.type != "cuda" or vectors.nbytes <= MAX_GPU_SHARE * torch.cuda.mem_get_info(self.device)[0]
        self.tensor = as_tensor(vectors, self.device if fits else "cpu")

    def __len__(self) -> int:
        return len(self.vectors)

    def rows(self, indices: Tensor) -> Tensor:
        """Copy some of the vectors, given by index, to the bank's device."""
        return self.tensor[indices.to(self.tensor.device)].to(self.device)

    @functools.cached_property
    def squared_lengths(self) -> Tensor:
        """Squared length of each vector: (m,) float32, on the bank's device."""
        chunks = [torch.linalg.vector_norm(rows, dim=1).square_() for rows in self.tensor.split(VECTORS_PER_CHUNK)]
        return torch.cat(chunks).to(self.device)

    def search(self, queries: Tensor, k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Find the k nearest vectors of each of (n, d) queries; k is capped at the size of the bank.

        Returns Euclidean distances, (n, k) float32, and indices, (n, k) int64. Candidates are ranked by the fast
        expanded form of the distance. The distances are recomputed from the differences, which keeps small ones
        accurate; so each row ascends, up to rounding.
        """
        k = min(k, len(self))
        if self.device.type == "cpu":
            rows = queries.numpy()
            indices = faiss.knn(rows, self.vectors, k)[1]
            distances = np.empty(indices.shape, np.float32)
            for column in range(k):
                distances[:, column] = np.linalg.norm(rows - self.vectors[indices[:, column]], axis=1)
            return distances, indices
        nearest = nearest_in_chunks(queries, self.tensor, self.squared_lengths, k)
        differences = queries[:, None, :] - self.rows(nearest)
        return torch.linalg.vector_norm(differences, dim=2).cpu().numpy(), nearest.cpu().numpy()


def nearest_in_chunks(
    queries: Tensor, vectors: Tensor, squared_lengths: Tensor, k: int, vectors_per_chunk: int = VECTORS_PER_CHUNK
) -> Tensor:
    """Find the k nearest of (m, d) vectors for each of (n, d) queries, chunk by chunk, as GPUs do: (n, k) int64.

    The vectors may be on another device than the queries and their ``squared_lengths``, (m,). k is at most m.
    """
    best_ranks = torch.empty((len(queries), 0), device=queries.device)
    best_indices = torch.empty((len(queries), 0), dtype=torch.int64, device=queries.device)
    for start in range(0, len(vectors), vectors_per_chunk):
        chunk = slice(start, start + vectors_per_chunk)
        ranks = torch.addmm(squared_lengths[chunk], queries, vectors[chunk].to(queries.device).T, alpha=-2)
        values, indices = torch.topk(ranks, min(k, ranks.shape[1]), dim=1, largest=False)
        best_ranks, best_indices = torch.cat([best_ranks, values], 1), torch.cat([best_indices, indices + start], 1)
        best_ranks, order = torch.topk(best_ranks, min(k, best_ranks.shape[1]), dim=1, largest=False)
        best_indices = torch.gather(best_indices, 1, order)
    return best_indices
