"""What all pages of a report say, and writing them: run, summary, warnings, and one section per category."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import quote

from jinja2 import Environment
from markupsafe import Markup

from mvad import html, results, storage
from mvad.anomaly_maps.colours import legend
from mvad.data.manifest import require_categories
from mvad.errors import ResultsError
from mvad.html.charts import bar
from mvad.html.thumbnails import webp_uri
from mvad.options import ReportOptions
from mvad.reports.category import Category, read_category
from mvad.reports.flagged import Flagged, as_data, merge, plain_rows
from mvad.reports.pictures import QUALITY, category_pictures
from mvad.reports.thresholds import command

MAX_IMAGES, MAX_CATEGORIES = 800, 40  # on a single page, which then has about 8 MB
MAX_SECTION_BYTES = 12_000_000  # of all categories on a single page; with the list of flagged images, below 15 MB
MAX_DETAIL_BYTES = 3_000_000  # of all pictures on a page that show an image's own pixels
COLUMNS = (  # of the summary table: key, title, filter that shows the value
    ("method", "Method", "name"),
    ("n_train", "Training images", "count"),
    ("n_scored", "Scored", "count"),
    ("n_flagged", "Flagged", "count"),
    ("n_uncertain", "Uncertain", "count"),
    ("n_good", "Good", "count"),
    ("n_defect", "Defective", "count"),
    ("n_error", "Unreadable", "count"),
    ("image_auroc", "AUROC", "metric"),
    ("image_ap", "Average precision", "metric"),
    ("image_f1_max", "Best F1 in hindsight", "metric"),
    ("recall_at_threshold", "Recall", "percent"),
    ("false_alarm_rate", "False alarms", "percent"),
    ("pixel_auroc", "Pixel AUROC", "metric"),
    ("pixel_ap", "Pixel AP", "metric"),
    ("pixel_aupro", "AUPRO", "metric"),
    ("drift_median_shift", "Score shift", "shift"),
    ("fit_seconds", "Fit (s)", "seconds"),
    ("images_per_second", "Images/s", "seconds"),
)
URI_OPTIONS = ("weights", "address")


@dataclass(frozen=True)
class Overview:
    """What all pages of a report show.

    Attributes
    ----------
    results
        The results folder, without keys.
    run, summary
        ``run.json``, and the rows of ``summary.json``.
    mean
        The row of means; None where the page shows fewer than two categories, or not all of them.
    damaged
        Categories that are not shown, because a file of their rows is damaged.
    """

    results: str
    run: Mapping[str, Any]
    summary: list[dict[str, Any]]
    categories: Sequence[Category]
    mean: Mapping[str, Any] | None
    damaged: Mapping[str, ResultsError]

    @property
    def columns(self) -> list[tuple[str, str, str]]:
        """The columns of the summary table that hold a value for some category and say something."""
        rows = [category.summary for category in self.categories]
        hidden = set()
        if all(category.threshold is None for category in self.categories):
            hidden.add("n_flagged")
        if all(category.facts.get("uncertain_threshold") is None for category in self.categories):
            hidden.add("n_uncertain")
        if not any(row.get("n_good") or row.get("n_defect") for row in rows):
            hidden |= {"n_good", "n_defect"}
        if len({row.get("method") for row in rows}) < 2:  # the sections say it
            hidden.add("method")
        columns = [column for column in COLUMNS if column[0] not in hidden]
        return [column for column in columns if any(row.get(column[0]) is not None for row in rows)]

    @property
    def total(self) -> dict[str, int]:
        """Images scored, flagged, uncertain and unreadable, over all categories on the page."""
        names = ("n_scored", "n_flagged", "n_uncertain", "n_error")
        return {name: sum(category.summary.get(name) or 0 for category in self.categories) for name in names}

    @functools.cached_property
    def flagged(self) -> Flagged:
        """The flagged and uncertain images of all categories, the most anomalous first."""
        return merge([category.flagged for category in self.categories])

    @property
    def has_threshold(self) -> bool:
        return any(category.summary.get("threshold") is not None for category in self.categories)

    @property
    def n_pictures(self) -> int:
        return sum(len(category.shown_ids) for category in self.categories)

    @property
    def warnings(self) -> list[tuple[int, str]]:
        """What a reader should know first: the number of a category, from 1, and a sentence."""
        return [
            (number, text.removeprefix(f"{category.name}: "))
            for number, category in enumerate(self.categories, start=1)
            for text in (category.facts.get("warning"), category.facts.get("note"))
            if text
        ]

    @property
    def options(self) -> dict[str, str]:
        """The options of the run as text, without keys of object storage."""
        texts = {
            name: "default" if value is None else str(value) for name, value in self.run.get("options", {}).items()
        }
        uris = {name: texts[name] for name in URI_OPTIONS if "://" in texts.get(name, "")}
        return texts | {name: storage.readable(uri) for name, uri in uris.items()}


def read_overview(source: str, run: Mapping[str, Any], options: ReportOptions) -> Overview:
    """Read the results folder ``source`` (a URI) of a finished run; UsageError if a category is unknown."""
    models = storage.to_uri(options.models) if options.models else None
    summary = results.read_summary(source)
    rows = {row["category"]: row for row in summary[:-1]}  # the last row is the mean
    names = sorted({category for category, _ in results.list_parts(source)})
    require_categories(options.categories, names, source)
    categories: list[Category] = []
    damaged: dict[str, ResultsError] = {}
    for name in names:
        if options.categories is not None and name not in options.categories:
            continue
        facts = run["categories"].get(name, {})
        try:
            categories.append(read_category(source, name, facts, rows.get(name, {}), models, options.pictures))
        except ResultsError as error:
            damaged[name] = error
    if damaged and not categories:
        raise next(iter(damaged.values()))
    mean = summary[-1] if summary and len(categories) > 1 and options.categories is None else None
    return Overview(storage.readable(source), run, summary, categories, mean, damaged)


class Pages(NamedTuple):
    """The pages written: their number and bytes, and the source images that could not be shown."""

    n_pages: int
    n_bytes: int
    errors: list[dict[str, str]]


def write_pages(overview: Overview, source: str, target: str, max_pixels: int) -> Pages:
    """Write the report on the results in ``source`` to ``target``, and its other pages next to it (URIs)."""
    env = report_environment()
    render = functools.partial(html.render, env, style="report.css", script="report.js", overview=overview)
    file = storage.readable(target).rpartition("/")[2]
    stem = file.removesuffix(".html")
    split = overview.n_pictures > MAX_IMAGES or len(overview.categories) > MAX_CATEGORIES
    waiting: list[tuple[Category, Markup]] = []  # sections that are not on a page yet
    errors = [
        {"image_id": name, "category": name, "split": "test", "error": str(error)}
        for name, error in overview.damaged.items()
    ]
    max_detail_bytes = MAX_DETAIL_BYTES // (1 if split else max(1, len(overview.categories)))
    n_bytes = 0
    for number, category in enumerate(overview.categories, start=1):
        pictures = category_pictures(source, category, max_pixels, max_detail_bytes)
        errors += [
            {"image_id": picture.image_id, "category": category.name, "split": "test", "error": picture.problem}
            for picture in pictures.values()
            if picture.problem
        ]
        anchor = f"category-{number}"
        colours = webp_uri(legend(), QUALITY) if any(picture.map for picture in pictures.values()) else None
        content = {
            "overview": overview,
            "category": category,
            "pictures": pictures,
            "anchor": anchor,
            "legend": colours,
            "command": command(overview.results, category.name),
        }
        waiting.append((category, Markup(env.get_template("section.html").render(content))))
        split = split or sum(len(section) for _, section in waiting) > MAX_SECTION_BYTES
        while split and waiting:
            written, section = waiting.pop(0)
            page = render("category.html", category=written, section=section, back=quote(f"../{file}")).encode()
            storage.write(storage.join(storage.sibling(target, stem), _file_name(written)), page)
            n_bytes += len(page)
    if split:
        links = [f"{quote(stem)}/{quote(_file_name(category))}" for category in overview.categories]
    else:
        links = [f"#category-{number}" for number in range(1, len(overview.categories) + 1)]
    sections = [section for _, section in waiting]
    rows, data = plain_rows(overview.flagged), as_data(overview.flagged)
    page = render("page.html", sections=sections, links=links, flagged_rows=rows, flagged_data=data).encode()
    storage.write(target, page)
    return Pages(1 + split * len(overview.categories), n_bytes + len(page), errors)


def _file_name(category: Category) -> str:
    return f"{storage.folder_name(category.name)}.html"


def report_environment() -> Environment:
    """The templates of reports, and their filters."""
    filters = {
        "metric": "{:.3f}".format,
        "percent": "{:.1%}".format,
        "rate": lambda value: f"{100 * value:.3g}%",
        "shift": "{:+.1f}".format,
        "seconds": "{:,.1f}".format,
        "score": "{:.4g}".format,
        "p_value": lambda value: f"{value:.3f}" if value >= 0.001 else f"{value:.1g}",
        "duration": readable_duration,
    }
    env = html.environment("mvad.reports", filters)
    env.globals["bar"] = bar
    return env


def readable_duration(seconds: float) -> str:
    """Seconds as a person would say them."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, remainder = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {remainder:02} s"
