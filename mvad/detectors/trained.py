"""What the methods that train a network have in common."""

from __future__ import annotations

import reprlib
from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass
from typer import Option

from mvad.detectors.base import Detector, Scores
from mvad.detectors.state import ArraySpec, State

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from mvad.detectors.training import Loss, TrainingPlan


class TrainedDetector(Detector):
    """A detector whose state is a network.

    Such methods are fitted in tasks, in parallel, and their arrays are saved as one ``.safetensors`` file.
    """

    one_core: ClassVar[bool] = True
    architecture: ClassVar[str]  # name of the network's class in `networks`
    default_epochs: ClassVar[int] = 50
    default_learning_rate: ClassVar[float] = 1e-3
    batch_size: ClassVar[int] = 1024

    @dataclass(frozen=True, kw_only=True)
    class Params(Detector.Params):
        """Trained networks"""

        epochs: Annotated[
            int | None,
            Field(ge=1),
            Option(
                help="Maximum number of epochs; training stops earlier when held-out images no longer improve.",
                show_default="that of the method",
            ),
        ] = None
        learning_rate: Annotated[
            float | None, Field(gt=0), Option(help="Initial learning rate.", show_default="that of the method")
        ] = None

    params: Params

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.shape: dict[str, Any] = {}
        self.history: dict[str, Any] = {}
        self._network: Any = None

    @property
    def plan(self) -> TrainingPlan:
        from mvad.detectors.training import TrainingPlan

        return TrainingPlan(
            epochs=self.params.epochs or self.default_epochs,
            learning_rate=self.params.learning_rate or self.default_learning_rate,
            seed=self.seed,
            batch_size=self.batch_size,
            copies=self.copies,
        )

    @classmethod
    def array_specs(cls, settings: dict[str, Any], shape: Sequence[int] | None) -> dict[str, ArraySpec]:
        import torch

        from mvad.detectors import networks

        sizes = settings["shape"]
        if not all(type(size) is int and size > 0 for size in sizes.values()):
            raise ValueError(f"the setting shape is {reprlib.repr(sizes)}, and not sizes of a network")
        if shape is not None and sizes.get("channels", shape[-1]) != shape[-1]:
            raise ValueError(f"it takes {sizes['channels']} features, and its backbone has {shape[-1]}")
        try:
            with torch.device("meta"):  # allocates nothing
                tensors = getattr(networks, cls.architecture)(**sizes).state_dict()
        except (TypeError, RuntimeError) as error:
            raise ValueError(f"the setting shape is {reprlib.repr(sizes)}: {str(error)[:200]}") from error
        return {
            name: ArraySpec(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
            for name, tensor in tensors.items()
        }

    def restore(self, state: State, device: str | torch.device) -> None:
        import torch

        self.history = state.settings["history"]
        network = self.build(**state.settings["shape"])
        network.load_state_dict({name: torch.tensor(array) for name, array in state.arrays.items()})
        self._network = network.to(device).eval().requires_grad_(False)

    @property
    def settings(self) -> dict[str, Any]:
        """Parameters; ``shape``: sizes of the network; ``history``: epochs run and the loss on held-out images."""
        params = {"epochs": self.plan.epochs, "learning_rate": self.plan.learning_rate}
        return {**super().settings, **params, "shape": self.shape, "history": self.history}

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """The weights and buffers of the network."""
        return {name: np.ascontiguousarray(tensor.cpu().numpy()) for name, tensor in self.network.state_dict().items()}

    @property
    def network(self) -> Any:
        return self._require_fitted(self._network)

    def build(self, **shape: Any) -> Any:
        """Build the untrained network of the given sizes; its weights depend on the seed alone."""
        from mvad.detectors import networks, training

        self.shape = shape
        return training.seeded(lambda: getattr(networks, self.architecture)(**shape), self.seed)

    def _train(
        self,
        network: nn.Module,
        rows: Tensor,
        held_out: Tensor,
        loss: Loss | None = None,
        plan: TrainingPlan | None = None,
    ) -> None:
        """Train a network by `training.train` and keep it; by default with the mean of its output as loss."""
        from mvad.detectors.training import mean_output, train

        self.history = train(network, rows, held_out, loss or mean_output, plan or self.plan)._asdict()
        self._network = network

    @abstractmethod
    def grid(self, image: Tensor) -> Tensor:
        """Score the parts of one image: (height, width, channels) features to (height, width) scores."""

    def score(self, features: Tensor) -> Scores:
        import torch

        with torch.inference_mode():
            grids = np.stack([self.grid(image).cpu().numpy() for image in features])
        return Scores(self.image_score(grids), grids)

    def image_score(self, grids: NDArray[np.float32]) -> NDArray[np.float32]:
        """Compute image scores, (n,), from grids of scores, (n, height, width): by default the largest of each."""
        return grids.max(axis=(1, 2))
