"""Exact nearest neighbours in a memory bank, by comparing few of its vectors in full.

The distance between two points in a subspace never exceeds their full distance. So if a bank vector is farther from the
query in the first `N_AXES` principal axes than some candidate is in full, it cannot be the nearest; only the remaining
vectors are compared in full. The candidate is an approximate nearest neighbour in the same axes. On a CPU an inverted
file finds it, whose cells are centred on the first vectors that greedy k-centre chose, since those cover the bank. The
approximation never decides: it only gives an upper bound, and the vectors within it are compared in double precision.
"""

from __future__ import annotations

import copy

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mvad.search.memory_bank import MemoryBank

N_AXES = 48
PCA_SAMPLE = 512  # the axes are computed from this many vectors of the bank
IVF_CELLS_PER_SQRT_N = 2.0  # cells of the inverted file, per square root of the bank's size
NPROBE = 1  # cells of the inverted file that a query visits for a bound
NPROBE_TO_SEARCH = 2  # and before an exact search, where a closer bound leaves fewer vectors to compare
QUICK_VECTORS = 64  # of one cell, that a query is compared with at first: in greedy order, they cover the cell
CLOSER_NPROBE, CLOSER_NEIGHBOURS = 8, 4  # cells visited, and vectors compared in full, for a closer neighbour
EXPANSION_ERROR = 1e-5  # above the error of an expanded squared distance, relative to the squared lengths
TIE_TOLERANCE = 1e-6  # above the rounding error of a distance, relative to it
PAIRS_PER_CHUNK = 1 << 22  # pairs of a query and a vector that are compared in the principal axes at a time
FLOATS_PER_CHUNK = 1 << 18  # floats of vectors that are compared in full at a time, so that they stay in cache
GPU_CHUNK_FACTOR = 1 << 5  # chunks are larger on a GPU, where each kernel launch costs time


def principal_axes(vectors: Tensor, count: int) -> Tensor:
    """Compute orthonormal directions in which vectors vary most: (count, d), or fewer if d or n is smaller.

    They are computed from the inner products of the vectors, (n, d), which is fast for a few long vectors.
    """
    centred = vectors - vectors.mean(dim=0)
    weights = torch.linalg.eigh(centred @ centred.T).eigenvectors.flip(1)[:, : min(count, vectors.shape[1])]
    # Directions with almost no variance are not orthogonal yet, and the bound holds for orthogonal ones only.
    return torch.linalg.qr(centred.T @ weights).Q.T.contiguous()


