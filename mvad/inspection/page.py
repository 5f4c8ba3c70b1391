"""The page of an inspection: what is shown of each category, and rendering it as one HTML file.

Pictures, categories and points are bounded, however many images there are; the page says what it leaves out.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mvad import html as pages
from mvad.data.sampling import evenly_spaced
from mvad.inspection import charts
from mvad.inspection.findings import Finding
from mvad.inspection.table import by_category, category_rows, kinds
from mvad.options import InspectOptions

SECTIONS = 40  # categories that are shown in full
PICTURES = 600  # about so many on the page
SHEET = {"train": 12, "good": 6, "unlabelled": 12}  # pictures of a category
DEFECT = 4  # pictures of each kind of defect
GROUPS, GROUP = 6, 6  # groups of twins shown, and images of one
OUTLIERS = 8
A_CATEGORY = 90  # pictures of an ordinary category, if all are shown
LISTED_ERRORS = 200

SHOWN = ["image_id", "width", "height", "near_similarity", "outlier", "map_x", "map_y"]

Row = dict[str, Any]


@dataclass(frozen=True)
class Section:
    """What is shown of one category; only the rows that are shown are Python objects.

    Attributes
    ----------
    sheet
        Kind or defect, how many images there are of it, and those shown.
    same, near
        Groups of twins shown, each cut to a few.
    values
        ``brightness`` and ``sharpness`` of all readable images, and their ``kind``.
    series
        What the map tells apart.
    drawn
        The images on the map.
    """

    summary: Row
    sheet: list[tuple[str, int, list[Row]]]
    same: list[list[Row]]
    n_same: int
    near: list[list[Row]]
    n_near: int
    outliers: list[Row]
    n_outliers: int
    values: dict[str, NDArray[Any]]
    series: dict[str, charts.Series]
    drawn: list[Row]

    @property
    def pictured(self) -> set[int]:
        groups = [shown for _, _, shown in self.sheet] + self.same + self.near + [self.outliers]
        return {row["row"] for group in groups for row in group}

    @property
    def n_readable(self) -> int:
        return len(self.values["kind"])

    @cached_property
    def kinds(self) -> dict[str, charts.Series]:
        """What the histograms tell apart."""
        return charts.series_of(self.values["kind"])

    @property
    def histograms(self) -> list[charts.Histogram]:
        kind = self.values["kind"]
        return [
            charts.histogram("brightness (mean grey value)", self.values["brightness"], kind),
            charts.histogram("sharpness (log scale)", self.values["sharpness"], kind, logarithmic=True),
        ]

    @property
    def points(self) -> list[charts.Point]:
        return charts.points(self.drawn, self.series)


def sections(table: pa.Table) -> list[Section]:
    """The categories that are shown in full: all, or those where most was found, sorted by name."""
    parts = by_category(table)
    summaries = category_rows(table)
    found = [sum(row[name] for name in ("n_error", "n_outlier", "n_duplicate", "n_near")) for row in summaries]
    chosen = sorted(np.argsort([-count for count in found], kind="stable")[:SECTIONS].tolist())
    scale = min(1.0, PICTURES / (A_CATEGORY * len(chosen)))
    starts = np.cumsum([0, *(len(part) for _, part in parts)]).tolist()
    return [_section(summaries[place], parts[place][1], starts[place], scale) for place in chosen]


def shown_rows(table: pa.Table) -> list[int]:
    """Rows of the image table that the page has pictures of."""
    return sorted(set().union(*(section.pictured for section in sections(table))))


def _section(summary: Row, table: pa.Table, start: int, scale: float) -> Section:
    kind = kinds(table)
    names = _names(table, kind)
    readable = pc.is_null(table["error"]).to_numpy()

    def most(count: int) -> int:
        return max(2, round(count * scale))

    def shown(places: NDArray[np.int64]) -> list[Row]:
        rows = table.select(SHOWN).take(pa.array(places)).to_pylist()
        return [
            {**row, "row": start + int(place), "kind": kind[place], "name": names[place]}
            for row, place in zip(rows, places, strict=True)
        ]

    series = charts.series_of(names[readable])
    sheet = []
    for name in series:
        own = np.flatnonzero(readable & (names == name))
        sheet.append((name, len(own), shown(own[evenly_spaced(len(own), most(SHEET.get(name, DEFECT)))])))
    twins = []
    for column in ("duplicate_group", "near_group"):
        groups = _groups(pc.fill_null(table[column], -1).to_numpy(), kind)
        picks = [group[evenly_spaced(len(group), most(GROUP))] for group in groups[: most(GROUPS)]]
        twins.append(([shown(places) for places in picks], len(groups)))
    outliers = np.flatnonzero(pc.is_valid(table["outlier"]).to_numpy())
    order = np.lexsort((-_how_far(table)[outliers], kind[outliers] != "train", kind[outliers] == "defect"))
    values = {name: table[name].to_numpy()[readable] for name in ("brightness", "sharpness")}
    return Section(
        summary,
        sheet,
        *twins[0],
        *twins[1],
        shown(outliers[order[: most(OUTLIERS)]]),
        len(outliers),
        {**values, "kind": kind[readable]},
        series,
        shown(np.flatnonzero(pc.is_valid(table["map_x"]).to_numpy())),
    )


def _names(table: pa.Table, kind: NDArray[np.object_]) -> NDArray[np.object_]:
    """The kind of each image, or its defect; a defect that is called as a kind keeps apart from it."""
    defect = np.array(table["defect"].to_pylist(), object)
    named = (kind == "defect") & ~np.isin(defect.astype(str), ["", "None", *SHEET])
    return np.where(named, defect, kind)


def _how_far(table: pa.Table) -> NDArray[np.float64]:
    """The largest of the z-scores of each image."""
    columns = [np.abs(table[name].to_numpy().astype(float)) for name in ("brightness_z", "sharpness_z", "unusual_z")]
    return np.max(np.nan_to_num(columns), axis=0)


def _groups(groups: NDArray[np.int64], kind: NDArray[np.object_]) -> list[NDArray[np.int64]]:
    """Places of the members of each group: groups with several kinds of images first, then the largest."""
    grouped = np.flatnonzero(groups >= 0)
    if not len(grouped):
        return []
    by_group = grouped[np.argsort(groups[grouped], kind="stable")]
    members = np.split(by_group, np.flatnonzero(np.diff(groups[by_group])) + 1)
    return sorted(members, key=lambda places: (-len(set(kind[places])), -len(places)))


@dataclass(frozen=True)
class Page:
    """All that the page shows.

    Attributes
    ----------
    facts
        Of the inspection as a whole: as in the JSON file.
    pictures
        JPEG bytes by row of the image table.
    """

    facts: Mapping[str, Any]
    summary: Sequence[Row]
    findings: Sequence[Finding]
    table: pa.Table
    pictures: Mapping[int, bytes]
    options: InspectOptions

    def render(self) -> str:
        """The HTML of the page."""
        encoded = {row: base64.b64encode(data).decode() for row, data in self.pictures.items()}
        bad = self.table.select(["image_id", "error"]).filter(pc.is_valid(self.table["error"]))
        return pages.render(
            pages.environment("mvad.inspection", {}),
            "inspect.html",
            "inspect.css",
            facts=self.facts,
            summary=self.summary,
            findings=self.findings,
            sections=sections(self.table),
            pictures=encoded,
            errors=bad.slice(0, LISTED_ERRORS).to_pylist(),
            n_errors=len(bad),
            totals=_totals(self.summary),
            side=charts.SIDE,
            options=self.options,
        )


def _totals(summary: Sequence[Row]) -> dict[str, int]:
    names = ("n_train", "n_good", "n_defect", "n_unlabelled", "n_duplicate", "n_near", "n_outlier", "bytes")
    return {name: sum(row[name] for row in summary) for name in names}
