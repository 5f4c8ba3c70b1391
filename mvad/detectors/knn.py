"""Nearest neighbours of whole images: the distance of an image to the good ones in a memory bank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass
from typer import Option

from mvad.calibration import one_per_group
from mvad.detectors.base import Detector, Extendable, LeaveOneOut, Nearest, Scores
from mvad.detectors.state import ArraySpec, State

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from typing_extensions import Self

    from mvad.search.memory_bank import MemoryBank


class KNN(LeaveOneOut, Extendable, Detector):
    """Mean Euclidean distance to the k nearest good images, in the features that vary most among them."""

    method: ClassVar[str] = "knn"
    feature: ClassVar[str] = "pooled"
    default_rule: ClassVar[str] = "sigma"
    has_bank: ClassVar[bool] = True

    @dataclass(frozen=True, kw_only=True)
    class Params(Detector.Params):
        """KNN and ViT-KNN"""

        neighbours: Annotated[
            int, Field(ge=1), Option(help="Number of neighbours k, capped at the number of good images.")
        ] = 50
        top_features: Annotated[
            int, Field(ge=0), Option(help="Number of features to keep, those that vary most among good images; 0: all.")
        ] = 500

    params: Params
    _columns: NDArray[np.int64] = np.empty(0, np.int64)
    _bank: MemoryBank | None = None

    @classmethod
    def check_state(cls, state: State, shape: Sequence[int] | None = None) -> None:
        super().check_state(state, shape)
        bank, columns = state.arrays["bank"], state.arrays["columns"]
        if bank.shape[1] != len(columns):
            raise ValueError(f"bank has {bank.shape[1]} features, and columns names {len(columns)}")
        if columns[0] < 0 or (columns[1:] <= columns[:-1]).any():
            raise ValueError("columns does not name features in ascending order")
        if shape is not None and columns[-1] >= shape[-1]:
            raise ValueError(f"columns names feature {columns[-1]}, and its backbone has {shape[-1]}")

    @classmethod
    def array_specs(cls, settings: dict[str, Any], shape: Sequence[int] | None) -> dict[str, ArraySpec]:
        return {"bank": ArraySpec("float32", (None, None)), "columns": ArraySpec("int64", (None,))}

    @classmethod
    def from_state(cls, state: State, device: str | torch.device = "cpu") -> Self:
        settings = {**state.settings, "top_features": state.settings["columns"]}
        return super().from_state(state._replace(settings=settings), device)

    def restore(self, state: State, device: str | torch.device) -> None:
        self._columns = state.arrays["columns"]
        self._fill_bank(state.arrays["bank"], device)

    @property
    def settings(self) -> dict[str, Any]:
        return {"neighbours": self.params.neighbours, "columns": self.params.top_features, "copies": self.copies}

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """``bank``: the kept features of the good images, (m, c) float32; ``columns``: which are kept, (c,) int64."""
        return {"bank": self.bank.vectors, "columns": self._columns}

    @property
    def bank(self) -> MemoryBank:
        return self._require_fitted(self._bank)

    def _fill_bank(self, vectors: NDArray[np.float32], device: str | torch.device) -> None:
        from mvad.search.memory_bank import MemoryBank

        self._bank = MemoryBank(vectors, device)

    def fit(self, features: Tensor) -> Self:
        """Fill the bank with all good images, and score each of them without itself.

        A single image, or group of them, gets no such score. Variants of an image are not scored, and are not its
        neighbours.
        ``features``: (n, channels) float32.
        """
        rows = features.cpu().numpy()
        deviations = rows.std(axis=0, dtype=np.float64)
        top_features = np.argsort(-deviations, kind="stable")[: self.params.top_features or None]
        self._columns = np.sort(top_features).astype(np.int64)
        self._fill_bank(np.ascontiguousarray(rows[:, self._columns]), features.device)
        self.chosen = np.arange(len(rows))
        self.loo_scores = self._leave_one_out()
        return self

    def extend(self, features: Tensor) -> Self:
        """Add images to the bank, with the same columns, and score all images again, each without itself."""
        rows = np.ascontiguousarray(features.cpu().numpy()[:, self._columns])
        self.chosen = np.concatenate([-1 - np.arange(len(self.bank)), np.arange(len(rows))])
        self._fill_bank(np.concatenate([self.bank.vectors, rows]), features.device)
        self.loo_scores = self._leave_one_out()
        return self

    def _leave_one_out(self) -> NDArray[np.float32]:
        """Score an image of each group by the bank's images of other groups alone: (n_groups,)."""
        queries = self.bank.tensor[:: self.copies].to(self.bank.device).contiguous()
        groups = np.arange(len(queries)) if self.groups is None else self.groups
        largest = int(np.bincount(groups).max()) * self.copies
        neighbours = min(self.params.neighbours, len(self.bank) - largest)
        if neighbours < 1:
            return np.empty(0, np.float32)
        distances, indices = self.bank.search(queries, neighbours + largest)
        is_own = groups[indices // self.copies] == groups[:, None]
        others_first = np.argsort(is_own, axis=1, kind="stable")[:, :neighbours]
        scores = np.take_along_axis(distances, others_first, axis=1).mean(axis=1, dtype=np.float64).astype(np.float32)
        return one_per_group(scores, groups, self.seed)

    def nearest(self, features: Tensor) -> Nearest:
        query = features[:, self._columns.tolist()].contiguous()
        return Nearest(int(self.bank.search(query, 1)[1][0, 0]))

    def score(self, features: Tensor) -> Scores:
        queries = features[:, self._columns.tolist()].contiguous()
        neighbours = self.params.neighbours
        image = [self.bank.search(query[None], neighbours)[0].mean(dtype=np.float64) for query in queries]
        return Scores(np.array(image, np.float32), None)


class ViTKNN(KNN):
    """KNN on the [CLS] token of a Vision Transformer."""

    method: ClassVar[str] = "vit-knn"
    needs_transformer: ClassVar[bool] = True
    default_backbone: ClassVar[str] = "vit_b_16"
