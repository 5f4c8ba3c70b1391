"""The command ``mvad report``: a page on results that opens in any browser.

::

    OUT/report.html               the page; self-contained, it loads nothing
    OUT/report/<category>.html    one page per category, where a single page would be too large
"""

from mvad import reports, results, storage
from mvad.console import Reporter, plural
from mvad.errors import UsageError
from mvad.html import readable_size
from mvad.options import ReportOptions, Results, takes
from mvad.results.nights import list_nights
from mvad.results.result import Result, exit_code


@takes(ReportOptions)
def report(out: Results, options: ReportOptions) -> Result:
    """Write an HTML report on results: one page that opens in any browser, without a network.

    The report is one file. With many categories or images, each category has a page of its own in a folder next to the
    file and named like it. Source images that cannot be read are marked, counted and named. If OUT is a folder of
    nights, the report is one page on all of them, or on those from --since to --until.

    Raises
    ------
    UsageError
        OUT holds no results of a finished run, or no nights from --since to --until; or a category is unknown.

    Examples
    --------
    >>> mvad.report("results", quiet=True).exit_code
    0
    """
    reporter = Reporter(options.quiet)
    source = storage.to_uri(out)
    target = storage.to_uri(options.to) if options.to else storage.join(source, "report.html")
    by_night = bool(list_nights(source))
    run = {} if by_night else results.read_finished_run(source)
    results.ensure_outside(source, target, ("report.html",))
    if not target.partition("?")[0].endswith(".html"):
        raise UsageError(f"--to {options.to} does not end in .html.")
    if not by_night and (options.since, options.until) != (None, None):
        raise UsageError(f"--since and --until are for a folder of nights, and {out} holds the results of one run.")
    storage.ensure_writable_folder(storage.sibling(target, ""))

    if by_night:
        return reports.report_on_nights(source, target, options, reporter)
    overview = reports.read_overview(source, run, options)
    pages = reports.write_pages(overview, source, target, options.max_pixels)

    reporter.errors(pages.errors, "the report")
    count, images = plural(pages.n_pages, "page"), plural(overview.n_pictures, "image")
    reporter.result(f"{count} ({readable_size(pages.n_bytes)}) with {images}: {storage.readable(target)}")
    return Result(exit_code(options, len(pages.errors), overview.n_pictures), overview.summary, pages.errors)
