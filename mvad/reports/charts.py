"""Charts as inline SVG: a drawing, what it shows in words, and its numbers as a table for those who cannot see it.

Colours are left to the page's style sheet, by class, so that they follow its light and dark themes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_curve

BINS = 40
POINTS = 160  # of a curve, at most
FAR = 4.0  # times the spread of the lower 98 % of scores: where the axis of a histogram ends and outliers are gathered
RATES = (0.0, 0.01, 0.05, 0.1, 0.2, 0.5)  # false-alarm rates, and
RECALLS = (0.5, 0.8, 0.9, 0.95, 1.0)  # recalls that the tables name
WIDTH, ROW, LABEL, AXIS = 460, 44, 22, 36  # pixels of a histogram
SIDE, LEFT, TOP, BOTTOM = 230, 44, 10, 36  # of a curve


class Chart(NamedTuple):
    """A drawing, a sentence on what it shows, and its numbers."""

    svg: Markup
    text: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def histogram(groups: Mapping[str, NDArray[np.floating[Any]]], threshold: float | None) -> Chart | None:
    """Histograms of scores, one below the other over the same axis, with the threshold across all of them.

    Parameters
    ----------
    groups
        Finite scores by the name of their group, which is their class in the style sheet too; empty ones are left out.
    threshold
        None if there is none.

    Returns
    -------
    None if there are no scores
    """
    shown = {name: np.asarray(scores, np.float64) for name, scores in groups.items() if len(scores)}
    if not shown:
        return None
    low, high, cut = _range(np.concatenate(list(shown.values())), threshold)
    edges = np.linspace(low, high, BINS + 1)
    counts = {name: np.histogram(np.minimum(scores, high), edges)[0] for name, scores in shown.items()}
    texts = [_distribution(name, scores, threshold) for name, scores in shown.items()]
    top = 0 if threshold is None else LABEL  # a line of its own for the threshold's label
    height = top + (ROW + LABEL) * len(shown) + AXIS
    svg = _svg(WIDTH, height, "Histograms of scores. " + " ".join(texts))
    x = _line((low, high), (8, WIDTH - 8))
    bases = [top + (ROW + LABEL) * (place + 1) for place in range(len(shown))]
    for base, found, name in zip(bases, counts.values(), shown, strict=True):
        y = _line((0, max(found.max(), 1)), (base, base - ROW + 4))
        bars = "".join(
            f"M{x(left):.1f} {base}V{y(count):.1f}H{x(right) - 1:.1f}V{base}Z"
            for count, left, right in zip(found, edges, edges[1:], strict=False)
            if count
        )
        ElementTree.SubElement(svg, "path", {"class": f"bars {name.split()[0]}", "d": bars})
        _rule(svg, 8, base, WIDTH - 8, base, "axis")
    bottom = height - AXIS
    if threshold is not None:
        _rule(svg, x(threshold), 2, x(threshold), bottom + 4, "threshold")
        side = "end" if x(threshold) > WIDTH / 2 else "start"
        shift = -5 if side == "end" else 5
        _text(svg, x(threshold) + shift, 12, f"threshold {threshold:.4g}", "threshold-label", side)
    for base, (name, scores) in zip(bases, shown.items(), strict=True):
        _text(svg, 8, base - ROW - 6, f"{name} ({len(scores):,})", "label")
    for tick in _ticks(low, high, 6):
        _rule(svg, x(tick), bottom, x(tick), bottom + 4, "axis")
        label = f"≥ {tick:g}" if cut and tick == _ticks(low, high, 6)[-1] else f"{tick:g}"
        _text(svg, x(tick), bottom + 16, label, "tick", "middle")
    _text(svg, WIDTH / 2, height - 3, "score (higher is more abnormal)", "tick", "middle")
    rows = [
        [f"{left:.4g} to {right:.4g}", *(f"{found[number]:,}" for found in counts.values())]
        for number, (left, right) in enumerate(itertools.pairwise(edges))
        if any(found[number] for found in counts.values())
    ]
    if cut:
        rows[-1][0] = f"{edges[-2]:.4g} and more"
        texts.append(f"The last bar holds all scores from {edges[-2]:.4g} up.")
    return Chart(_markup(svg), " ".join(texts), ["score", *shown], rows)


def _range(scores: NDArray[np.float64], threshold: float | None) -> tuple[float, float, bool]:
    """The ends of the axis, and whether scores lie beyond the upper one."""
    seen = scores if threshold is None else np.append(scores, threshold)
    low, high = float(seen.min()), float(seen.max())
    if low == high:
        return low - 0.5, high + 0.5, False
    usual = float(np.percentile(scores, 98)) if threshold is None else max(np.percentile(scores, 98), threshold)
    far = low + FAR * (usual - low)
    cut = low < far < high
    return low, far if cut else high, cut


def _distribution(name: str, scores: NDArray[np.float64], threshold: float | None) -> str:
    text = f"{name.capitalize()}: {len(scores):,}, median {np.median(scores):.4g}, "
    text += f"from {scores.min():.4g} to {scores.max():.4g}"
    return text + ("." if threshold is None else f", {int((scores > threshold).sum()):,} above the threshold.")


def roc(labels: NDArray[np.int8], scores: NDArray[np.float32], point: tuple[float, float] | None = None) -> Chart:
    """The receiver operating characteristic; ``point`` is the false-alarm rate and recall at the threshold."""
    false_rate, recall, _ = roc_curve(labels, scores)
    found = [float(recall[false_rate <= rate].max()) for rate in RATES]
    text = f"Area {auc(false_rate, recall):.3f}; at 5 % false alarms {found[2]:.1%} of the defective images are found."
    if point is not None:
        text += f" At the threshold: {point[0]:.1%} false alarms, {point[1]:.1%} found."
    svg = _curve(f"ROC curve. {text}", false_rate, recall, ("false-alarm rate", "recall"), point, (0, 0, 1, 1))
    rows = [[f"{rate:.0%}", f"{value:.1%}"] for rate, value in zip(RATES, found, strict=True)]
    return Chart(svg, text, ["false-alarm rate up to", "recall"], rows)


def precision_recall(
    labels: NDArray[np.int8], scores: NDArray[np.float32], point: tuple[float, float] | None = None
) -> Chart:
    """Precision against recall; ``point`` is the recall and precision at the threshold."""
    precision, recall, _ = precision_recall_curve(labels, scores)
    share = float((labels == 1).mean())
    found = [float(precision[recall >= rate].max()) for rate in RECALLS]
    text = f"Average precision {average_precision_score(labels, scores):.3f}; {found[-1]:.1%} where all are found."
    if point is not None:
        text += f" At the threshold: recall {point[0]:.1%}, precision {point[1]:.1%}."
    guess = (0, share, 1, share)
    names = ("recall", "precision")
    svg = _curve(f"Precision-recall curve. {text}", recall[::-1], precision[::-1], names, point, guess)
    rows = [[f"{rate:.0%}", f"{value:.1%}"] for rate, value in zip(RECALLS, found, strict=True)]
    return Chart(svg, text, ["recall of at least", "precision"], rows)


def _curve(
    text: str,
    horizontal: NDArray[np.float64],
    vertical: NDArray[np.float64],
    names: tuple[str, str],
    point: tuple[float, float] | None,
    guess: tuple[float, float, float, float],
) -> Markup:
    """A curve in the unit square, with the line that guessing would give."""
    svg = _svg(LEFT + SIDE + 12, TOP + SIDE + BOTTOM, text)
    x, y = _line((0, 1), (LEFT, LEFT + SIDE)), _line((0, 1), (TOP + SIDE, TOP))
    for tick in (0, 0.25, 0.5, 0.75, 1):
        _rule(svg, x(tick), y(0), x(tick), y(1), "grid")
        _rule(svg, x(0), y(tick), x(1), y(tick), "grid")
        _text(svg, x(tick), y(0) + 15, f"{tick:g}", "tick", "middle")
        _text(svg, x(0) - 5, y(tick) + 4, f"{tick:g}", "tick", "end")
    _rule(svg, x(guess[0]), y(guess[1]), x(guess[2]), y(guess[3]), "guess")
    steps = np.append(0, np.cumsum(np.abs(np.diff(horizontal)) + np.abs(np.diff(vertical))))
    kept = np.unique(np.searchsorted(steps, np.linspace(0, steps[-1], POINTS)).clip(0, len(steps) - 1))
    places = " ".join(f"{x(h):.1f},{y(v):.1f}" for h, v in zip(horizontal[kept], vertical[kept], strict=True))
    ElementTree.SubElement(svg, "polyline", {"class": "curve", "points": places})
    if point is not None:
        where = {"class": "point", "cx": f"{x(point[0]):.1f}", "cy": f"{y(point[1]):.1f}", "r": "5"}
        ElementTree.SubElement(svg, "circle", where)
    _text(svg, x(0.5), y(0) + 31, names[0], "tick", "middle")
    label = _text(svg, 0, 0, names[1], "tick", "middle")
    label.set("transform", f"translate(11 {y(0.5):.1f}) rotate(-90)")
    return _markup(svg)


def bar(share: float, width: int = 160) -> Markup:
    """A horizontal bar of a share of ``width`` pixels; a decoration beside its number."""
    svg = ElementTree.Element("svg", {"viewBox": f"0 0 {width} 10", "width": str(width), "height": "10"})
    svg.set("aria-hidden", "true")
    size = {"width": f"{width * min(max(share, 0), 1):.1f}", "height": "10", "rx": "2"}
    ElementTree.SubElement(svg, "rect", {"class": "bar", **size})
    return _markup(svg)


class _Line(NamedTuple):
    """A linear map from values to pixels."""

    values: tuple[float, float]
    pixels: tuple[float, float]

    def __call__(self, value: float) -> float:
        share = (value - self.values[0]) / (self.values[1] - self.values[0])
        return self.pixels[0] + share * (self.pixels[1] - self.pixels[0])


_line = _Line


def _ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers from low to high, at most so many."""
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(step * factor for factor in (1, 2, 5, 10, 20) if (high - low) / (step * factor) <= most)
    numbers = np.arange(math.ceil(low / step), math.floor(high / step) + 1)
    return [round(float(number * step), 12) for number in numbers]


def _svg(width: int, height: int, text: str) -> ElementTree.Element:
    return ElementTree.Element(
        "svg", {"viewBox": f"0 0 {width} {height}", "width": str(width), "role": "img", "aria-label": text}
    )


def _text(
    svg: ElementTree.Element, x: float, y: float, text: str, style: str, anchor: str = "start"
) -> ElementTree.Element:
    place = {"x": f"{x:.1f}", "y": f"{y:.1f}", "class": style, "text-anchor": anchor}
    element = ElementTree.SubElement(svg, "text", place)
    element.text = text
    return element


def _rule(svg: ElementTree.Element, x1: float, y1: float, x2: float, y2: float, style: str) -> None:
    ends = {"x1": x1, "y1": y1, "x2": x2, "y2": y2}
    ElementTree.SubElement(svg, "line", {"class": style, **{name: f"{value:.1f}" for name, value in ends.items()}})


def _markup(svg: ElementTree.Element) -> Markup:
    return Markup(
        ElementTree.tostring(svg, encoding="unicode", short_empty_elements=False)
    )  # it escapes what it writes
