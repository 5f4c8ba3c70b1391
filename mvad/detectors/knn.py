"""Nearest neighbours of whole images: how far one is from the good ones in a memory bank."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mvad.detectors.base import Detector, Scores
from mvad.options import FitOptions
from mvad.search.memory_bank import MemoryBank


class KNN(Detector):
    """Mean Euclidean distance to the k nearest good images, in the features that vary most among them.

    Parameters
    ----------
    neighbours
        k, cut to the size of the bank.
    columns
        How many features are kept: those with the largest standard deviation over the bank; 0: all.
    copies
        Rows of the bank that are one image and its variants.
    """

    method: ClassVar[str] = "knn"
    feature: ClassVar[str] = "pooled"
    default_rule: ClassVar[str] = "sigma"
    scores_by_loo: ClassVar[bool] = True
    extends: ClassVar[bool] = True

    def __init__(self, neighbours: int = 50, columns: int = 500, copies: int = 1) -> None:
        self.neighbours, self.columns, self.copies = neighbours, columns, copies
        self._kept = np.empty(0, np.int64)
        self._bank: MemoryBank | None = None

    @classmethod
    def from_options(cls, options: FitOptions) -> KNN:
        return cls(options.neighbours, options.top_features, options.copies)

    @classmethod
    def from_state(
        cls, settings: dict[str, Any], arrays: dict[str, NDArray[Any]], device: str | torch.device = "cpu"
    ) -> KNN:
        detector = cls(settings["neighbours"], settings["columns"], settings["copies"])
        detector._kept = arrays["columns"]
        detector._bank = MemoryBank(arrays["bank"], device)
        return detector

    @property
    def settings(self) -> dict[str, Any]:
        return {"neighbours": self.neighbours, "columns": self.columns, "copies": self.copies}

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        return {"bank": self.bank.vectors, "columns": self._kept}

    @property
    def bank(self) -> MemoryBank:
        if self._bank is None:
            raise RuntimeError(f"this {type(self).__name__} is not fitted; call fit first")
        return self._bank

    def fit(self, features: Tensor) -> KNN:
        """Fill the bank with all good images, and score each of them without itself.

        A single image has no score of its own; variants of an image are not scored, nor are they its neighbours.

        Parameters
        ----------
        features : (n, channels) float32
        """
        rows = features.cpu().numpy()
        spread = rows.std(axis=0, dtype=np.float64)
        kept = np.argsort(-spread, kind="stable")[: self.columns or None]
        self._kept = np.sort(kept).astype(np.int64)
        self._bank = MemoryBank(np.ascontiguousarray(rows[:, self._kept]), features.device)
        self.loo_scores = self._loo_scores() if len(rows) > self.copies else np.empty(0, np.float32)
        return self

    def extend(self, features: Tensor) -> KNN:
        """Put more images into the bank, with the same columns; all images are scored anew, each without itself.

        Parameters
        ----------
        features : (n, channels) float32
        """
        rows = np.ascontiguousarray(features.cpu().numpy()[:, self._kept])
        self._bank = MemoryBank(np.concatenate([self.bank.vectors, rows]), features.device)
        self.loo_scores = self._loo_scores()
        return self

    def _loo_scores(self) -> NDArray[np.float32]:
        """Scores of the bank's images, each from the others alone: (n,)."""
        queries = torch.tensor(self.bank.vectors[:: self.copies], device=self.bank.device)
        neighbours = min(self.neighbours, len(self.bank) - self.copies)
        distances, indices = self.bank.search(queries, neighbours + self.copies)
        own = indices // self.copies == np.arange(len(queries))[:, None]
        others_first = np.argsort(own, axis=1, kind="stable")[:, :neighbours]
        return np.take_along_axis(distances, others_first, axis=1).mean(axis=1, dtype=np.float64).astype(np.float32)

    def score(self, features: Tensor) -> Scores:
        """Score images; each on its own, so that its company in a batch changes nothing.

        Parameters
        ----------
        features : (n, channels) float32 on the detector's device
        """
        kept = torch.as_tensor(np.array(self._kept), device=features.device)
        chosen = features[:, kept].contiguous()
        image = [self.bank.search(row[None], self.neighbours)[0].mean(dtype=np.float64) for row in chosen]
        return Scores(np.array(image, np.float32), None)


class ViTKNN(KNN):
    """The same with the [CLS] token of a Vision Transformer."""

    method: ClassVar[str] = "vit-knn"
    needs_transformer: ClassVar[bool] = True
    default_backbone: ClassVar[str] = "vit_b_16"
