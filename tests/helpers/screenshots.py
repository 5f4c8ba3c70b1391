"""Take the screenshots in the documentation: ``python tests/helpers/screenshots.py docs``."""

import argparse
import io
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image

import mvad
from helpers.browser import drop, open_browser, visit
from helpers.many_nights import date_of, write_nights
from mvad import results
from mvad.anomaly_maps.colours import colour_scale, draw_boxes, overlay
from mvad.demo.server import serving
from mvad.model_store import find_models
from mvad.results.stored_maps import stored_map
from mvad.storage import to_uri

N_COLOURS = 128  # of the palette, which keeps the pictures small
WIDTH, REPORT_HEIGHT, DEMO_HEIGHT = 1180, 1600, 1000  # of the window, in pixels
BACKBONE = "efficientnet_lite0"
LARGE_IMAGE = "plate/test/pit/001.jpg"
CUT, PANEL, GAP = 140, 280, 12  # pixels: of the image that is shown enlarged, of its picture, and between pictures


def save(screenshot, path):
    image = Image.open(io.BytesIO(screenshot)).convert("RGB").quantize(N_COLOURS, dither=Image.Dither.NONE)
    image.save(path, optimize=True)


def tiny_defect(image, row, size, target):
    """A large image with the box of its strongest region, and beside it that place at 2:1, plain and with its map."""
    (first, *_), model_map = row["regions"], stored_map(row, size)
    scale = colour_scale([model_map], [row["score"]], None)
    over = overlay(image, model_map, size, scale)
    x, y = (
        min(max(0, begin + length // 2 - CUT // 2), side - CUT)
        for begin, length, side in zip(
            (first["x"], first["y"]), (first["width"], first["height"]), image.size, strict=True
        )
    )
    whole = image.resize((2 * PANEL, round(2 * PANEL * image.height / image.width)), Image.Resampling.LANCZOS)
    draw_boxes(whole, row["regions"][:1], *image.size)
    sheet = Image.new("RGB", (4 * PANEL + 2 * GAP, max(whole.height, PANEL)), "white")
    sheet.paste(whole, (0, 0))
    for number, picture in enumerate((image, over)):
        cut = picture.crop((x, y, x + CUT, y + CUT)).resize((PANEL, PANEL), Image.Resampling.NEAREST)
        sheet.paste(cut, (2 * PANEL + GAP + number * (PANEL + GAP), 0))
    sheet.save(target, quality=88)


def large_sample(folder, scratch):
    """The picture of a defect of about twenty pixels in twelve megapixels."""
    data, out = scratch / "large", scratch / "large results"
    mvad.sample(str(data), large=True)
    mvad.fit(str(data), str(scratch / "models"), categories="plate", backbone=BACKBONE, quiet=True)
    one = scratch / "one/plate"
    one.mkdir(parents=True)
    shutil.copy(data / LARGE_IMAGE, one / "image.jpg")
    mvad.score(str(one.parent), str(scratch / "models"), str(out), layout="plain", maps="all", quiet=True)
    (row,) = results.read_scores(to_uri(out)).to_pylist()
    model = find_models(to_uri(scratch / "models"))["plate"]
    tiny_defect(Image.open(one / "image.jpg").convert("RGB"), row, model.size, folder / "large.jpg")


def pages(browser, address, folder):
    """Pictures of the pages Nights and Review."""
    place = {"viewport": {"width": WIDTH, "height": DEMO_HEIGHT}, "reduced_motion": "reduce"}
    with visit(browser, f"{address}nights", **place) as visited:
        visited.page.locator("canvas").nth(5).wait_for()
        visited.page.eval_on_selector("#series", "element => element.scrollIntoView()")
        save(visited.page.screenshot(), folder / "nights.png")
    with visit(browser, f"{address}review?since={date_of(29)}", **place) as visited:
        visited.page.locator("#map:not([hidden])").wait_for()
        visited.page.eval_on_selector("#current", "element => element.scrollIntoView()")
        save(visited.page.screenshot(), folder / "review.png")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("folder", type=Path, help="folder to write to")
    parser.add_argument("--large", action="store_true", help="only the picture of a large image, which takes minutes")
    options = parser.parse_args()
    folder = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    if options.large:
        with tempfile.TemporaryDirectory() as scratch:
            large_sample(folder, Path(scratch))
        return
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
                nights = Path(scratch) / "nights"
                write_nights(nights, Path(scratch) / "images")
                with serving(str(out / "models"), port=0, quiet=True, results=str(nights)) as address:
                    pages(browser, address, folder)
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
