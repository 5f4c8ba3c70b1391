"""What fits into the memory that a process may use."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mvad.errors import UsageError

BASE = 700 << 20  # private memory of a process that holds no images yet: interpreter, torch, Ray and Arrow
WEIGHTS_HELD = 2  # times: as they were read, and on their way into an engine
LEAST = 1 << 30
BATCH_SHARE = 16  # of the room: features of the images that an actor handles at once; it holds them several times over
BLOCK_BYTES = 64 << 20  # of decoded pixels that travel together
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_bytes(text: str) -> int:
    """A size such as 2GiB, 1500M or 3000000000 in bytes; UsageError if it is none."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not match:
        raise UsageError(f"{text!r} is not a size in memory such as 2GiB or 1500MiB.")
    return int(float(match[1]) * UNITS[match[2].upper()])


@dataclass(frozen=True)
class MemoryBudget:
    """Memory for images and what is made of them, in bytes, beside what a process takes in any case.

    Parameters
    ----------
    limit
        Of the process, in bytes.
    weights
        Size of the backbone's weights, in bytes.

    Raises
    ------
    UsageError
        The limit is less than a process takes that does anything useful.
    """

    limit: int
    weights: int = 0

    def __post_init__(self) -> None:
        least = LEAST + WEIGHTS_HELD * self.weights
        if self.limit < least:
            what = "with this backbone" if self.weights else "to start with"
            raise UsageError(
                f"--memory-limit is less than {math.ceil(least / (1 << 20))} MiB, which a process needs {what}."
            )

    def after_weights(self, weights: int) -> MemoryBudget:
        """What is left beside a backbone with so many bytes of weights; UsageError if that is too little."""
        return MemoryBudget(self.limit, weights)

    @property
    def bytes(self) -> int:
        return self.limit - BASE - WEIGHTS_HELD * self.weights

    def batch_size(self, asked: int, shapes: Mapping[str, Sequence[int]]) -> int:
        """How many images an actor handles at once, given the shapes of an image's features by kind."""
        image = 4 * sum(math.prod(shape) for shape in shapes.values())
        return max(1, min(asked, self.bytes // BATCH_SHARE // image))

    def patches(self, width: int, projected: int, ratio: float) -> int:
        """How many patches of ``width`` channels a coreset can be chosen from.

        Beside them lie their projection to ``projected`` dimensions (0: none), a distance each, and the coreset.
        """
        beside = (projected or width) + ratio * width + 4
        return int(self.bytes / 4 / (width + beside))


def block_rows(side: int, most: int) -> int:
    """How many decoded images of this side travel together, ``most`` at most."""
    return max(1, min(most, BLOCK_BYTES // (3 * side * side)))