class ExactSearch:
    """Exact search of a memory bank, ideally with its vectors in the order that greedy k-centre chose them.

    Parameters
    ----------
    n_axes
        Principal axes in which vectors are ruled out.
    inverted_file
        Whether an inverted file finds approximate neighbours, instead of a comparison with every vector in the
        principal axes. Default: on a CPU only.
    pairs_per_chunk, floats_per_chunk
        Sizes of intermediate results on a CPU; `GPU_CHUNK_FACTOR` times as large on a GPU.
    """

    def __init__(
        self,
        bank: MemoryBank,
        *,
        n_axes: int = N_AXES,
        inverted_file: bool | None = None,
        pairs_per_chunk: int = PAIRS_PER_CHUNK,
        floats_per_chunk: int = FLOATS_PER_CHUNK,
    ) -> None:
        self.bank = bank
        on_cpu = bank.device.type == "cpu"
        sample = bank.rows(torch.arange(min(PCA_SAMPLE, len(bank))))
        self._axes = principal_axes(sample, n_axes)
        self._origin = self._axes @ sample.mean(dim=0)
        factor = 1 if on_cpu else GPU_CHUNK_FACTOR
        self._rows_per_chunk = max(1, factor * floats_per_chunk // bank.vectors.shape[1])
        self._queries_per_chunk = max(1, factor * pairs_per_chunk // len(bank))
        chunks = [self.project(rows.to(bank.device)) for rows in bank.tensor.split(self._rows_per_chunk)]
        self._projections = torch.cat(chunks)
        self._squared_lengths = self._projections.square().sum(dim=1)  # of the projections
        self._max_squared_length = bank.squared_lengths.max()  # of the vectors
        self.n_vectors, self._first = len(bank), 0  # that can be found, and the first of them
        self._selector: faiss.IDSelector | None = None  # of those, if they are not all
        self._index = self._inverted_file() if (on_cpu if inverted_file is None else inverted_file) else None

    def _inverted_file(self) -> faiss.IndexIVFScalarQuantizer:
        projections = self._projections.numpy()
        n_cells = min(len(projections), max(1, round(IVF_CELLS_PER_SQRT_N * len(projections) ** 0.5)))
        centres = faiss.IndexFlatL2(projections.shape[1])
        centres.add(projections[:n_cells])
        half = faiss.ScalarQuantizer.QT_fp16  # precise enough for an approximation, in half the memory
        index = faiss.IndexIVFScalarQuantizer(centres, projections.shape[1], n_cells, half, faiss.METRIC_L2, False)
        index.is_trained = True  # because the centres are given
        index.add(projections)
        return index

    @property
    def n_axes(self) -> int:
        """Number of principal axes."""
        return len(self._axes)

    @property
    def can_be_quick(self) -> bool:
        """Whether a quick look (`approximate_nearest`) takes less time than a closer one: with an inverted file."""
        return self._index is not None

    def project(self, rows: Tensor) -> Tensor:
        """Project rows onto the principal axes: (n, d) to (n, n_axes or fewer), on the bank's device."""
        return (rows @ self._axes.T).sub_(self._origin)

    def approximate_nearest(self, projections: Tensor, *, quick: bool = False) -> Tensor:
        """Find a vector that is likely the nearest of each projected row, or quickly one that is near: (n,) int64."""
        return self._approximate(projections, *((1, QUICK_VECTORS) if quick else (NPROBE,)))

    def _approximate(self, projections: Tensor, n_cells: int, max_vectors: int = 0) -> Tensor:
        if self._index is not None:
            nearest = self._search_cells(projections, 1, n_cells, max_vectors)[:, 0]
            return nearest.masked_fill_(nearest < 0, self._first)  # if all visited cells are empty, any gives a bound
        return torch.cat([self._ranks(chunk).argmin(dim=1) for chunk in projections.split(self._queries_per_chunk)])

    def closer_bounds(self, rows: Tensor, projections: Tensor, bounds: Tensor) -> Tensor:
        """Lower upper bounds of the distances of some rows to the bank, (n,), nearly to the distances themselves.

        Several approximate neighbours of each row are compared in full; without an inverted file, nothing changes.
        """
        if self._index is None or not len(rows):
            return bounds
        k = min(CLOSER_NEIGHBOURS, self.n_vectors)
        found = self._search_cells(projections, k, CLOSER_NPROBE)
        nearest = torch.where(found < 0, found[:, :1], found)
        nearest.masked_fill_(nearest < 0, self._first)
        row_of = torch.arange(len(rows)).repeat_interleave(k)
        return torch.minimum(bounds, self.distances(rows, nearest.flatten(), row_of).view(-1, k).amin(dim=1))

    def _search_cells(self, projections: Tensor, k: int, n_cells: int, max_vectors: int = 0) -> Tensor:
        """Indices of k vectors in the nearest cells for each projected row, nearest first, -1 if they are fewer.

        A row is compared with at most ``max_vectors`` of the cells, the first ones; 0: with all.
        """
        assert self._index is not None
        parameters = faiss.SearchParametersIVF(
            nprobe=n_cells,
            max_codes=max_vectors,
            sel=self._selector,  # type: ignore[call-arg]
        )
        return torch.from_numpy(self._index.search(projections.numpy(), k, params=parameters)[1])

    def without(self, left_out: NDArray[np.bool_]) -> ExactSearch:
        """A search of the same bank that finds none of some vectors, (m,), and shares all else with this one.

        ValueError if no vector is left.
        """
        if left_out.all():
            raise ValueError("no vector of the bank is left")
        others, on_device = copy.copy(self), torch.from_numpy(left_out).to(self._squared_lengths.device)
        others.n_vectors, others._first = int((~left_out).sum()), int(left_out.argmin())
        others._squared_lengths = self._squared_lengths.masked_fill(on_device, torch.inf)  # ranks them last
        if self._index is not None:
            others._selector = faiss.IDSelectorNot(faiss.IDSelectorBatch(np.flatnonzero(left_out)))
        return others

    def _ranks(self, projections: Tensor) -> Tensor:
        """Squared distances in the axes to each vector of the bank, minus the row's own squared length: (n, m)."""
        return torch.addmm(self._squared_lengths, projections, self._projections.T, alpha=-2)

    def distances(self, rows: Tensor, indices: Tensor, row_of: Tensor | None = None) -> Tensor:
        """Compute the distance of each row to one vector of the bank, given by index: (n,) float32.

        With ``row_of``, (n,) int64, it is that of the row with this number.
        """
        differences = (
            self.bank.rows(vectors).sub_(part if row_of is None else rows[part])
            for part, vectors in self._pair_chunks(rows if row_of is None else row_of, indices)
        )
        return torch.cat([torch.linalg.vector_norm(difference, dim=1) for difference in differences])

    def nearest(
        self, rows: Tensor, projections: Tensor | None = None, upper_bounds: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Find the nearest vector of each of (n, d) rows: its distance, (n,) float32, and its index, (n,) int64.

        It is the first one, if several are equally near. The result for a row does not depend on the other rows.
        ``projections`` are those of the rows by `project`; ``upper_bounds`` are the distance of each row to any one
        vector of the bank. Both are computed if not given.
        """
        projections = self.project(rows) if projections is None else projections
        if upper_bounds is None:
            upper_bounds = self.distances(rows, self._approximate(projections, NPROBE_TO_SEARCH))
        columns = (rows, projections, upper_bounds)
        chunks = [
            self._nearest(*chunk)
            for chunk in zip(*(column.split(self._queries_per_chunk) for column in columns), strict=True)
        ]
        distances, indices = zip(*chunks, strict=True)
        return torch.cat(distances), torch.cat(indices)

    def _nearest(self, rows: Tensor, projections: Tensor, upper_bounds: Tensor) -> tuple[Tensor, Tensor]:
        """Find the nearest vectors in three steps: rule out in the axes, compare in full, settle near ties exactly."""
        rank_bound = self._rank_bound(rows, projections, upper_bounds)
        row_of, indices = torch.nonzero(self._ranks(projections) <= rank_bound[:, None]).unbind(1)
        distances = self.distances(rows, indices, row_of)
        smallest = _min_by_row(distances, row_of, len(rows))
        (close,) = torch.nonzero(distances <= smallest[row_of] * (1 + TIE_TOLERANCE), as_tuple=True)
        row_of, indices = row_of[close], indices[close]
        exact = self._exact_distances(rows, row_of, indices)
        nearest = _min_by_row(exact, row_of, len(rows))
        (ties,) = torch.nonzero(exact == nearest[row_of], as_tuple=True)
        return nearest.float(), _min_by_row(indices[ties], row_of[ties], len(rows))

    def _rank_bound(self, rows: Tensor, projections: Tensor, upper_bounds: Tensor) -> Tensor:
        """Bound the rank of each row's nearest vector: those ranked higher are farther than the upper bound. (n,)"""
        slack = EXPANSION_ERROR * (torch.linalg.vector_norm(rows, dim=1).square_() + self._max_squared_length)
        return upper_bounds.square() - projections.square().sum(dim=1) + slack

    def _exact_distances(self, rows: Tensor, row_of: Tensor, indices: Tensor) -> Tensor:
        """Compute distances of pairs of a row and a vector in double precision: (pairs,) float64."""
        differences = (
            rows[row_numbers].double() - self.bank.rows(vectors).double()
            for row_numbers, vectors in self._pair_chunks(row_of, indices)
        )
        return torch.cat([difference.square_().sum(dim=1).sqrt_() for difference in differences])

    def _pair_chunks(self, rows: Tensor, indices: Tensor) -> zip[tuple[Tensor, Tensor]]:
        return zip(rows.split(self._rows_per_chunk), indices.split(self._rows_per_chunk), strict=True)

    def bank_neighbours(self, indices: Tensor, k: int) -> NDArray[np.int64]:
        """Find the k vectors of the bank nearest to each of some of its own, given by index: (n,) to (n, k) int64.

        Each vector is the first of its own neighbours; k is capped at the size of the bank.
        """
        k = min(k, self.n_vectors)
        rows, projections = self.bank.rows(indices), self._projections[indices]
        ranks = self._ranks(projections)
        approximate = ranks.topk(k, dim=1, largest=False).indices
        row_of = torch.arange(len(rows), device=rows.device).repeat_interleave(k)
        kth_distances = self._exact_distances(rows, row_of, approximate.flatten()).view(-1, k).amax(dim=1).float()
        rank_bound = self._rank_bound(rows, projections, kth_distances * (1 + TIE_TOLERANCE))
        neighbours = np.empty((len(rows), k), np.int64)
        for row, index in enumerate(indices.tolist()):
            (close,) = torch.nonzero(ranks[row] <= rank_bound[row], as_tuple=True)
            distances = self._exact_distances(rows[row : row + 1], torch.zeros_like(close), close).cpu().numpy()
            candidates = close.cpu().numpy()
            order = np.lexsort((candidates, candidates != index, distances))
            neighbours[row] = candidates[order[:k]]
        return neighbours


def _min_by_row(values: Tensor, row_of: Tensor, n_rows: int) -> Tensor:
    """Compute the minimum of each row's values; every row has at least one."""
    largest = torch.finfo(values.dtype).max if values.is_floating_point() else torch.iinfo(values.dtype).max
    return values.new_full((n_rows,), largest).scatter_reduce_(0, row_of, values, "amin")
