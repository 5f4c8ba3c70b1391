"""The page of an inspection: what is shown of each category, and rendering it as one HTML file.

Pictures, categories and points are bounded, however many images there are; the page says what it leaves out.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from typing import Any

import jinja2
import numpy as np
import pyarrow as pa
from markupsafe import Markup

from mvad.inspection import charts
from mvad.inspection.findings import Finding
from mvad.inspection.table import by_category, category_rows, kinds
from mvad.manifest import evenly_spaced
from mvad.options import InspectOptions

SECTIONS = 40  # categories that are shown in full
PICTURES = 600  # about so many on the page
SHEET = {"train": 12, "good": 6, "unlabelled": 12}  # pictures of a category
DEFECT = 4  # pictures of each kind of defect
GROUPS, GROUP = 6, 6  # groups of twins shown, and images of one
OUTLIERS = 8
A_CATEGORY = 90  # pictures of an ordinary category, if all are shown
LISTED_ERRORS = 200

Row = dict[str, Any]


@dataclass(frozen=True)
class Section:
    """What is shown of one category; rows are those of the image table with ``row`` and ``name`` added."""

    summary: Row
    sheet: list[tuple[str, int, list[Row]]]  # kind or defect, how many there are, those shown
    same: list[list[Row]]
    n_same: int  # groups
    near: list[list[Row]]
    n_near: int
    outliers: list[Row]
    n_outliers: int
    rows: list[Row]

    @property
    def pictured(self) -> set[int]:
        groups = [shown for _, _, shown in self.sheet] + self.same + self.near + [self.outliers]
        return {row["row"] for group in groups for row in group}

    @cached_property
    def readable(self) -> list[Row]:
        return [row for row in self.rows if row["error"] is None]

    @cached_property
    def series(self) -> dict[str, charts.Series]:
        return charts.series_of([row["name"] for row in self.readable])

    @property
    def histograms(self) -> list[charts.Histogram]:
        if not self.readable:
            return []
        names = [row["kind"] for row in self.readable]
        values = {name: np.array([row[name] for row in self.readable]) for name in ("brightness", "sharpness")}
        return [
            charts.histogram("brightness (mean grey value)", values["brightness"], names),
            charts.histogram("sharpness (log scale)", values["sharpness"], names, logarithmic=True),
        ]

    @property
    def points(self) -> list[charts.Point]:
        return charts.points([row for row in self.readable if row["map_x"] is not None], self.series)


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
    rows = table.drop_columns(["uri", "mask_uri", "sha256", "pixel_sha256"]).to_pylist()
    for number, (row, kind) in enumerate(zip(rows, kinds(table), strict=True)):
        row |= {"row": start + number, "kind": kind, "name": kind}
        if kind == "defect":
            row["name"] = row["defect"] if row["defect"] not in (None, "", *SHEET) else "defect"

    def most(count: int) -> int:
        return max(2, round(count * scale))

    readable = [row for row in rows if row["error"] is None]
    sheet = []
    for name in charts.series_of([row["name"] for row in readable]):
        own = [row for row in readable if row["name"] == name]
        picks = evenly_spaced(len(own), most(SHEET.get(name, DEFECT)))
        sheet.append((name, len(own), [own[pick] for pick in picks]))
    same, near = (_groups(readable, column) for column in ("duplicate_group", "near_group"))
    outliers = sorted(
        (row for row in readable if row["outlier"]),
        key=lambda row: (row["kind"] == "defect", row["kind"] != "train", -_how_far(row)),
    )
    return Section(
        summary,
        sheet,
        [group[: most(GROUP)] for group in same[: most(GROUPS)]],
        len(same),
        [group[: most(GROUP)] for group in near[: most(GROUPS)]],
        len(near),
        outliers[: most(OUTLIERS)],
        len(outliers),
        rows,
    )


def _how_far(row: Row) -> float:
    return max(abs(row[name] or 0.0) for name in ("brightness_z", "sharpness_z", "unusual_z"))


def _groups(rows: Sequence[Row], column: str) -> list[list[Row]]:
    """Twins: groups with different kinds of images first, then the largest."""
    found: dict[int, list[Row]] = {}
    for row in rows:
        if row[column] is not None:
            found.setdefault(row[column], []).append(row)
    return sorted(found.values(), key=lambda group: (-len({row["kind"] for row in group}), -len(group)))


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
        """The HTML of the page: nothing is loaded from anywhere, nothing in it runs, and all names are escaped."""
        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("mvad.inspection"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.filters |= {"thousands": "{:,}".format, "size": _size}
        style = (files("mvad.inspection") / "templates/inspect.css").read_text()
        digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
        encoded = {row: base64.b64encode(data).decode() for row, data in self.pictures.items()}
        errors = [row for row in self.table.select(["image_id", "error"]).to_pylist() if row["error"] is not None]
        return environment.get_template("inspect.html").render(
            facts=self.facts,
            summary=self.summary,
            findings=self.findings,
            sections=sections(self.table),
            pictures=encoded,
            errors=errors[:LISTED_ERRORS],
            n_errors=len(errors),
            totals=_totals(self.summary),
            style=Markup(style),
            style_hash=digest,
            side=charts.SIDE,
            options=self.options,
        )


def _totals(summary: Sequence[Row]) -> dict[str, int]:
    names = ("n_train", "n_good", "n_defect", "n_unlabelled", "n_duplicate", "n_near", "n_outlier", "bytes")
    return {name: sum(row[name] for row in summary) for name in names}


def _size(count: float) -> str:
    """Bytes as a person reads them."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
