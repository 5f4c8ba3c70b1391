"""Memory budget of a process."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mvad.errors import UsageError

PROCESS_BYTES = 700 << 20  # private memory of a process without images: interpreter, PyTorch, Ray and Arrow
MIN_LIMIT_BYTES = 1 << 30
BLOCK_BYTES = 64 << 20  # decoded pixels that travel together
WEIGHT_COPIES = 2  # the weights as they were read, and on their way into an engine
BATCH_FRACTION = 1 / 16  # of the budget, for the features of a batch; an actor holds them several times over
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_bytes(text: str | int) -> int:
    """A size such as 2GiB, 1500M or 3000000000 in bytes; UsageError if it is not a size."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", str(text).strip(), re.IGNORECASE)
    if not match:
        raise UsageError(f"{text!r} is not a size in memory such as 2GiB or 1500MiB.")
    return int(float(match[1]) * UNITS[match[2].upper()])


@dataclass(frozen=True)
class MemoryBudget:
    """Bytes left for images and features after the process itself and the backbone's weights; UsageError if too few."""

    limit: int  # memory of the process, in bytes
    weights: int = 0  # of the backbone, in bytes

    def __post_init__(self) -> None:
        minimum = MIN_LIMIT_BYTES + WEIGHT_COPIES * self.weights
        if self.limit < minimum:
            purpose = "with this backbone" if self.weights else "to start with"
            raise UsageError(
                f"--memory-limit is less than {math.ceil(minimum / (1 << 20))} MiB, which a process needs {purpose}."
            )

    def after_weights(self, weights: int) -> MemoryBudget:
        """The budget of a process that holds so many bytes of weights; UsageError if that is too little."""
        return MemoryBudget(self.limit, weights)

    @property
    def bytes(self) -> int:
        return self.limit - PROCESS_BYTES - WEIGHT_COPIES * self.weights

    def batch_size(self, asked: int, shapes: Mapping[str, Sequence[int]]) -> int:
        """Images per actor call, at most ``asked``, given the shapes of one image's features by kind."""
        image_bytes = 4 * sum(math.prod(shape) for shape in shapes.values())
        return max(1, min(asked, int(self.bytes * BATCH_FRACTION) // image_bytes))

    def max_patches(self, width: int, projected: int, ratio: float) -> int:
        """How many patches of ``width`` channels a coreset can be chosen from.

        Besides the patches, memory holds their projection to ``projected`` dimensions (0: none), a distance for each,
        and the coreset.
        """
        return int(self.bytes / 4 / (width + (projected or width) + ratio * width + 4))


def block_rows(n_pixels: int, max_rows: int) -> int:
    """How many decoded images of so many pixels travel together, at most ``max_rows``."""
    return max(1, min(max_rows, BLOCK_BYTES // (3 * n_pixels)))
