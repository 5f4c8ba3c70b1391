"""What other thresholds would flag of a category's images: exact counts at thresholds that a page lets a person try."""

import shlex
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mvad.storage.text import visible

MAX_STOPS = 512  # thresholds to try; if scores differ more often, most are where few images are flagged
MARGIN = 0.05  # of the range of scores, by which the lowest threshold lies below it and the highest above


@dataclass(frozen=True)
class Stops:
    """Thresholds to try, ascending, and how many images each flags.

    Attributes
    ----------
    values : (n,) float64
        No two flag the same images: the first flags all, the last none.
    starts : (n,) float64
        Where thresholds begin that flag the same images as these.
    flagged, found, false_alarms : (n,) int
        Images that score above: all of them, those labelled defective, and those labelled good.
    present
        The number of the threshold that decided; None if there is none.
    n_images, n_defective, n_good
        Images in all, and by label.
    complete
        Whether every set of images that some threshold would flag is there.
    """

    values: NDArray[np.float64]
    starts: NDArray[np.float64]
    flagged: NDArray[np.int64]
    found: NDArray[np.int64]
    false_alarms: NDArray[np.int64]
    present: int | None
    n_images: int
    n_defective: int
    n_good: int
    complete: bool

    @property
    def data(self) -> dict[str, Any]:
        """The stops as a page embeds them."""
        arrays = ("values", "starts", "flagged", "found", "false_alarms")
        numbers = ("present", "n_images", "n_defective", "n_good")
        return {name: getattr(self, name).tolist() for name in arrays} | {name: getattr(self, name) for name in numbers}


def stops(scores: NDArray[np.float32], labels: NDArray[np.int8], threshold: float | None) -> Stops | None:
    """Thresholds to try on images with (n,) scores and labels (0 good, 1 defective, -1 none); None without images."""
    if not len(scores):
        return None
    exact = scores.astype(np.float64)  # as verdicts compare them
    distinct = np.unique(exact)
    span = MARGIN * max(distinct[-1] - distinct[0], abs(distinct[-1]), 1e-6)
    edges = np.concatenate([[distinct[0] - span], distinct, [distinct[-1] + span]])  # between two, all flag the same
    present = None if threshold is None else int(np.searchsorted(distinct, threshold, side="right"))
    numbers = _numbers(len(distinct) + 1, present)
    values = np.array([_shortest_between(edges[number], edges[number + 1]) for number in numbers])
    if present is not None:
        present = int(np.searchsorted(numbers, present))
        values[present] = threshold
    groups = (exact, exact[labels == 1], exact[labels == 0])
    flagged, found, false_alarms = (
        len(group) - np.searchsorted(np.sort(group), values, side="right") for group in groups
    )
    n_images, n_defective, n_good = map(len, groups)
    complete = len(numbers) == len(distinct) + 1
    counts = {"n_images": n_images, "n_defective": n_defective, "n_good": n_good}
    return Stops(values, edges[numbers], flagged, found, false_alarms, present, complete=complete, **counts)


def _numbers(count: int, present: int | None) -> NDArray[np.int64]:
    """Of so many intervals those to try, ascending: half of them evenly spaced, half ever denser towards the last."""
    if count <= MAX_STOPS:
        return np.arange(count)
    half = MAX_STOPS // 2
    from_last = np.concatenate([np.geomspace(1, count, half), np.linspace(1, count, half - 1)]).round()
    numbers = count - from_last.astype(np.int64)
    return np.unique(numbers if present is None else np.append(numbers, present))


def _shortest_between(low: float, high: float) -> float:
    """A number of few digits that is at least ``low`` and below ``high``."""
    middle = low + (high - low) / 2
    for digits in range(2, 18):
        value = float(f"{middle:.{digits}g}")
        if low <= value < high:
            return value
    return float(low)


def command(results: str, category: str) -> tuple[str, str] | None:
    """What is before and after the threshold in the command that sets it; None if it cannot name the category.

    ``results`` is the folder as a person writes it.
    """
    if category != category.strip() or category in ("", "*") or "," in category:
        return None
    if visible(category) != category or visible(results) != results:
        return None
    before, _, after = shlex.quote(f"{category}=0").rpartition("0")
    return f"mvad evaluate {shlex.quote(results)} --threshold {before}", after
