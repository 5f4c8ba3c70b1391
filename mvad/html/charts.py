"""Charts as inline SVG: a drawing, what it shows in words, and its numbers as a table for people who cannot see it.

Colours come from the page's style sheet, by class, so they follow its light and dark themes.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_curve

N_BINS = 40
MAX_TICKS = 6
MAX_CURVE_POINTS = 160
MAX_SPREADS = 4.0  # a histogram's axis ends at this multiple of the spread of the lower 98 % of the values
MIN_LOG_VALUE = 1e-3  # smaller values are drawn here on a logarithmic axis
FALSE_ALARM_RATES = (0.0, 0.01, 0.05, 0.1, 0.2, 0.5)  # rows of the table of a ROC curve
RECALLS = (0.5, 0.8, 0.9, 0.95, 1.0)  # rows of the table of a precision-recall curve
WIDTH, ROW_HEIGHT, LABEL_HEIGHT, AXIS_HEIGHT = 460, 44, 22, 36  # pixels of a histogram
CURVE_SIDE, CURVE_LEFT, CURVE_TOP, CURVE_BOTTOM = 230, 44, 10, 36  # pixels of a curve
SCATTER_SIDE, SCATTER_MARGIN = 460, 12  # pixels of a scatter plot
BAR_WIDTH = 160  # pixels
N_DEFECT_COLOURS = 6  # in the style sheet
MARKERS = (
    "M0-3.4A3.4 3.4 0 1 1 0 3.4 3.4 3.4 0 1 1 0-3.4Z",
    "M-3.2-3.2H3.2V3.2H-3.2Z",
    "M0-4.2 4 3.2H-4Z",
    "M0-4.6 4.6 0 0 4.6-4.6 0Z",
    "M0 4.2 4-3.2H-4Z",
    "M-1.4-4h2.8v2.6H4v2.8H1.4V4h-2.8V1.4H-4v-2.8h2.6Z",
)  # circle, square, triangle, diamond, inverted triangle, cross
SUBSETS = ("train", "good", "unlabelled")  # have a colour of their own, and the first marker

Values = NDArray[np.floating[Any]]
Point = tuple[float, float]


class Chart(NamedTuple):
    """A drawing, what it shows in words, and its numbers."""

    svg: Markup
    text: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


class Series(NamedTuple):
    """A set of images that a scatter plot tells apart."""

    name: str
    n_images: int
    style: str  # a class in the style sheet
    marker: str  # an SVG path


def histogram(
    groups: Mapping[str, Values],
    threshold: float | None = None,
    *,
    quantity: str = "score",
    meaning: str = "higher is more abnormal",
    log: bool = False,
) -> Chart | None:
    """Draw one histogram per group, below each other on one axis; None if there are no values.

    Parameters
    ----------
    groups
        Finite values by group; the group's first word is its class in the style sheet. Empty groups are left out.
    quantity, meaning
        What the axis shows.
    """
    groups = {name: np.asarray(values, np.float64) for name, values in groups.items() if len(values)}
    if not groups:
        return None
    positions = groups
    if log:
        positions = {name: np.log10(np.maximum(values, MIN_LOG_VALUE)) for name, values in groups.items()}
    low, high, clipped = _axis_range(np.concatenate(list(positions.values())), threshold)
    edges = np.linspace(low, high, N_BINS + 1)
    counts = {name: np.histogram(np.minimum(values, high), edges)[0] for name, values in positions.items()}
    x = _linear(low, high, 8, WIDTH - 8)
    top = 0 if threshold is None else LABEL_HEIGHT  # the threshold's label has a row of its own
    bottom = top + (ROW_HEIGHT + LABEL_HEIGHT) * len(groups)
    drawing = []
    for number, (name, group_counts) in enumerate(counts.items(), start=1):
        base = top + (ROW_HEIGHT + LABEL_HEIGHT) * number
        y = _linear(0, max(group_counts.max(), 1), base, base - ROW_HEIGHT + 4)
        bars = "".join(
            f"M{x(left):.1f} {base}V{y(count):.1f}H{x(right) - 1:.1f}V{base}Z"
            for count, left, right in zip(group_counts, edges, edges[1:], strict=False)
            if count
        )
        drawing.append(_element("path", f"bars {name.split()[0]}", d=bars))
        drawing.append(_line(8, base, WIDTH - 8, base, "axis"))
        drawing.append(_text(8, base - ROW_HEIGHT - 6, f"{name} ({len(groups[name]):,})", "label"))
    if threshold is not None:
        anchor, shift = ("end", -5) if x(threshold) > WIDTH / 2 else ("start", 5)
        drawing.append(_line(x(threshold), 2, x(threshold), bottom + 4, "threshold"))
        drawing.append(_text(x(threshold) + shift, 12, f"threshold {threshold:.4g}", "threshold-label", anchor))
    ticks = _log_ticks(low, high) if log else _ticks(low, high)
    for tick in ticks:
        label = f"{10**tick if log else tick:.6g}"
        drawing.append(_line(x(tick), bottom, x(tick), bottom + 4, "axis"))
        drawing.append(_text(x(tick), bottom + 16, f"≥ {label}" if clipped and tick == ticks[-1] else label))
    drawing.append(_text(WIDTH / 2, bottom + AXIS_HEIGHT - 3, f"{quantity} ({meaning})"))
    limits = 10**edges if log else edges
    rows = [
        [f"{limits[number]:.4g} to {limits[number + 1]:.4g}", *(f"{column[number]:,}" for column in counts.values())]
        for number in range(N_BINS)
        if any(column[number] for column in counts.values())
    ]
    texts = [_describe(name, values, threshold) for name, values in groups.items()]
    svg = _svg(WIDTH, bottom + AXIS_HEIGHT, f"Histograms of {quantity}. {' '.join(texts)}", drawing)
    if clipped:
        rows[-1][0] = f"{limits[-2]:.4g} and more"
        texts.append(f"The last bar holds all values from {limits[-2]:.4g} up.")
    return Chart(svg, " ".join(texts), [quantity, *groups], rows)


def _axis_range(values: Values, threshold: float | None) -> tuple[float, float, bool]:
    """The ends of the axis, and whether some values lie beyond the upper end."""
    shown = values if threshold is None else np.append(values, threshold)
    low, high = float(shown.min()), float(shown.max())
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        return low - 0.5, high + 0.5, False
    usual = max(float(np.percentile(values, 98)), -math.inf if threshold is None else threshold)
    limit = low + MAX_SPREADS * (usual - low)
    clipped = low < limit < high
    return low, limit if clipped else high, clipped


def _describe(name: str, values: Values, threshold: float | None) -> str:
    text = f"{name.capitalize()}: {len(values):,}, median {np.median(values):.4g}, "
    text += f"from {values.min():.4g} to {values.max():.4g}"
    return text + ("." if threshold is None else f", {int((values > threshold).sum()):,} above the threshold.")


def roc(labels: NDArray[np.int8], scores: NDArray[np.float32], operating_point: Point | None = None) -> Chart:
    """Draw the ROC curve; ``operating_point`` is the false-alarm rate and the recall at the threshold."""
    false_alarm_rate, recall, _ = roc_curve(labels, scores)
    recalls = [float(recall[false_alarm_rate <= rate].max()) for rate in FALSE_ALARM_RATES]
    text = f"AUROC {auc(false_alarm_rate, recall):.3f}; at 5% false alarms, {recalls[2]:.1%} of the defects are found."
    if operating_point is not None:
        text += f" At the threshold: {operating_point[0]:.1%} false alarms, {operating_point[1]:.1%} found."
    axes = ("false-alarm rate", "recall")
    svg = _curve(f"ROC curve. {text}", false_alarm_rate, recall, axes, operating_point, chance=(0, 1))
    rows = [[f"{rate:.0%}", f"{value:.1%}"] for rate, value in zip(FALSE_ALARM_RATES, recalls, strict=True)]
    return Chart(svg, text, ["false-alarm rate up to", "recall"], rows)


def precision_recall(
    labels: NDArray[np.int8], scores: NDArray[np.float32], operating_point: Point | None = None
) -> Chart:
    """Draw precision against recall; ``operating_point`` is the recall and the precision at the threshold."""
    precision, recall, _ = precision_recall_curve(labels, scores)
    precisions = [float(precision[recall >= rate].max()) for rate in RECALLS]
    text = f"Average precision {average_precision_score(labels, scores):.3f}; "
    text += f"{precisions[-1]:.1%} precision when every defect is found."
    if operating_point is not None:
        text += f" At the threshold: recall {operating_point[0]:.1%}, precision {operating_point[1]:.1%}."
    share = float((labels == 1).mean())
    title, axes = f"Precision-recall curve. {text}", ("recall", "precision")
    svg = _curve(title, recall[::-1], precision[::-1], axes, operating_point, chance=(share, share))
    rows = [[f"{rate:.0%}", f"{value:.1%}"] for rate, value in zip(RECALLS, precisions, strict=True)]
    return Chart(svg, text, ["recall of at least", "precision"], rows)


def _curve(
    text: str, horizontal: Values, vertical: Values, axes: tuple[str, str], point: Point | None, chance: Point
) -> Markup:
    """A curve in the unit square; ``chance`` is where the line of a random ranking begins and ends."""
    x = _linear(0, 1, CURVE_LEFT, CURVE_LEFT + CURVE_SIDE)
    y = _linear(0, 1, CURVE_TOP + CURVE_SIDE, CURVE_TOP)
    drawing = []
    for tick in (0, 0.25, 0.5, 0.75, 1):
        drawing.append(_line(x(tick), y(0), x(tick), y(1), "grid"))
        drawing.append(_line(x(0), y(tick), x(1), y(tick), "grid"))
        drawing.append(_text(x(tick), y(0) + 15, f"{tick:g}"))
        drawing.append(_text(x(0) - 5, y(tick) + 4, f"{tick:g}", anchor="end"))
    drawing.append(_line(x(0), y(chance[0]), x(1), y(chance[1]), "chance"))
    lengths = np.append(0, np.cumsum(np.abs(np.diff(horizontal)) + np.abs(np.diff(vertical))))
    kept = np.searchsorted(lengths, np.linspace(0, lengths[-1], MAX_CURVE_POINTS)).clip(0, len(lengths) - 1)
    points = " ".join(f"{x(horizontal[number]):.1f},{y(vertical[number]):.1f}" for number in np.unique(kept))
    drawing.append(_element("polyline", "curve", points=points))
    if point is not None:
        drawing.append(_element("circle", "point", cx=x(point[0]), cy=y(point[1]), r=5))
    drawing.append(_text(x(0.5), y(0) + 31, axes[0]))
    drawing.append(_text(0, 0, axes[1], transform=f"translate(11 {y(0.5):.1f}) rotate(-90)"))
    return _svg(CURVE_LEFT + CURVE_SIDE + 12, CURVE_TOP + CURVE_SIDE + CURVE_BOTTOM, text, drawing)


def series_of(names: Iterable[str]) -> dict[str, Series]:
    """Colours and markers of the sets of images that names (one per image) put them in, in the order of the legend.

    ``train``, ``good`` and ``unlabelled`` have their own; any other name is a defect.
    """
    counts = Counter(names)
    series = {name: Series(name, counts[name], name, MARKERS[0]) for name in SUBSETS if name in counts}
    for number, name in enumerate(sorted(name for name in counts if name not in SUBSETS)):
        marker = MARKERS[(number + 1 + number // N_DEFECT_COLOURS) % len(MARKERS)]
        series[name] = Series(name, counts[name], f"defect{number % N_DEFECT_COLOURS}", marker)
    return series


def scatter(
    text: str, points: NDArray[np.float32], series: Sequence[Series], titles: Sequence[str], ringed: Sequence[bool]
) -> Markup:
    """Draw (n, 2) points, later ones on top, with the markers of their series, titles, and rings around some of them.

    ``text`` says in words what the plot shows.
    """
    low = points.min(axis=0)
    extent = np.maximum(points.max(axis=0) - low, 1e-6)
    pixels = SCATTER_MARGIN + (points - low) / extent * (SCATTER_SIDE - 2 * SCATTER_MARGIN)
    drawing = []
    for (x, y), own, title, ring in zip(pixels, series, titles, ringed, strict=True):
        marker = _element("path", own.style, _element("title", "", title), d=own.marker)
        circle = _element("circle", "ring", r="7.5") if ring else ""
        drawing.append(_element("g", "", circle + marker, transform=f"translate({x:.1f} {SCATTER_SIDE - y:.1f})"))
    return _svg(SCATTER_SIDE, SCATTER_SIDE, text, drawing)


def bar(share: float) -> Markup:
    """A horizontal bar for a share from 0 to 1, shown next to its number."""
    width = BAR_WIDTH * min(max(share, 0.0), 1.0)
    svg = Markup('<svg viewBox="0 0 {0} 10" width="{0}" height="10" aria-hidden="true">{1}</svg>')
    return svg.format(BAR_WIDTH, _element("rect", "bar", width=width, height=10, rx=2))


def _linear(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    return lambda value: float(start + (value - low) / (high - low) * (end - start))


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers from low to high, at most ``MAX_TICKS``."""
    step = 10.0 ** math.floor(math.log10((high - low) / MAX_TICKS))
    step = next(step * factor for factor in (1, 2, 5, 10, 20) if (high - low) / (step * factor) <= MAX_TICKS)
    return [round(number * step, 12) for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Logarithms of numbers with as few digits as the range allows."""
    for digits in (1, 2, 3, 6):
        values = sorted({float(f"{10**tick:.{digits}g}") for tick in _ticks(low, high)})
        ticks = [math.log10(value) for value in values if low <= math.log10(value) <= high]
        if len(ticks) >= 3:
            break
    return ticks


def _svg(width: int, height: int, text: str, drawing: Iterable[Markup]) -> Markup:
    svg = Markup('<svg viewBox="0 0 {0} {1}" width="{0}" role="img" aria-label="{2}">{3}</svg>')
    return svg.format(width, height, text, Markup("").join(drawing))


def _text(x: float, y: float, text: str, style: str = "tick", anchor: str = "", **attributes: str) -> Markup:
    anchor = anchor or ("start" if style == "label" else "middle")
    return _element("text", style, text, x=x, y=y, text_anchor=anchor, **attributes)


def _line(x1: float, y1: float, x2: float, y2: float, style: str) -> Markup:
    return _element("line", style, x1=x1, y1=y1, x2=x2, y2=y2)


def _element(tag: str, style: str, content: str = "", **attributes: str | float) -> Markup:
    """An SVG element; its content and attributes are escaped."""
    if style:
        attributes = {"class": style, **attributes}
    texts = [
        Markup(' {}="{}"').format(name.replace("_", "-"), f"{value:.1f}" if isinstance(value, float) else value)
        for name, value in attributes.items()
    ]
    return Markup("<{0}{1}>{2}</{0}>").format(tag, Markup("").join(texts), content)
