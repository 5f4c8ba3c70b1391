"""Exact nearest neighbours in a memory bank, most of which is never looked at.

The distance of two points along a few orthogonal axes is at most the distance they have. So a vector of the bank that
is farther from a query along `AXES` principal axes than any one vector is in all dimensions is not the nearest, and
only the others are compared in full. Which vector to begin with is guessed along the same axes, on a CPU by an inverted
file whose cells are centred on the first vectors that greedy chose, which cover the bank. A guess never decides: it
gives a bound, and what the bound leaves open is settled in double precision.
"""

from __future__ import annotations

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mvad.search.memory_bank import MemoryBank

AXES = 48
SAMPLE = 512  # vectors of the bank that the axes are found from
CELLS = 2.0  # times the square root of the bank's size
PROBED = 2  # cells of a guess
ROUNDING = 1e-5  # of squared lengths: above what the expanded form of a squared distance can be wrong by
TIES = 1e-6  # of a distance: above what rounding makes of a sum of squares
PAIRS = 1 << 22  # of queries and vectors that are compared along the axes at a time
NUMBERS = 1 << 18  # of vectors that are compared in full at a time: they stay in a processor's cache
GPU_FACTOR = 1 << 5  # times as many on a GPU, which has no such cache, and takes a while to be told what to do


def principal_axes(vectors: Tensor, count: int) -> Tensor:
    """Orthonormal directions in which vectors vary most: (count, d), fewer where d or their number is less.

    Found from the inner products of the vectors, which is fast for a few long ones.

    Parameters
    ----------
    vectors : (n, d) float32
    """
    centred = vectors - vectors.mean(dim=0)
    weights = torch.linalg.eigh(centred @ centred.T).eigenvectors.flip(1)[:, : min(count, vectors.shape[1])]
    # Where there is next to no variance, directions found so are not orthogonal; a bound needs that they are.
    return torch.linalg.qr(centred.T @ weights).Q.T.contiguous()


