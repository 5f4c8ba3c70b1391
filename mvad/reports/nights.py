"""The report on several nights: what happened in each, and the flagged images of all of them as one list."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import pyarrow as pa

from mvad import html, results, storage
from mvad.anomaly_maps.colours import legend
from mvad.console import Reporter, plural
from mvad.data.manifest import require_categories
from mvad.errors import UsageError, one_line
from mvad.html.thumbnails import webp_uri
from mvad.nights.labels import read_labels
from mvad.nights.rows import NightRows
from mvad.nights.trends import Trends
from mvad.options import ReportOptions
from mvad.reports.flagged import COLUMNS, MAX_LISTED, Flagged, as_data, merge, plain_rows
from mvad.reports.page import MAX_DETAIL_BYTES, MAX_IMAGES, MAX_SECTION_BYTES, report_environment
from mvad.reports.pictures import QUALITY, Picture, missing_picture, pictures_of, with_few_details
from mvad.results.nights import read_day
from mvad.results.result import Result, exit_code
from mvad.version import VERSION

MAX_TABLE_ROWS = 2_000  # a row per night and category
EXCESS = "CASE WHEN threshold > 0 AND isfinite(threshold) THEN score::DOUBLE / threshold::DOUBLE END AS excess"
NOTED = f"""
    (SELECT *, {EXCESS} FROM rows WHERE status = 'ok' AND (is_anomaly OR verdict = 'uncertain')
    AND ($categories IS NULL OR list_contains($categories, category)))
"""
ORDER = "excess DESC NULLS LAST, score DESC NULLS LAST, category, image_id, night"
LISTED = f"SELECT folder, night, {', '.join(COLUMNS)}, excess FROM {NOTED} ORDER BY {ORDER} LIMIT {MAX_LISTED}"
SHOWN = f"""
    SELECT folder, night, category, image_id, score, p_value, is_anomaly, verdict, label, defect FROM
    (SELECT *, row_number() OVER (PARTITION BY category ORDER BY {ORDER}) AS place FROM {NOTED})
    WHERE place <= $n ORDER BY place, {ORDER} LIMIT {MAX_IMAGES}
