"""Take the screenshots in the documentation: ``python tests/helpers/screenshots.py docs``."""

import argparse
import io
import sys
import tempfile
from pathlib import Path

from PIL import Image

import mvad
from helpers.browser import drop, open_browser, visit
from mvad.demo.server import serving

N_COLOURS = 128  # of the palette, which keeps the pictures small
WIDTH, REPORT_HEIGHT, DEMO_HEIGHT = 1180, 1600, 1000  # of the window, in pixels
BACKBONE = "efficientnet_lite0"


def save(screenshot, path):
    image = Image.open(io.BytesIO(screenshot)).convert("RGB").quantize(N_COLOURS, dither=Image.Dither.NONE)
    image.save(path, optimize=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("folder", type=Path, help="folder to write to")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    report, demo = (
        {"viewport": {"width": WIDTH, "height": height}, "reduced_motion": "reduce"}
        for height in (REPORT_HEIGHT, DEMO_HEIGHT)
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
            sys.exit(f"cannot take screenshots: {reason}")


if __name__ == "__main__":
    main()
