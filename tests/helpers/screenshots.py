"""The pictures of the README, of the generated sample: ``python tests/screenshots.py docs``."""

import argparse
import io
import sys
import tempfile
from pathlib import Path

from PIL import Image

import mvad
from helpers.browser import drop, open_browser, visit
from mvad.demo import serving

COLOURS = 128  # of the palette: a page of text and few colours stays small
WIDTH = 1180  # of the window, in pixels, and its heights
REPORT, DEMO = 1600, 1000
BACKBONE = "efficientnet_lite0"


def save(shot, picture):
    image = Image.open(io.BytesIO(shot)).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    image.save(picture, optimize=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("folder", type=Path, help="where the pictures go")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    report, demo = (
        {"viewport": {"width": WIDTH, "height": height}, "reduced_motion": "reduce"} for height in (REPORT, DEMO)
    )
    with tempfile.TemporaryDirectory() as scratch:
        data, out = Path(scratch) / "data", Path(scratch) / "results"
        mvad.sample(str(data))
        mvad.run(str(data), str(out), backbone=BACKBONE, maps="all", quiet=True)
        mvad.report(str(out), quiet=True)
        try:
            with open_browser() as browser:
                with visit(browser, out / "report.html", **report) as visited:
                    visited.page.eval_on_selector("#category-1", "element => element.scrollIntoView()")
                    save(visited.page.screenshot(), folder / "report.png")
                with (
                    serving(str(out / "models"), port=0, quiet=True) as address,
                    visit(browser, address, **demo) as visited,
                ):
                    page = visited.page
                    page.wait_for_selector("#category option:nth-child(2)", state="attached")
                    defect = min((data / "bracket" / "test").glob("[!g]*/*"))
                    drop(page, "#drop", [(defect.name, defect.read_bytes())])
                    page.locator(".result:not([aria-busy])").wait_for()
                    save(page.screenshot(), folder / "demo.png")
        except LookupError as reason:
            sys.exit(f"no pictures: {reason}")


if __name__ == "__main__":
    main()