"""
COUNTED = f"SELECT category, count(*) AS n FROM {NOTED} GROUP BY category"


class Gallery(NamedTuple):
    """The most anomalous of the flagged and uncertain images of a category."""

    category: str
    images: list[tuple[dict[str, Any], Picture]]  # rows of `SHOWN` with ``said``, as in `NightsOverview.flagged`
    total: int  # with those that are left out


@dataclass(frozen=True)
class NightsOverview:
    """What the report shows.

    Attributes
    ----------
    results
        The folder of nights, without keys.
    rows
        Rows of `Trends`, one for each night and category, the last night first; ``night`` is text.
    flagged
        The list of images, with the columns ``night`` and ``said``, which is what reviewers say of it.
    problems
        What could not be read, a sentence each.
    """

    results: str
    rows: list[dict[str, Any]]
    flagged: Flagged
    galleries: list[Gallery]
    problems: list[str]

    @property
    def nights(self) -> list[str]:
        """The dates of all nights, from the first to the last."""
        return sorted({row["night"] for row in self.rows})

    @property
    def categories(self) -> list[str]:
        return sorted({row["category"] for row in self.rows})

    @property
    def total(self) -> dict[str, int]:
        """Images scored, flagged, uncertain and unreadable, over all nights."""
        names = {"n_scored": "n_images", "n_flagged": "n_flagged", "n_uncertain": "n_uncertain", "n_error": "n_errors"}
        return {name: sum(row[key] for row in self.rows) for name, key in names.items()}

    @property
    def listed_rows(self) -> list[dict[str, Any]]:
        """The rows of the table, as many as a page holds."""
        return self.rows[:MAX_TABLE_ROWS]

    @property
    def n_pictures(self) -> int:
        return sum(len(gallery.images) for gallery in self.galleries)


def report_on_nights(source: str, target: str, options: ReportOptions, reporter: Reporter) -> Result:
    """Write the report on the nights in ``source`` to ``target`` (URIs): one page.

    UsageError if there are none from ``options.since`` to ``options.until``, or a category is unknown.
    """
    if options.models is not None:
        raise UsageError("--models is for the report on one run; leave it out for a folder of nights.")
    nights = NightRows.open(source, read_day("since", options.since), read_day("until", options.until))
    overview = read_nights_overview(nights, options)
    colours = any(picture.map for gallery in overview.galleries for _, picture in gallery.images)
    page = html.render(
        report_environment(),
        "nights.html",
        style="report.css",
        script="report.js",
        overview=overview,
        flagged_rows=plain_rows(overview.flagged),
        flagged_data=as_data(overview.flagged),
        legend=webp_uri(legend(), QUALITY) if colours else None,
        version=VERSION,
    ).encode()
    storage.write(target, page)
    errors = [
        {"image_id": row["image_id"], "category": gallery.category, "split": "test", "error": picture.problem}
        for gallery in overview.galleries
        for row, picture in gallery.images
        if picture.problem
    ]
    for problem in overview.problems:
        reporter.warn(problem)
    reporter.errors(errors, "the report")
    reporter.result(
        f"{plural(len(overview.nights), 'night')} on a page ({html.readable_size(len(page))}) with "
        f"{plural(overview.n_pictures, 'image')}: {storage.readable(target)}"
    )
    return Result(exit_code(options, len(errors), overview.n_pictures), overview.rows, errors)


def read_nights_overview(nights: NightRows, options: ReportOptions) -> NightsOverview:
    """Read what the report shows; nights whose files are damaged are left out and named, unless all are."""
    chosen, problems = {"categories": options.categories}, []
    try:
        found = _Found.read(nights, chosen, options.pictures)
    except UsageError:
        damaged = {folder: problem for folder in nights.files if (problem := _damage(nights, folder, chosen))}
        if len(damaged) == len(nights.files):
            raise
        nights = replace(nights, files={name: files for name, files in nights.files.items() if name not in damaged})
        problems = [f"the night {nights.name_of(name)} is left out: {problem}" for name, problem in damaged.items()]
        found = _Found.read(nights, chosen, options.pictures)
    require_categories(options.categories, {row["category"] for row in found.rows}, nights.root)
    rows = [row for row in found.rows if options.categories is None or row["category"] in options.categories]
    rows.sort(key=lambda row: row["category"])
    rows.sort(key=lambda row: row["night"], reverse=True)
    labels = read_labels(nights.root)
    said = {(row["folder"], row["image_id"]): _in_words(row) for row in labels.current.to_pylist()}

    def opinion(row: Mapping[str, Any]) -> str | None:
        return said.get((nights.name_of(row["folder"]), row["image_id"]))

    listed = found.listed.append_column("said", pa.array(map(opinion, found.listed.to_pylist()), pa.string()))
    listed = listed.set_column(listed.schema.get_field_index("night"), "night", listed["night"].cast(pa.string()))
    shown = [row | {"said": opinion(row), "night": row["night"].isoformat()} for row in found.shown]
    return NightsOverview(
        storage.readable(nights.root),
        [row | {"night": row["night"].isoformat()} for row in rows],
        merge([Flagged(listed, sum(found.counts.values()))]),
        _galleries(shown, found.counts, options.max_pixels),
        problems + labels.problems,
    )


class _Found(NamedTuple):
    """What queries over the rows give."""

    rows: list[dict[str, Any]]  # of `Trends`
    listed: pa.Table
    shown: list[dict[str, Any]]
    counts: dict[str, int]  # of flagged and uncertain images, by category

    @classmethod
    def read(cls, nights: NightRows, chosen: Mapping[str, Any], n_pictures: int) -> "_Found":
        counts = {row["category"]: row["n"] for row in nights.query(COUNTED, chosen).to_pylist()}
        shown = nights.query(SHOWN, {**chosen, "n": n_pictures}).to_pylist()
        return cls(Trends().of(nights), nights.query(LISTED, chosen), shown, counts)


def _damage(nights: NightRows, folder: str, chosen: Mapping[str, Any]) -> str | None:
    """What is wrong with the rows of a night; None if nothing, or if it has none."""
    if not nights.files[folder]:
        return None
    try:
        _Found.read(replace(nights, files={folder: nights.files[folder]}), chosen, 1)
    except UsageError as error:
        return one_line(error)
    return None


def _in_words(label: Mapping[str, Any]) -> str:
    """What a reviewer says of an image."""
    return f"{label['judgement']}: {label['defect']}" if label["defect"] else label["judgement"]


def _galleries(shown: Sequence[dict[str, Any]], counts: Mapping[str, int], max_pixels: int) -> list[Gallery]:
    """Pictures by category, of the first rows in ``shown``, as many as a page holds."""
    groups = defaultdict(list)
    for row in shown:
        groups[row["folder"], row["category"]].append(row["image_id"])
    pictures = {
        (folder, image_id): picture
        for (folder, category), image_ids in groups.items()
        for image_id, picture in _pictures(folder, category, image_ids, max_pixels).items()
    }
    images: dict[str, list[tuple[dict[str, Any], Picture]]] = {category: [] for category in sorted(counts)}
    n_bytes = 0
    thrifty = with_few_details([pictures[row["folder"], row["image_id"]] for row in shown], MAX_DETAIL_BYTES)
    for row, picture in zip(shown, thrifty, strict=True):
        n_bytes += sum(len(uri or "") for uri in (picture.image, picture.map, picture.detail))
        if n_bytes > MAX_SECTION_BYTES:
            break
        images[row["category"]].append((row, picture))
    return [Gallery(category, of_category, counts[category]) for category, of_category in images.items()]


def _pictures(folder: str, category: str, image_ids: Sequence[str], max_pixels: int) -> dict[str, Picture]:
    """Pictures of images of one night and category, also if its files have gone meanwhile."""
    try:
        facts = results.read_run(folder)["categories"][category]
    except (UsageError, KeyError, TypeError):  # as while it is being scored: without maps
        facts = {}
    try:
        found = pictures_of(folder, category, facts, image_ids, max_pixels)
    except UsageError as error:
        return {image_id: missing_picture(image_id, one_line(error)) for image_id in image_ids}
    gone = "its row has gone meanwhile"
    return {image_id: found.get(image_id) or missing_picture(image_id, gone) for image_id in image_ids}
