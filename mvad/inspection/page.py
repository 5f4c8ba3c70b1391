"""The page of an inspection: what it shows of each category, rendered as one HTML file.

Pictures, categories and points are bounded, however many images there are; the page says what it leaves out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup
from numpy.typing import NDArray

from mvad import html
from mvad.data.sampling import evenly_spaced
from mvad.html.charts import Chart, Series, histogram, scatter, series_of
from mvad.html.thumbnails import data_uri
from mvad.inspection.findings import Finding
from mvad.inspection.table import SUBSETS, Z_SCORES, by_category, category_rows, subsets
from mvad.options import InspectOptions

MAX_SECTIONS = 40  # categories shown in detail
MAX_PICTURES = 600  # on the page, approximately
PICTURES_PER_CATEGORY = 90  # of an ordinary category, if all are shown
MAX_SHEET_PICTURES = {"train": 12, "good": 6, "unlabelled": 12}
MAX_DEFECT_PICTURES = 4  # of each defect type
MAX_GROUPS, MAX_GROUP_IMAGES = 6, 6  # of duplicates
MAX_OUTLIERS = 8
MAX_ERRORS = 200
SHOWN_COLUMNS = ["image_id", "width", "height", "near_similarity", "outlier", "map_x", "map_y"]
COLUMNS = {  # of the table of categories
    "n_train": "train",
    "n_good": "good",
    "n_defect": "defect",
    "n_unlabelled": "unlabelled",
    "n_error": "unreadable",
    "n_duplicate": "exact duplicates",
    "n_near": "near duplicates",
    "n_outlier": "outliers",
}
DUPLICATES = {"duplicate_group": "Exact duplicates", "near_group": "Near duplicates"}

Row = dict[str, Any]


@dataclass(frozen=True)
class Section:
    """What the page shows of one category; only the rows shown are Python objects.

    Attributes
    ----------
    sheet
        Subset or defect, how many images it has, and those shown.
    duplicates
        Title, groups shown, each cut to a few images, and the number of all groups.
    values
        ``brightness`` and ``sharpness`` of all readable images, and their ``subset``.
    series
        What the scatter plot tells apart.
    plotted
        The images in the scatter plot.
    """

    summary: Row
    sheet: list[tuple[str, int, list[Row]]]
    duplicates: list[tuple[str, list[list[Row]], int]]
    outliers: list[Row]
    n_outliers: int
    values: dict[str, NDArray[Any]]
    series: dict[str, Series]
    plotted: list[Row]

    @property
    def pictured(self) -> set[int]:
        """Rows of the image table that are shown as pictures."""
        groups = [shown for _, _, shown in self.sheet] + [self.outliers]
        groups += [group for _, shown, _ in self.duplicates for group in shown]
        return {row["row"] for group in groups for row in group}

    @property
    def n_readable(self) -> int:
        return len(self.values["subset"])

    @property
    def histograms(self) -> dict[str, Chart | None]:
        brightness, sharpness = (
            {name: self.values[quantity][self.values["subset"] == name] for name in SUBSETS}
            for quantity in ("brightness", "sharpness")
        )
        return {
            "Brightness": histogram(brightness, quantity="brightness", meaning="mean grey value"),
            "Sharpness": histogram(sharpness, quantity="sharpness", meaning="logarithmic", log=True),
        }

    @property
    def scatter_plot(self) -> Markup:
        """The images by their features, defective ones on top."""
        order = {name: number for number, name in enumerate(self.series)}
        rows = sorted(self.plotted, key=lambda row: order[row["name"]])
        return scatter(
            f"Scatter plot of the features of {len(rows)} images; images that look alike are close to each other.",
            np.array([(row["map_x"], row["map_y"]) for row in rows], np.float32),
            [self.series[row["name"]] for row in rows],
            [f"{row['image_id']} ({', '.join(filter(None, (row['name'], row['outlier'])))})" for row in rows],
            [row["outlier"] is not None and row["subset"] != "defect" for row in rows],
        )


def sections(images: pa.Table) -> list[Section]:
    """The categories shown in detail: all, or those with the most findings, in their order."""
    categories = by_category(images)
    summaries = category_rows(images)
    n_found = [sum(row[name] for name in ("n_error", "n_outlier", "n_duplicate", "n_near")) for row in summaries]
    numbers = sorted(np.argsort([-count for count in n_found], kind="stable")[:MAX_SECTIONS].tolist())
    scale = min(1.0, MAX_PICTURES / (PICTURES_PER_CATEGORY * len(numbers)))
    starts = np.cumsum([0, *(len(rows) for _, rows in categories)]).tolist()
    return [_section(summaries[number], categories[number][1], starts[number], scale) for number in numbers]


def pictured_rows(images: pa.Table) -> list[int]:
    """Rows of the image table that the page shows as pictures."""
    return sorted(set().union(*(section.pictured for section in sections(images))))


def _section(summary: Row, images: pa.Table, start: int, scale: float) -> Section:
    """The section of a category whose images begin at row ``start`` of the image table; ``scale`` bounds pictures."""
    subset = subsets(images)
    names = _series_names(images, subset)
    readable = pc.is_null(images["error"]).to_numpy()

    def scaled(count: int) -> int:
        return max(2, round(count * scale))

    def shown(numbers: NDArray[np.int64]) -> list[Row]:
        rows = images.select(SHOWN_COLUMNS).take(pa.array(numbers)).to_pylist()
        return [
            {**row, "row": start + int(number), "subset": subset[number], "name": names[number]}
            for row, number in zip(rows, numbers, strict=True)
        ]

    series = series_of(names[readable])
    sheet = []
    for name in series:
        members = np.flatnonzero(readable & (names == name))
        picked = members[evenly_spaced(len(members), scaled(MAX_SHEET_PICTURES.get(name, MAX_DEFECT_PICTURES)))]
        sheet.append((name, len(members), shown(picked)))
    duplicates = []
    for column, title in DUPLICATES.items():
        groups = _groups(pc.fill_null(images[column], -1).to_numpy(), subset)
        picks = [group[evenly_spaced(len(group), scaled(MAX_GROUP_IMAGES))] for group in groups[: scaled(MAX_GROUPS)]]
        duplicates.append((title, [shown(numbers) for numbers in picks], len(groups)))
    outliers = np.flatnonzero(pc.is_valid(images["outlier"]).to_numpy())
    order = np.lexsort((-_largest_z(images)[outliers], subset[outliers] != "train", subset[outliers] == "defect"))
    values = {name: images[name].to_numpy()[readable] for name in ("brightness", "sharpness")}
    return Section(
        summary=summary,
        sheet=sheet,
        duplicates=duplicates,
        outliers=shown(outliers[order[: scaled(MAX_OUTLIERS)]]),
        n_outliers=len(outliers),
        values={**values, "subset": subset[readable]},
        series=series,
        plotted=shown(np.flatnonzero(pc.is_valid(images["map_x"]).to_numpy())),
    )


def _series_names(images: pa.Table, subset: NDArray[np.object_]) -> NDArray[np.object_]:
    """The subset of each image, or its defect; a defect that is named like a subset stays ``defect``."""
    defect = np.array(images["defect"].to_pylist(), object)
    named = (subset == "defect") & ~np.isin(defect.astype(str), ["", "None", *MAX_SHEET_PICTURES])
    return np.where(named, defect, subset)


def _largest_z(images: pa.Table) -> NDArray[np.float64]:
    columns = [np.abs(images[f"{name}_z"].to_numpy().astype(float)) for name in Z_SCORES]
    return np.max(np.nan_to_num(columns), axis=0)


def _groups(groups: NDArray[np.int64], subset: NDArray[np.object_]) -> list[NDArray[np.int64]]:
    """Row numbers of the members of each group: groups that span several subsets first, then the largest."""
    grouped = np.flatnonzero(groups >= 0)
    if not len(grouped):
        return []
    by_group = grouped[np.argsort(groups[grouped], kind="stable")]
    members = np.split(by_group, np.flatnonzero(np.diff(groups[by_group])) + 1)
    return sorted(members, key=lambda numbers: (-len(set(subset[numbers])), -len(numbers)))


def render_page(
    facts: Mapping[str, Any],
    summary: Sequence[Row],
    findings: Sequence[Finding],
    images: pa.Table,
    pictures: Mapping[int, bytes],
    options: InspectOptions,
) -> str:
    """Render the HTML page.

    Parameters
    ----------
    facts
        Of the inspection as a whole: as in the JSON file.
    summary
        One row per category.
    pictures
        JPEG files by row of the image table.
    """
    failed = images.select(["image_id", "error"]).filter(pc.is_valid(images["error"]))
    totals = {name: sum(row[name] for row in summary) for name in (*COLUMNS, "bytes")}
    return html.render(
        html.environment("mvad.inspection", {}),
        "inspect.html",
        "inspect.css",
        facts=facts,
        summary=summary,
        findings=findings,
        sections=sections(images),
        pictures={row: data_uri(data, "image/jpeg") for row, data in pictures.items()},
        errors=failed.slice(0, MAX_ERRORS).to_pylist(),
        totals=totals,
        columns={name: title for name, title in COLUMNS.items() if name != "n_unlabelled" or totals[name]},
        options=options,
    )
