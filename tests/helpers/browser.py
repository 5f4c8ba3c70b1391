"""A headless Chromium for tests of pages, and what a page did while it was open."""

import base64
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
def visit(browser, place, **context):
    """Open a local file or an ``http://`` address; ``context`` as for Playwright's ``new_context``."""
    opened = browser.new_context(**context)
    page = opened.new_page()
    found = Visit(page)
    page.on("console", lambda message: found.messages.append(message.text))
    page.on("pageerror", lambda error: found.messages.append(str(error)))
    page.on("request", lambda request: found.requests.append(request.url))
    page.goto(place if str(place).startswith("http://") else Path(place).resolve().as_uri())
    yield found
    opened.close()


def drop(page, selector, files):
    """Drop files, (name, content) each, on an element, as by a mouse."""
    contents = [[name, base64.b64encode(content).decode()] for name, content in files]
    transfer = page.evaluate_handle(
        """files => {
            const transfer = new DataTransfer();
            for (const [name, content] of files) {
                const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
                transfer.items.add(new File([bytes], name));
            }
            return transfer;
        }""",
        contents,
    )
    page.dispatch_event(selector, "drop", {"dataTransfer": transfer})
