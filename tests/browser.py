"""A headless Chromium for tests of pages, and what a page did while it was open."""

import os
import shutil
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def find_chromium():
    """Path of a Chromium or Chrome on this machine, or None."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


@contextmanager
def open_browser():
    """A Playwright browser; raises LookupError with the reason if there is none."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise LookupError("the Python package playwright is not installed") from error
    chromium = find_chromium()
    if chromium is None:
        raise LookupError("there is no Chromium on this machine; say where one is with the variable CHROMIUM")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield browser
        browser.close()


@dataclass
class Visit:
    """A page that is open: what it said on the console, and what it asked of the network."""

    page: object
    messages: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@contextmanager
def visit(browser, file, **context):
    """Open a local file; ``context`` as for Playwright's ``new_context``."""
    opened = browser.new_context(**context)
    page = opened.new_page()
    found = Visit(page)
    page.on("console", lambda message: found.messages.append(message.text))
    page.on("pageerror", lambda error: found.messages.append(str(error)))
    page.on("request", lambda request: found.requests.append(request.url))
    page.goto(Path(file).resolve().as_uri())
    yield found
    opened.close()
