"""The page of an inspection: what it shows of each category, rendered as one HTML file.

Pictures, categories and points are bounded, however many images there are; the page says what it leaves out.
"""

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
from mvad.inspection.findings import Finding, shared
from mvad.inspection.table import COUNTS, SUBSETS, Z_SCORES, by_category, category_rows, subsets
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
DUPLICATES = {"duplicate_group": "Exact duplicates", "near_group": "Near duplicates"}

Row = dict[str, Any]


@dataclass(frozen=True)
class Section:
    """What the page shows of one category; only the rows shown are Python objects."""

    summary: Row
    sheet: list[tuple[str, int, list[Row]]]  # subset or defect, how many images it has, and those shown
    duplicates: list[tuple[str, list[list[Row]], int]]  # title, some groups, cut to few images, and how many there are
    outliers: list[Row]
    n_outliers: int
    values: dict[str, NDArray[Any]]  # brightness, sharpness and subset of all readable images
    series: dict[str, Series]  # what the scatter plot tells apart
    plotted: list[Row]  # in the scatter plot

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
        charts = {}
        for quantity, meaning, log in (("brightness", "mean grey value", False), ("sharpness", "logarithmic", True)):
            groups = {name: self.values[quantity][self.values["subset"] == name] for name in SUBSETS}
            charts[quantity.capitalize()] = histogram(groups, quantity=quantity, meaning=meaning, log=log)
        return charts

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


def pictured_rows(images: pa.Table) -> list[int]:
    """Rows of the image table that the page shows as pictures."""
    return sorted(set().union(*(section.pictured for section in sections(images))))


def sections(images: pa.Table) -> list[Section]:
    """The categories shown in detail: all, or those with the most findings, in their order."""
    categories, summaries = by_category(images), category_rows(images)
    n_findings = [sum(row[name] for name in ("n_error", "n_outlier", "n_duplicate", "n_near")) for row in summaries]
    numbers = sorted(np.argsort([-count for count in n_findings], kind="stable")[:MAX_SECTIONS].tolist())
    scale = min(1.0, MAX_PICTURES / (PICTURES_PER_CATEGORY * len(numbers)))
    return [_section(summaries[number], categories[number], scale) for number in numbers]


def _section(summary: Row, category: tuple[str, int, pa.Table], scale: float) -> Section:
    """The section of a category of `by_category`; ``scale`` bounds the pictures."""
    _, start, images = category
    subset = subsets(images)
    defect = np.array(images["defect"].to_pylist(), object)
    named = (subset == "defect") & ~np.isin(defect.astype(str), ["", "None", *MAX_SHEET_PICTURES])
    names = np.where(named, defect, subset)  # a defect that is named like a subset stays ``defect``
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
    z_scores = np.nan_to_num([images[f"{name}_z"].to_numpy().astype(float) for name in Z_SCORES])
    largest = np.abs(z_scores).max(axis=0)
    order = np.lexsort((-largest[outliers], subset[outliers] != "train", subset[outliers] == "defect"))
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
    """Render the HTML page; ``facts`` are those of the JSON file, ``pictures`` JPEG files by row of the image table."""
    failed = images.select(["image_id", "error"]).filter(pc.is_valid(images["error"]))
    totals = {name: sum(row[name] for row in summary) for name in (*COUNTS, "bytes")}
    return html.render(
        html.environment("mvad.inspection", {}),
        "inspect.html",
        "inspect.css",
        facts=facts,
        summary=summary,
        findings=shared(findings),
        sections=sections(images),
        pictures={row: data_uri(data, "image/jpeg") for row, data in pictures.items()},
        errors=failed.slice(0, MAX_ERRORS).to_pylist(),
        totals=totals,
        columns={name: title for name, (title, _) in COUNTS.items() if name != "n_unlabelled" or totals[name]},
        options=options,
    )
