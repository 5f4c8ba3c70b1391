"""The size of the model's input, and where on an image it lies."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

SQUARE_TOLERANCE = 0.05  # logarithm of the aspect ratio below which images count as squares
CELL = 32  # pixels: sides of an input that is not square are multiples of it, the coarsest stride in use


def _pair(value: Any) -> Any:
    """(height, width) from a pair, or from the side of a square; other values as they are."""
    if isinstance(value, int):
        return value, value
    return tuple(value) if isinstance(value, list) else value


Length = Annotated[int, Field(strict=True, ge=1)]
Sides = Annotated[tuple[Length, Length], BeforeValidator(_pair)]


@dataclass(frozen=True, kw_only=True)
class ImageSize:
    """How an image becomes the model's input: stretched to ``resize`` pixels, of which it sees the centre ``crop``.

    Both are (height, width); in what earlier versions wrote, a single number is the side of a square.
    """

    resize: Sides
    crop: Sides

    def __post_init__(self) -> None:
        for name in ("resize", "crop"):
            object.__setattr__(self, name, _pair(getattr(self, name)))

    @classmethod
    def square(cls, side: int, crop: int | None = None) -> ImageSize:
        """Images squeezed to a square of ``side`` pixels, of which the model sees the centre ``crop``, or all."""
        crop = side if crop is None else crop
        return cls(resize=(side, side), crop=(crop, crop))

    @property
    def height(self) -> int:
        """Height of the model's input in pixels."""
        return self.crop[0]

    @property
    def width(self) -> int:
        """Width of the model's input in pixels."""
        return self.crop[1]

    @property
    def n_pixels(self) -> int:
        """Pixels of the model's input."""
        return self.height * self.width

    @property
    def margins(self) -> tuple[int, int]:
        """Pixels above and to the left of the centre that the model sees, after resizing."""
        return (self.resize[0] - self.height) // 2, (self.resize[1] - self.width) // 2

    def __str__(self) -> str:
        """As people write it: width x height."""
        return f"{self.width} x {self.height}"


def fitting_size(side: int, aspect: float, cell: int = CELL) -> ImageSize:
    """The size of an input that shows whole images of an aspect ratio (width / height).

    Its area is about that of a square of ``side`` pixels, which it is for square images. Otherwise its sides are
    multiples of ``cell``, and of these its aspect ratio is the nearest one.
    """
    if abs(math.log(aspect)) <= SQUARE_TOLERANCE:
        return ImageSize.square(side)
    ideal = side / math.sqrt(aspect) / cell, side * math.sqrt(aspect) / cell
    candidates = [
        (max(1, rows), max(1, columns))
        for rows in (math.floor(ideal[0]), math.ceil(ideal[0]))
        for columns in (math.floor(ideal[1]), math.ceil(ideal[1]))
    ]
    rows, columns = min(
        candidates,
        key=lambda cells: (abs(math.log(cells[1] / cells[0] / aspect)), abs(cells[0] * cells[1] - math.prod(ideal))),
    )
    sides = rows * cell, columns * cell
    return ImageSize(resize=sides, crop=sides)
