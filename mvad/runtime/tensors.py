"""NumPy arrays as tensors."""

import warnings
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def as_tensor(array: NDArray[Any], device: str | torch.device = "cpu") -> Tensor:
    """Return an array as a tensor: on a CPU it shares memory, even read-only memory, else it is a copy.

    Nothing in mvad writes to such a tensor.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array).to(device)
