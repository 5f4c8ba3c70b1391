"""The geometry of the page's charts, in plain numbers; the template draws them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

BINS = 24
COLOURS = 6  # of defects, in the style sheet
WIDTH, HEIGHT = 340, 110  # of a histogram, units of its drawing
SIDE = 460  # of a map
MARGIN = 12
SHAPES = (
    "M0-3.4A3.4 3.4 0 1 1 0 3.4 3.4 3.4 0 1 1 0-3.4Z",
    "M-3.2-3.2H3.2V3.2H-3.2Z",
    "M0-4.2 4 3.2H-4Z",
    "M0-4.6 4.6 0 0 4.6-4.6 0Z",
    "M0 4.2 4-3.2H-4Z",
    "M-1.4-4h2.8v2.6H4v2.8H1.4V4h-2.8V1.4H-4v-2.8h2.6Z",
)  # of markers: circle, square, triangle, diamond, triangle on its head, cross


class Series(NamedTuple):
    """One of the kinds of images that a chart tells apart: its name, its number of images, its colour and shape."""

    name: str
    images: int
    colour: str  # a class of the style sheet
    shape: str


class Curve(NamedTuple):
    """The outline of one kind's histogram: a path."""

    series: Series
    path: str


class Histogram(NamedTuple):
    """Shares of images by value, one outline a kind; ``ticks`` are positions and labels."""

    title: str
    width: int
    height: int
    curves: list[Curve]
    ticks: list[tuple[float, str]]


class Point(NamedTuple):
    """An image on a map."""

    x: float
    y: float
    series: Series
    title: str
    stands_out: bool  # and is not known to be defective


def series_of(names: Iterable[str]) -> dict[str, Series]:
    """Colours and shapes of the kinds of images, given as one name an image, in the order of the legend.

    ``train``, ``good`` and ``unlabelled`` have their own, defects the others in turn.
    """
    own = {"train": ("train", SHAPES[0]), "good": ("good", SHAPES[0]), "unlabelled": ("unlabelled", SHAPES[0])}
    counts = Counter(names)
    defects = sorted(name for name in counts if name not in own)
    found = {}
    for name in [*(name for name in own if name in counts), *defects]:
        number = defects.index(name) if name not in own else 0
        colour, shape = own.get(
            name, (f"defect{number % COLOURS}", SHAPES[(number + 1 + number // COLOURS) % len(SHAPES)])
        )
        found[name] = Series(name, counts[name], colour, shape)
    return found


def histogram(
    title: str, values: NDArray[np.float32], names: Sequence[str] | NDArray[np.object_], *, logarithmic: bool = False
) -> Histogram:
    """Outlines of the histograms of values by kind (train, good, defect, unlabelled)."""
    shown = np.log10(np.maximum(values, 1e-3)) if logarithmic else values
    low, high = float(shown.min()), float(shown.max())
    if high - low < 1e-6:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, BINS + 1)
    kinds = np.array(names, object)
    series = series_of(names)
    shares = {name: np.histogram(shown[kinds == name], edges)[0] / one.images for name, one in series.items()}
    top = max(float(share.max()) for share in shares.values())
    curves = [Curve(series[name], _outline(share / top)) for name, share in shares.items()]
    ticks = []
    for value in _nice_powers(low, high) if logarithmic else _nice(low, high):
        position = (value - low) / (high - low) * WIDTH
        ticks.append((round(position, 1), f"{10**value:.3g}" if logarithmic else f"{value:.4g}"))
    return Histogram(title, WIDTH, HEIGHT, curves, ticks)


def _outline(shares: NDArray[np.float64]) -> str:
    step = WIDTH / len(shares)
    heights = [round(HEIGHT - 2 - float(share) * (HEIGHT - 10), 1) for share in shares]
    path = [f"M0 {HEIGHT}"]
    path += [f"V{height}H{round((number + 1) * step, 1)}" for number, height in enumerate(heights)]
    return "".join([*path, f"V{HEIGHT}Z"])


def _nice_powers(low: float, high: float) -> list[float]:
    """Logarithms of round numbers between two logarithms, three to six of them if there are."""
    for digits in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7), [number / 10 for number in range(10, 100)]):
        found = [math.log10(digit) + power for power in range(math.floor(low), math.ceil(high) + 1) for digit in digits]
        found = sorted(value for value in found if low <= value <= high)
        if len(found) >= 3:
            return found[:: math.ceil(len(found) / 6)]
    return [low, high]


def _nice(low: float, high: float) -> list[float]:
    """Round numbers between two, three to six of them."""
    step = 10 ** math.floor(math.log10(high - low))
    for part in (1, 0.5, 0.2, 0.1):
        first = math.ceil(low / (step * part))
        last = math.floor(high / (step * part))
        if last - first >= 2:
            return [number * step * part for number in range(first, last + 1)][:8]
    return [low, high]


def points(rows: Sequence[Mapping[str, Any]], series: Mapping[str, Series]) -> list[Point]:
    """The map of a category, defects on top.

    Parameters
    ----------
    rows
        With ``map_x``, ``map_y``, ``image_id``, ``outlier``, ``kind`` and ``name``, which is that of a series.
    """
    if not rows:
        return []
    places = np.array([(row["map_x"], row["map_y"]) for row in rows])
    low = places.min(axis=0)
    spread = np.maximum(places.max(axis=0) - low, 1e-6)
    scaled = MARGIN + (places - low) / spread * (SIDE - 2 * MARGIN)
    order = {name: number for number, name in enumerate(series)}
    found = []
    for (x, y), row in sorted(zip(scaled.tolist(), rows, strict=True), key=lambda pair: order[pair[1]["name"]]):
        title = f"{row['image_id']} ({row['name']}{', ' + row['outlier'] if row['outlier'] else ''})"
        stands_out = row["outlier"] is not None and row["kind"] != "defect"
        found.append(Point(round(x, 1), round(SIDE - y, 1), series[row["name"]], title, stands_out))
    return found
