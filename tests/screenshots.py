"""A picture of a page for the README: ``python tests/screenshots.py demo/results/report.html report.webp``.

Of the demo: ``mvad serve --models models``, and in another terminal
``python tests/screenshots.py http://127.0.0.1:8000/ demo.webp --drop IMAGE --height 0``.
"""

import argparse
import io
import sys
from pathlib import Path

from PIL import Image

from browser import drop, open_browser, visit

COLOURS = 256  # of the palette of a PNG, and
QUALITY = 80  # of WebP and JPEG: a page of text and few colours stays small


def main():
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("page", help="a file, or an http:// address")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--width", type=int, default=1180, help="of the window, in pixels")
    parser.add_argument("--height", type=int, default=1500, help="of what is shown; 0: all of the page")
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--at", default="", help="a CSS selector of what comes first, such as '#category-1'")
    parser.add_argument("--drop", type=Path, action="append", default=[], help="an image for the demo to score")
    chosen = parser.parse_args()
    context = {
        "viewport": {"width": chosen.width, "height": chosen.height or 900},
        "color_scheme": "dark" if chosen.dark else "light",
        "reduced_motion": "reduce",
    }
    try:
        with open_browser() as browser, visit(browser, chosen.page, **context) as visited:
            if chosen.drop:
                visited.page.wait_for_selector("#category option:nth-child(2)", state="attached")
                drop(visited.page, "#drop", [(file.name, file.read_bytes()) for file in chosen.drop])
                visited.page.locator(".result:not([aria-busy])").nth(len(chosen.drop) - 1).wait_for()
            if chosen.at:
                visited.page.eval_on_selector(chosen.at, "element => element.scrollIntoView()")
            shot = visited.page.screenshot(full_page=not chosen.height)
    except LookupError as reason:
        sys.exit(f"no picture: {reason}")
    image = Image.open(io.BytesIO(shot)).convert("RGB")
    if chosen.picture.suffix == ".png":
        image = image.quantize(COLOURS, dither=Image.Dither.NONE)
    image.save(chosen.picture, optimize=True, quality=QUALITY)


if __name__ == "__main__":
    main()