class ExactSearch:
    """Exact search of a bank.

    Parameters
    ----------
    bank
        Its vectors in the order greedy chose them; any other order costs time alone.
    """

    def __init__(self, bank: MemoryBank) -> None:
        self.bank = bank
        sample = bank.rows(torch.arange(min(SAMPLE, len(bank))))
        self._axes = principal_axes(sample, AXES)
        self._origin = self._axes @ sample.mean(dim=0)
        factor = 1 if bank.device.type == "cpu" else GPU_FACTOR
        self._rows = max(1, factor * NUMBERS // bank.vectors.shape[1])
        self._queries = max(1, factor * PAIRS // len(bank))
        parts = [self.along_axes(rows.to(bank.device)) for rows in bank.tensor.split(self._rows)]
        self._places = torch.cat(parts)
        self._lengths = self._places.square().sum(dim=1)
        self._largest = bank.squared_lengths.max()
        self._cells = self._inverted_file() if bank.device.type == "cpu" else None

    def _inverted_file(self) -> faiss.IndexIVFScalarQuantizer:
        places = self._places.numpy()
        cells = min(len(places), max(1, round(CELLS * len(places) ** 0.5)))
        centres = faiss.IndexFlatL2(places.shape[1])
        centres.add(places[:cells])
        half = faiss.ScalarQuantizer.QT_fp16  # enough for a guess, in half the memory
        found = faiss.IndexIVFScalarQuantizer(centres, places.shape[1], cells, half, faiss.METRIC_L2, False)
        found.is_trained = True  # the centres are given
        found.add(places)
        found.nprobe = PROBED
        return found

    def along_axes(self, rows: Tensor) -> Tensor:
        """Where rows lie along the axes: (n, d) to (n, at most `AXES`), on the bank's device."""
        return (rows @ self._axes.T).sub_(self._origin)

    def guess(self, places: Tensor) -> Tensor:
        """A vector that is likely to be the nearest, for each place along the axes: (n,) int64."""
        if self._cells is not None:
            found = torch.from_numpy(self._cells.search(places.numpy(), 1)[1][:, 0])
            return found.clamp_min_(0)  # the cells that were looked into may be empty
        return torch.cat([self._ranks(part).argmin(dim=1) for part in places.split(self._queries)])

    def _ranks(self, places: Tensor) -> Tensor:
        """Squared distances along the axes from each vector of the bank, less the squared length of the place."""
        return torch.addmm(self._lengths, places, self._places.T, alpha=-2)

    def distances(self, rows: Tensor, vectors: Tensor) -> Tensor:
        """Distance of each row to one vector of the bank, given by number: (n,) float32."""
        found = [
            torch.linalg.vector_norm(self.bank.rows(numbers).sub_(part), dim=1)
            for part, numbers in zip(rows.split(self._rows), vectors.split(self._rows), strict=True)
        ]
        return torch.cat(found) if found else rows.new_empty(0)

    def nearest(
        self, rows: Tensor, places: Tensor | None = None, bounds: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The nearest vector of each row; the first where several are equally near.

        The answer does not depend on what other rows come with one.

        Parameters
        ----------
        rows : (n, d) float32 on the bank's device
        places, bounds
            `along_axes` of the rows, and the distance of each to any one vector of the bank, if they are known.

        Returns
        -------
        distances : (n,) float32
        indices : (n,) int64
        """
        places = self.along_axes(rows) if places is None else places
        if bounds is None:
            bounds = self.distances(rows, self.guess(places))
        parts = zip(*(column.split(self._queries) for column in (rows, places, bounds)), strict=True)
        found = [self._nearest(*part) for part in parts]
        distances, indices = zip(*found, strict=True) if found else ((rows.new_empty(0),), (places.new_empty(0),))
        return torch.cat(distances), torch.cat(indices).long()

    def _nearest(self, rows: Tensor, places: Tensor, bounds: Tensor) -> tuple[Tensor, Tensor]:
        of, vectors = torch.nonzero(self._ranks(places) <= self._within(rows, places, bounds)[:, None]).unbind(1)
        between = torch.cat(
            [
                torch.linalg.vector_norm(self.bank.rows(numbers).sub_(rows[part]), dim=1)
                for part, numbers in zip(of.split(self._rows), vectors.split(self._rows), strict=True)
            ]
        )
        least = _least(between, of, len(rows))
        (close,) = torch.nonzero(between <= least[of] * (1 + TIES), as_tuple=True)
        of, vectors = of[close], vectors[close]
        exact = self._exact(rows, of, vectors)
        distances = _least(exact, of, len(rows))
        (ties,) = torch.nonzero(exact == distances[of], as_tuple=True)
        return distances.float(), _least(vectors[ties], of[ties], len(rows))

    def _within(self, rows: Tensor, places: Tensor, bounds: Tensor) -> Tensor:
        """The rank above which a vector of the bank is farther from a row than the row's bound: (n,)."""
        slack = ROUNDING * (torch.linalg.vector_norm(rows, dim=1).square_() + self._largest)
        return bounds.square() - places.square().sum(dim=1) + slack

    def _exact(self, rows: Tensor, of: Tensor, vectors: Tensor) -> Tensor:
        parts = zip(of.split(self._rows), vectors.split(self._rows), strict=True)
        differences = (rows[part].double() - self.bank.rows(numbers).double() for part, numbers in parts)
        return torch.cat([difference.square_().sum(dim=1).sqrt_() for difference in differences])

    def around(self, vectors: Tensor, k: int) -> NDArray[np.int64]:
        """The k vectors of the bank nearest to each of some of its vectors, that one first: (n, k) int64.

        Parameters
        ----------
        vectors : (n,) int64
            Numbers in the bank.
        k
            Cut to the size of the bank.
        """
        k = min(k, len(self.bank))
        rows, places = self.bank.rows(vectors), self._places[vectors]
        ranks = self._ranks(places)
        likely = ranks.topk(k, dim=1, largest=False).indices
        of = torch.arange(len(rows), device=rows.device)
        far = self._exact(rows, of.repeat_interleave(k), likely.flatten()).view(-1, k).amax(dim=1).float()
        within = self._within(rows, places, far * (1 + TIES))
        found = np.empty((len(rows), k), np.int64)
        for number, own in enumerate(vectors.tolist()):
            (close,) = torch.nonzero(ranks[number] <= within[number], as_tuple=True)
            between = self._exact(rows[number : number + 1], torch.zeros_like(close), close).cpu().numpy()
            candidates = close.cpu().numpy()
            found[number] = candidates[np.lexsort((candidates, candidates != own, between))[:k]]
        return found


def _least(values: Tensor, of: Tensor, count: int) -> Tensor:
    """The least of the values of each of ``count`` rows; every row has some."""
    highest = torch.finfo(values.dtype).max if values.is_floating_point() else torch.iinfo(values.dtype).max
    return values.new_full((count,), highest).scatter_reduce_(0, of, values, "amin")
