"""NumPy arrays as tensors."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def as_tensor(array: NDArray[Any], device: str | torch.device = "cpu") -> Tensor:
    """An array as a tensor: on a CPU the same memory, read-only or not (nothing here writes to it), else a copy."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array).to(device)
