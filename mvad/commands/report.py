"""The command ``mvad report``: a page on results that opens in any browser.

::

    OUT/report.html               the page; self-contained, it loads nothing
    OUT/report/<category>.html    one page per category, where a single page would be too large
"""

from __future__ import annotations

from typing import Any

from mvad import results, storage
from mvad.console import Reporter
from mvad.errors import UsageError
from mvad.html import readable_size
from mvad.options import ReportOptions
from mvad.reports.overview import read_overview
from mvad.reports.page import write_pages
from mvad.results.run_record import Result, exit_code


def report(out: str, **kwargs: Any) -> Result:
    """Write an HTML report on the results in OUT; options as in `options.ReportOptions`.

    The report is one file. With many categories or images, each category has a page of its own in a folder next to the
    file and named like it. Source images that cannot be read are marked, counted and named.

    Raises
    ------
    UsageError
        OUT holds no results of a finished run, or a category is unknown.
    """
    options = ReportOptions(**kwargs)
    reporter = Reporter(options.quiet)
    source = storage.to_uri(out)
    target = storage.to_uri(options.to) if options.to else storage.join(source, "report.html")
    run = results.read_finished_run(source)
    results.check_beside(source, target, ("report.html",))
    if not target.partition("?")[0].endswith(".html"):
        raise UsageError(f"--to {options.to} does not end in .html.")

    overview = read_overview(source, run, options)
    pages = write_pages(overview, source, target, options.max_pixels)

    reporter.errors(pages.errors, "the report")
    count = "1 page" if pages.n_pages == 1 else f"{pages.n_pages:,} pages"
    images = "1 image" if overview.n_pictures == 1 else f"{overview.n_pictures:,} images"
    reporter.print(f"{count} ({readable_size(pages.n_bytes)}) with {images}: {storage.readable(target)}")
    return Result(exit_code(options, len(pages.errors), overview.n_pictures), overview.summary, pages.errors)
