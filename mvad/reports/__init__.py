"""A page on results for people: ``mvad report``.

::

    OUT/report.html               the page; it holds all it needs, and loads nothing
    OUT/report/<category>.html    instead of its sections, where they would make it too large
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mvad import results, storage
from mvad.console import Reporter
from mvad.data.image_size import ImageSize
from mvad.errors import UsageError
from mvad.options import ReportOptions
from mvad.reports.category import Category, read_category
from mvad.reports.page import Overview, file_name, render_category, render_page, section
from mvad.reports.pictures import Picture, pictures
from mvad.results.run_record import Result, exit_code
from mvad.results.stored_maps import read_scale
from mvad.results.summary import MEAN

ONE_PAGE = 800  # images, and
ONE_PAGE_CATEGORIES = 40  # categories on one page, at most: about 8 MB


def report(out: str, **options: Any) -> Result:
    """Write a page on the results in OUT; options as in `options.ReportOptions`.

    It is one HTML file. With many categories, each has a page of its own in a folder beside it, named like the file.
    Source images that cannot be read are shown as such, counted and named.

    Raises
    ------
    UsageError
        OUT holds no results of a run that has ended, or a category is unknown.
    """
    chosen = ReportOptions(**options)
    reporter = Reporter(chosen.quiet)
    source = storage.to_uri(out)
    target = storage.to_uri(chosen.to) if chosen.to else storage.join(source, "report.html")
    run = results.read_finished_run(source)
    results.check_beside(source, target, ("report.html",))
    if not target.partition("?")[0].endswith(".html"):
        raise UsageError(f"--to {chosen.to} does not end in .html.")
    models = storage.to_uri(chosen.models) if chosen.models else None
    summary = results.read_summary(source)
    rows = {row["category"]: row for row in summary}
    categories = [
        read_category(source, name, run["categories"].get(name, {}), rows.get(name, {}), models, chosen.pictures)
        for name in _names(source, chosen.category_names)
    ]
    mean = rows.get(MEAN) if len(categories) > 1 and chosen.categories is None else None
    overview = Overview(storage.readable(source), run, categories, mean)
    file = storage.readable(target).rpartition("/")[2]
    stem = file.removesuffix(".html")
    errors: list[dict[str, str]] = []
    size = 0

    def sections() -> Iterator[tuple[Category, dict[str, Picture]]]:
        for category in categories:
            shown = _pictures(source, category, chosen.max_pixels)
            errors.extend(_unreadable(category, shown))
            yield category, shown

    many = sum(len(category.shown) for category in categories) > ONE_PAGE or len(categories) > ONE_PAGE_CATEGORIES
    if many:
        inside = storage.sibling(target, stem)
        for category, shown in sections():
            page = render_category(overview, category, shown, back=f"../{file}")
            storage.write(storage.join(inside, file_name(category)), page)
            size += len(page)
        page = render_page(overview, None, folder=stem)
    else:
        page = render_page(overview, [section(overview, category, shown) for category, shown in sections()])
    storage.write(target, page)
    size += len(page)
    n_pictures = sum(len(category.shown) for category in categories)
    reporter.errors(errors, "the report")
    pages = f"{len(categories) + 1} pages" if many else "a page"
    amount = f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"
    reporter.print(f"{pages} of {amount} with {n_pictures:,} images: {storage.readable(target)}")
    return Result(exit_code(chosen, len(errors), n_pictures), summary, errors)


def _names(out: str, wanted: list[str] | None) -> list[str]:
    names = sorted({category for category, _ in results.parts(out)})
    unknown = [name for name in wanted or [] if name not in names]
    if unknown:
        raise UsageError(f"unknown category {unknown[0]!r}; {storage.readable(out)} has: {', '.join(names)}.")
    return names if wanted is None else [name for name in names if name in wanted]


def _pictures(out: str, category: Category, max_pixels: int) -> dict[str, Picture]:
    if not category.shown:
        return {}
    facts = category.facts.get("size")
    size = None if facts is None else ImageSize(**facts)
    scale = None if size is None else read_scale(out, category.name, size)
    return pictures(out, category.name, category.shown, size, scale, max_pixels)


def _unreadable(category: Category, shown: Mapping[str, Picture]) -> list[dict[str, str]]:
    return [
        {"image_id": picture.image_id, "category": category.name, "split": "test", "error": picture.problem}
        for picture in shown.values()
        if picture.problem
    ]
