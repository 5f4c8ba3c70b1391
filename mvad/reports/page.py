"""Render the pages of a report and write them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import quote

from jinja2 import Environment
from markupsafe import Markup

from mvad import html, storage
from mvad.anomaly_maps.colours import legend
from mvad.html.charts import bar
from mvad.html.thumbnails import webp_uri
from mvad.reports.category import Category
from mvad.reports.overview import Overview
from mvad.reports.pictures import QUALITY, Picture, category_pictures

MAX_IMAGES, MAX_CATEGORIES = 800, 40  # on a single page, which then has about 8 MB


class Pages(NamedTuple):
    """The pages written: their number and bytes, and the source images that could not be shown."""

    n_pages: int
    n_bytes: int
    errors: list[dict[str, str]]


def write_pages(overview: Overview, source: str, target: str, max_pixels: int) -> Pages:
    """Write the report on the results in ``source`` to ``target``, and its other pages next to it (URIs)."""
    file = storage.readable(target).rpartition("/")[2]
    stem = file.removesuffix(".html")
    split = overview.n_pictures > MAX_IMAGES or len(overview.categories) > MAX_CATEGORIES
    sections: list[Markup] = []
    errors: list[dict[str, str]] = []
    n_bytes = 0
    for number, category in enumerate(overview.categories, start=1):
        pictures = category_pictures(source, category, max_pixels)
        errors += [
            {"image_id": picture.image_id, "category": category.name, "split": "test", "error": picture.problem}
            for picture in pictures.values()
            if picture.problem
        ]
        section = _section(category, number, pictures)
        if split:
            page = _render("category.html", overview, category=category, section=section, back=quote(f"../{file}"))
            storage.write(storage.join(storage.sibling(target, stem), _file_name(category)), page)
            n_bytes += len(page)
        else:
            sections.append(section)
    links = [
        f"{quote(stem)}/{quote(_file_name(category))}" if split else f"#category-{number}"
        for number, category in enumerate(overview.categories, start=1)
    ]
    page = _render("page.html", overview, sections=sections, links=links)
    storage.write(target, page)
    return Pages(1 + split * len(overview.categories), n_bytes + len(page), errors)


def _file_name(category: Category) -> str:
    return f"{storage.folder_name(category.name)}.html"


def _section(category: Category, number: int, pictures: Mapping[str, Picture]) -> Markup:
    """The part of a page that is about one category."""
    colours = webp_uri(legend(), QUALITY) if any(picture.map for picture in pictures.values()) else None
    template = _environment().get_template("section.html")
    anchor = f"category-{number}"
    return Markup(template.render(category=category, pictures=pictures, anchor=anchor, legend=colours))


def _render(template: str, overview: Overview, **content: Any) -> bytes:
    return html.render(_environment(), template, "report.css", overview=overview, **content).encode()


@functools.cache
def _environment() -> Environment:
    filters = {
        "metric": "{:.3f}".format,
        "percent": "{:.1%}".format,
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
