"""Facts to HTML."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from jinja2 import Environment
from markupsafe import Markup

from mvad import html as pages
from mvad import storage
from mvad.anomaly_maps.colours import legend
from mvad.reports.category import Category
from mvad.reports.charts import bar
from mvad.reports.pictures import Picture, data_uri

COLUMNS = (  # of the summary, those in which any category has a value: key, title, kind
    ("method", "Method", "name"),
    ("n_train", "Learnt from", "count"),
    ("n_scored", "Scored", "count"),
    ("n_flagged", "Flagged", "count"),
    ("n_good", "Good", "count"),
    ("n_defect", "Defective", "count"),
    ("n_error", "Unreadable", "count"),
    ("image_auroc", "AUROC", "metric"),
    ("image_ap", "Average precision", "metric"),
    ("image_f1_max", "Best F1", "metric"),
    ("recall_at_threshold", "Recall", "percent"),
    ("false_alarm_rate", "False alarms", "percent"),
    ("pixel_auroc", "Pixel AUROC", "metric"),
    ("pixel_aupro", "AUPRO", "metric"),
    ("drift_median_shift", "Shift", "shift"),
    ("fit_seconds", "Fit s", "seconds"),
    ("images_per_second", "Images/s", "seconds"),
)
JUDGED = ("n_flagged",)  # means nothing without a threshold
URI_OPTIONS = ("weights", "address")


@dataclass(frozen=True)
class Overview:
    """What all pages of a report know: where the results are, ``run.json``, the categories and the row of means."""

    place: str
    run: Mapping[str, Any]
    categories: Sequence[Category]
    mean: Mapping[str, Any] | None

    @property
    def columns(self) -> list[tuple[str, str, str]]:
        """Of the summary table, those with any value."""
        rows = [category.summary for category in self.categories]
        judged = any(category.threshold is not None for category in self.categories)
        kept = [column for column in COLUMNS if judged or column[0] not in JUDGED]
        labelled = any(row.get("n_good") or row.get("n_defect") for row in rows)
        kept = [column for column in kept if labelled or column[0] not in ("n_good", "n_defect")]
        if len({row.get("method") for row in rows}) < 2:  # the sections say it
            kept = [column for column in kept if column[0] != "method"]
        return [column for column in kept if any(row.get(column[0]) is not None for row in rows)]

    @property
    def total(self) -> dict[str, int]:
        """Images scored, flagged and unreadable, over all categories on the page."""
        names = ("n_scored", "n_flagged", "n_error")
        return {name: sum(category.summary.get(name) or 0 for category in self.categories) for name in names}

    @property
    def judged(self) -> bool:
        return any(category.summary.get("threshold") is not None for category in self.categories)

    @property
    def warnings(self) -> list[tuple[int, str]]:
        """Number of a category and a sentence that a reader should know first."""
        found = []
        for number, category in enumerate(self.categories, start=1):
            for text in (category.facts.get("warning"), category.facts.get("note")):
                if text:
                    found.append((number, text.removeprefix(f"{category.name}: ")))
        return found

    @property
    def options(self) -> dict[str, str]:
        """The options of the run as texts, without keys to object storage."""
        return {name: _option(name, value) for name, value in self.run.get("options", {}).items()}


def _option(name: str, value: Any) -> str:
    if value is None:
        return "default"
    if name in URI_OPTIONS and "://" in str(value):
        return storage.readable(str(value))
    return str(value)


def render_page(overview: Overview, sections: Sequence[Markup] | None, folder: str = "") -> bytes:
    """The page, with the sections of all categories, or with links to their pages in ``folder`` if there are none."""
    links = [
        f"#category-{number}" if sections is not None else f"{quote(folder)}/{quote(file_name(category))}"
        for number, category in enumerate(overview.categories, start=1)
    ]
    return _render("page.html", overview, sections=sections or [], links=links)


def render_category(overview: Overview, category: Category, shown: Mapping[str, Picture], back: str) -> bytes:
    """A page of one category; ``back`` is the name of the file of the first page."""
    return _render(
        "category.html", overview, category=category, section=section(overview, category, shown), back=quote(back)
    )


def file_name(category: Category) -> str:
    """Of the page of a category."""
    return f"{storage.folder_name(category.name)}.html"


def section(overview: Overview, category: Category, shown: Mapping[str, Picture]) -> Markup:
    """The part of a page that is about one category."""
    number = [other.name for other in overview.categories].index(category.name) + 1
    legends = data_uri(legend()) if any(picture.map for picture in shown.values()) else None
    text = (
        _environment()
        .get_template("section.html")
        .render(overview=overview, category=category, pictures=shown, anchor=f"category-{number}", legend=legends)
    )
    return Markup(text)


def _render(template: str, overview: Overview, **content: Any) -> bytes:
    return pages.render(_environment(), template, "report.css", overview=overview, **content).encode()


@functools.cache
def _environment() -> Environment:
    shown: dict[str, Callable[[Any], str]] = {
        "metric": lambda value: f"{value:.3f}",
        "percent": lambda value: f"{value:.1%}",
        "shift": lambda value: f"{value:+.1f}",
        "seconds": lambda value: f"{value:,.1f}",
        "score": lambda value: f"{value:.4g}",
        "p_value": lambda value: f"{value:.3f}" if value >= 0.001 else f"{value:.1g}",
        "duration": duration,
    }
    found = pages.environment("mvad.reports", {name: pages.unless_missing(show) for name, show in shown.items()})
    found.globals["bar"] = bar
    return found


def duration(seconds: float) -> str:
    """Seconds as a person would say them."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
