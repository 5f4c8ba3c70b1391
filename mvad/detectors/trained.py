"""What the methods that train a network share: their state is the network's, and where it is used."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mvad.detectors.base import Detector, Scores
from mvad.detectors.training import Loss, Plan, train
from mvad.options import FitOptions


class TrainedDetector(Detector):
    """A detector whose state is a network; `build` makes one from `settings`.

    Parameters
    ----------
    epochs, learning_rate
        None: those of the method.
    copies
        Images to fit that are one training image and its variants.
    """

    method: ClassVar[str]
    feature: ClassVar[str]
    trained: ClassVar[bool] = True
    default_epochs: ClassVar[int] = 50
    default_learning_rate: ClassVar[float] = 1e-3
    batch_size: ClassVar[int] = 1024

    def __init__(
        self, epochs: int | None = None, learning_rate: float | None = None, seed: int = 0, copies: int = 1
    ) -> None:
        self.plan = Plan(
            epochs or self.default_epochs, learning_rate or self.default_learning_rate, seed, self.batch_size, copies
        )
        self.shape: dict[str, Any] = {}
        self.history: dict[str, Any] = {}
        self._network: nn.Module | None = None

    @classmethod
    def from_options(cls, options: FitOptions) -> TrainedDetector:
        return cls(options.epochs, options.learning_rate, options.seed, options.copies)

    @classmethod
    def from_state(
        cls, settings: dict[str, Any], arrays: dict[str, NDArray[Any]], device: str | torch.device = "cpu"
    ) -> TrainedDetector:
        detector = cls(*(settings[name] for name in ("epochs", "learning_rate", "seed", "copies")))
        detector.start_from(settings, arrays, device)
        return detector

    def start_from(
        self, settings: dict[str, Any], arrays: dict[str, NDArray[Any]], device: str | torch.device = "cpu"
    ) -> None:
        self.shape, self.history = settings["shape"], settings["history"]
        network = self.build(**self.shape)
        network.load_state_dict({name: torch.tensor(array) for name, array in arrays.items()})
        self._network = network.to(device).eval().requires_grad_(False)

    @property
    def settings(self) -> dict[str, Any]:
        """Parameters, ``shape``: sizes of the network, ``history``: epochs run and the loss on held-out images."""
        return {
            "epochs": self.plan.epochs,
            "learning_rate": self.plan.learning_rate,
            "seed": self.plan.seed,
            "copies": self.plan.copies,
            "shape": self.shape,
            "history": self.history,
        }

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        return {name: np.ascontiguousarray(tensor.cpu().numpy()) for name, tensor in self.network.state_dict().items()}

    @property
    def network(self) -> nn.Module:
        if self._network is None:
            raise RuntimeError(f"this {type(self).__name__} is not fitted; call fit first")
        return self._network

    def _train(self, network: nn.Module, kept: Tensor, held_out: Tensor, loss: Loss, plan: Plan | None = None) -> None:
        """Train a network as `training.train` does, by the detector's own plan unless told otherwise, and keep it."""
        self.history = train(network, kept, held_out, loss, plan or self.plan)._asdict()
        self._network = network

    def fit(self, features: Tensor) -> TrainedDetector:
        """Train on the features of good images. Returns the detector itself."""
        raise NotImplementedError

    def build(self, **shape: Any) -> nn.Module:
        """The network of the given sizes, not trained."""
        raise NotImplementedError

    def grid(self, image: Tensor) -> Tensor:
        """Anomaly scores of the parts of one image: (height, width) of its (height, width, channels) features."""
        raise NotImplementedError

    @torch.inference_mode()
    def score(self, features: Tensor) -> Scores:
        """Score images by their most abnormal part; each on its own.

        Parameters
        ----------
        features : (n, height, width, channels) float32 on the detector's device
        """
        grids = np.stack([self.grid(image).cpu().numpy() for image in features])
        return Scores(self.of_image(grids), grids)

    def of_image(self, grids: NDArray[np.float32]) -> NDArray[np.float32]:
        """Image scores, (n,), of grids of scores (n, height, width)."""
        return grids.max(axis=(1, 2))


class Standardise(nn.Module):
    """Channels brought to zero mean and unit deviation over the good images."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("deviation", torch.ones(channels))

    def learn(self, rows: Tensor) -> None:
        """From (n, channels) rows; a constant channel stays unscaled."""
        deviation = rows.std(dim=0, correction=0)
        self.mean.copy_(rows.mean(dim=0))
        self.deviation.copy_(torch.where(deviation > 1e-6, deviation, torch.ones_like(deviation)))

    def forward(self, rows: Tensor) -> Tensor:
        return (rows - self.mean) / self.deviation
