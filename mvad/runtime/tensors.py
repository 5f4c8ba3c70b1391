"""NumPy arrays as tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from mvad.process import without_warnings

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def as_tensor(array: NDArray[Any], device: str | torch.device = "cpu") -> Tensor:
    """Return an array as a tensor: on a CPU it shares memory, even read-only memory, else it is a copy.

    Nothing in mvad writes to such a tensor.
    """
    import torch

    with without_warnings():  # that the array is not writable
        return torch.from_numpy(array).to(device)
