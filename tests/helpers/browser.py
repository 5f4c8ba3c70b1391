"""Open pages in a headless Chromium, and record their console messages and network requests."""

import base64
import os
import shutil
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

MAX_WAIT_S = 90  # for what a page does, on a machine that does much besides

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
    """Return the path of a Chromium or Chrome on this machine, or None."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


@contextmanager
def open_browser():
    """Open a Playwright browser; LookupError, with the reason, if there is none."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise LookupError("the Python package playwright is not installed") from error
    chromium = find_chromium()
    if chromium is None:
        raise LookupError("there is no Chromium on this machine; give its path in the variable CHROMIUM")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield browser
        browser.close()


@dataclass
class Visit:
    """An open page, its console messages and errors, and the URLs it requested."""

    page: object
    messages: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@contextmanager
def visit(browser, address, **context):
    """Open a local file or an ``http://`` address; ``context`` as for Playwright's ``new_context``."""
    session = browser.new_context(**context)
    page = session.new_page()
    page.set_default_timeout(1000 * MAX_WAIT_S)
    visited = Visit(page)
    page.on("console", lambda message: visited.messages.append(message.text))
    page.on("pageerror", lambda error: visited.messages.append(str(error)))
    page.on("request", lambda request: visited.requests.append(request.url))
    page.goto(address if str(address).startswith("http://") else Path(address).resolve().as_uri())
    yield visited
    session.close()


def drop(page, selector, files):
    """Drop files, (name, content) each, on an element as a mouse would."""
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
