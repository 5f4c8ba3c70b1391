"""The size of the model's input, where on an image it lies (all of it, its centre, windows), and maps of that size."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, NamedTuple

from pydantic import BeforeValidator, Field

SQUARE_TOLERANCE = 0.05  # logarithm of the aspect ratio below which images count as squares
SMOOTHING = 4.0  # pixels: arXiv 2106.08265, section 3.3
MAX_SMOOTHING = 256
CELL = 32  # pixels: sides of an input that is not square are multiples of it, the coarsest stride in use


def _pair(value: Any) -> Any:
    """(height, width) from a pair, or from the side of a square; other values as they are."""
    if isinstance(value, int):
        return value, value
    return tuple(value) if isinstance(value, list) else value


Length = Annotated[int, Field(strict=True, ge=1)]
Smoothing = Annotated[float, Field(ge=0, le=MAX_SMOOTHING, allow_inf_nan=False)]
EXACT: Final = "exact"
FAST: Final = "fast"
TILES: Final = "tiles"
WHOLE_AND_TILES: Final = "whole,tiles"
TileLevels = Literal["tiles", "whole,tiles"]
Decoding = Literal["exact", "fast"]
Share = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Sides = Annotated[tuple[Length, Length], BeforeValidator(_pair)]


class Window(NamedTuple):
    """A window of an image, and the part of the image that is nearer to its middle than to that of any other.

    In pixels of the model's input; the parts of all windows cover it, each pixel once.
    """

    top: int
    left: int
    rows: slice  # that the window answers for
    columns: slice


@dataclass(frozen=True, kw_only=True)
class ImageSize:
    """How an image becomes the model's input: stretched to ``resize`` pixels, of which it sees the centre ``crop``.

    If there is a ``window``, the network sees the centre window by window: `windows`. Sides are (height, width); in
    what earlier versions wrote, a single number is the side of a square.
    """

    resize: Sides
    crop: Sides
    window: Sides | None = None
    overlap: Share = 0.0  # of neighbouring windows, at least, as a share of their side
    cell: Length = CELL  # windows start at multiples of it, so that their patches lie on one grid
    ignore: str | None = None  # what of an image is not looked at: `images.ignoring`
    smoothing: Smoothing = SMOOTHING  # standard deviation in pixels of the Gaussian that smooths maps; 0: none
    decode: Decoding = EXACT  # fast: JPEG files may be decoded at a half, a quarter or an eighth of their size
    whole: Sides | None = None  # of a second look at an input with windows: all of it, squeezed to these sides

    def __post_init__(self) -> None:
        for name in ("resize", "crop", "window", "whole"):
            object.__setattr__(self, name, _pair(getattr(self, name)))

    @property
    def network_input(self) -> tuple[int, int]:
        """Height and width of what goes through the network at once: a window, or all."""
        return self.window or self.crop

    @property
    def windows(self) -> list[Window]:
        """The windows, row by row: spread evenly, and flush with the borders; without windows, one."""
        down, across = (
            _spans(*sides, self.overlap, self.cell) for sides in zip(self.crop, self.network_input, strict=True)
        )
        return [Window(top, left, rows, columns) for (top, rows), (left, columns) in itertools.product(down, across)]

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
    def described_windows(self) -> str:
        """How many windows there are, and of what size, in words."""
        height, width = self.network_input
        squeezed = "" if self.whole is None else f", and as a whole, squeezed to {self.whole[1]} x {self.whole[0]}"
        return f"{len(self.windows):,} windows of {width} x {height} pixels{squeezed}"

    @property
    def whole_level(self) -> ImageSize | None:
        """The input that shows an image as a whole next to its windows, which it has no part in; None if there is none.

        Its maps are smoothed over as many pixels of its own.
        """
        if self.whole is None:
            return None
        return ImageSize(resize=self.whole, crop=self.whole, ignore=self.ignore, smoothing=self.smoothing)

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


def grid_part(window: Window, stride: int) -> tuple[slice, slice]:
    """Rows and columns that a window answers for, of an image's patches that lie ``stride`` pixels apart."""
    rows, columns = (slice(part.start // stride, part.stop // stride) for part in (window.rows, window.columns))
    return rows, columns


def grid_of(size: ImageSize, stride: int) -> tuple[int, int]:
    """Rows and columns of an image's patches that lie ``stride`` pixels apart."""
    return size.height // stride, size.width // stride


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


def _spans(length: int, window: int, overlap: float, cell: int) -> list[tuple[int, slice]]:
    """Starts of windows along an axis, and what each answers for: up to the middle of its overlap with the next."""
    step = max(1, math.floor(window * (1 - overlap) / cell)) * cell
    count = 1 if window >= length else math.ceil((length - window) / step) + 1
    starts = [round(number * (length - window) / max(1, count - 1) / cell) * cell for number in range(count)]
    middles = [(start + before + window) // 2 // cell * cell for before, start in itertools.pairwise(starts)]
    parts = itertools.starmap(slice, itertools.pairwise([0, *middles, length]))
    return list(zip(starts, parts, strict=True))


def tiled_size(height: float, width: float, side: int, overlap: float, cell: int = CELL) -> ImageSize:
    """The size of an input that shows images of ``height`` x ``width`` pixels through windows of ``side`` pixels.

    All sides are brought to multiples of ``cell``; images smaller than a window are one window.
    """
    sides = [max(1, round(length / cell)) * cell for length in (height, width)]
    side = max(1, round(side / cell)) * cell
    canvas, window = (sides[0], sides[1]), (min(side, sides[0]), min(side, sides[1]))
    return ImageSize(
        resize=canvas, crop=canvas, window=None if window == canvas else window, overlap=overlap, cell=cell
    )
