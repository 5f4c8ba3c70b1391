"""The whole loop in a browser: what is seen at night is said by day, learnt, and passes the next night."""

import shutil

import numpy as np
import pytest
from PIL import Image

import mvad
from helpers.browser import visit
from helpers.many_nights import DEAD, LIGHT, date_of, write_nights
from helpers.tiles import paint
from helpers.waits import wait_until
from mvad.demo.server import serving
from mvad.nights.labels import read_labels
from mvad.results import read_scores
from mvad.storage import to_uri

FIRST, NEXT = date_of(30).isoformat(), date_of(31).isoformat()
BRIGHT = 6  # good images with a bright label, which the model has not seen
SCORED = {"actors": 1, "quiet": True, "settle": 0, "category": "alpha"}


@pytest.fixture
def place(base_run, tiles, tmp_path):
    """Thirty generated nights, then one of real scores: all its defects are flagged, and good images, too."""
    write_nights(tmp_path / "nights", tmp_path / "images")
    shutil.copytree(base_run[0] / "models", tmp_path / "models")
    shutil.copytree(tiles / "alpha/test/spot", tmp_path / "dump")
    random = np.random.default_rng(7)
    for number in range(BRIGHT):
        pixels = paint(random)[0]
        pixels[32:64, 32:64] = 255
        Image.fromarray(pixels).save(tmp_path / f"dump/bright{number}.png")
    score(tmp_path, FIRST)
    return tmp_path


def score(place, day):
    mvad.nightly(str(place / "dump"), str(place / "models"), str(place / "nights"), day, **SCORED)


def flagged(place, day):
    rows = read_scores(to_uri(place / f"nights/date={day}")).to_pylist()
    return {row["image_id"] for row in rows if row["is_anomaly"]}


def night_rows(page, category):
    """The rows of the table of a category on the page Nights."""
    section = page.locator("#series section", has=page.locator("h2", has_text=category))
    section.first.wait_for()
    return section.locator("tbody tr").all_inner_texts()


@pytest.mark.usefixtures("ray_local")
def test_false_alarms_become_good_images_and_known_defects_are_still_found(browser, place):
    spots = {f"{number:03}.png" for number in range(4)}
    bright = {f"bright{number}.png" for number in range(BRIGHT)}
    assert flagged(place, FIRST) == spots | bright
    with serving(str(place / "models"), results=str(place / "nights"), port=0, quiet=True) as address:
        with visit(browser, f"{address}nights") as seen:
            rows = night_rows(seen.page, "cap")
            assert any(date_of(LIGHT).isoformat() in row and "drifted" in row for row in rows)
            assert any(date_of(DEAD).isoformat() in row and "no image could be scored" in row for row in rows)
            assert any(FIRST in row for row in night_rows(seen.page, "alpha"))
            assert seen.messages == []
        with visit(browser, f"{address}review?since={FIRST}&order=score+flagged") as seen:
            page = seen.page
            page.fill("#reviewer", "ann")
            page.locator("#image-title").wait_for()
            page.locator("#image-title").focus()
            for count in range(1, len(spots | bright) + 1):
                page.keyboard.press("g" if "bright" in page.inner_text("#image-title") else "d")
                page.locator("#state", has_text=f" {count} labelled now").wait_for()
            wait_until(lambda: len(read_labels(to_uri(place / "nights")).table) == 10, "the last label")
            assert seen.messages == []
        updated = mvad.update(
            None, str(place / "models"), reviewed=str(place / "nights"), actors=1, folds=2, quiet=True
        )
        assert updated.summary[0]["n_new"] == BRIGHT
        score(place, NEXT)
        assert flagged(place, NEXT) == spots
        with visit(browser, f"{address}nights") as seen:
            wait_until(lambda: any(NEXT in row for row in night_rows(seen.page, "alpha")), "the next night")
            (row,) = (row for row in night_rows(seen.page, "alpha") if NEXT in row)
            assert "new model" in row
            assert seen.messages == []
        with visit(browser, f"{address}review?since={NEXT}&order=random+passed") as seen:
            seen.page.locator("#image-title", has_text="bright").wait_for()
            assert seen.messages == []
