"""The report on several nights: what happened in each, one list of flagged images, and what people said of them."""

import re

import pytest

import mvad
from helpers.browser import visit
from helpers.many_nights import DEFECTIVE, GOOD, date_of, write_nights
from helpers.score_files import write_rows, write_run
from mvad import results
from mvad.errors import UsageError
from mvad.nights.labels import Judged, append_labels
from mvad.reports import nights as nights_report
from mvad.results.nights import list_nights
from mvad.storage import to_uri

COUNT = 6
LAST = date_of(COUNT - 1)
DESK = {"viewport": {"width": 1200, "height": 900}, "color_scheme": "light", "reduced_motion": "reduce"}
PHONE = {"viewport": {"width": 390, "height": 700}, "color_scheme": "dark", "reduced_motion": "reduce"}


@pytest.fixture(scope="module")
def nights(tmp_path_factory):
    """Six nights of two categories, with two labels; only the images of the last night are still there."""
    place = tmp_path_factory.mktemp("nights")
    write_nights(place / "nights", place / "images", COUNT)
    root = to_uri(place / "nights")
    for number, (judgement, defect) in enumerate([("defect", "dent"), ("good", None)]):
        folder = f"date={date_of(4)}"
        ids = ["image_id", "category", "uri"]
        row = results.read_images(f"{root}/{folder}", "cap", [f"cap/04-{GOOD + number:03}.png"], ids).to_pylist()[0]
        append_labels(root, [Judged(row, folder, judgement, "score", defect)], "ada")
    return place / "nights"


def write(nights, tmp_path, **options):
    """The result of a report, and its text."""
    target = tmp_path / "report.html"
    result = mvad.report(str(nights), to=str(target), quiet=True, **options)
    return result, target.read_text()


def listed(page):
    return page.locator(".flagged tbody tr")


def test_a_row_for_each_night_and_category_between_two_dates(nights, tmp_path):
    result, text = write(nights, tmp_path, since=str(date_of(1)), until=str(date_of(3)), pictures=0)
    assert [(row["night"], row["category"]) for row in result.summary] == [
        (str(date_of(number)), category) for number in (3, 2, 1) for category in ("cap", "plate")
    ]
    table = re.search("<table>.*?</table>", text, re.S)[0]
    assert re.findall(r'<th scope="row">([^<]*)</th><td>([^<]*)</td><td class="number">(\d+)<', table) == [
        (row["night"], row["category"], str(GOOD + DEFECTIVE)) for row in result.summary
    ]
    assert f"{DEFECTIVE / (GOOD + DEFECTIVE):.1%}" in table
    assert f"{date_of(1)} to {date_of(3)}" in text
    assert result.exit_code == 0


def test_a_folder_of_nights_has_its_report_inside_and_nights_stay_what_they_are(nights):
    before = list_nights(to_uri(nights))
    mvad.report(str(nights), pictures=0, quiet=True)
    assert "Anomaly report" in (nights / "report.html").read_text()
    assert list_nights(to_uri(nights)) == before


def test_images_that_are_gone_are_named_and_the_others_shown(nights, tmp_path):
    result, text = write(nights, tmp_path, pictures=24)
    assert text.count("The source image cannot be shown.") == len(result.errors) == 2 * DEFECTIVE * (COUNT - 1)
    assert text.count("data:image/webp") > 2 * DEFECTIVE
    assert result.exit_code == 3


def test_pictures_and_rows_are_bounded_and_what_is_left_out_is_said(nights, tmp_path, monkeypatch):
    _, text = write(nights, tmp_path, pictures=3)
    assert text.count('<figure class="shot"') == 6
    assert f"Pictures of the other {DEFECTIVE * COUNT - 3} are left out" in text
    monkeypatch.setattr(nights_report, "MAX_SECTION_BYTES", 1)
    monkeypatch.setattr(nights_report, "MAX_TABLE_ROWS", 4)
    result, text = write(nights, tmp_path, pictures=24, since=str(LAST), categories=["cap"])
    assert (text.count('<figure class="shot"'), len(result.summary)) == (0, 1)
    _, text = write(nights, tmp_path, pictures=0)
    assert f"{2 * COUNT - 4} of {2 * COUNT} rows are left out" in text


def test_a_damaged_night_is_left_out_and_named(tmp_path):
    write_nights(tmp_path / "nights", tmp_path / "images", 3)
    part = next((tmp_path / "nights" / f"date={date_of(1)}" / "scores").rglob("*.parquet"))
    part.write_bytes(part.read_bytes()[:-40])
    result, text = write(tmp_path / "nights", tmp_path, pictures=0)
    assert {row["night"] for row in result.summary} == {str(date_of(0)), str(date_of(2))}
    assert f"the night date={date_of(1)} is left out: " in text


def test_options_that_do_not_fit_are_refused(nights, tmp_path):
    with pytest.raises(UsageError, match=r"no results in .* from 2027-01-01 to the last"):
        write(nights, tmp_path, since="2027-01-01")
    with pytest.raises(UsageError, match="is not a date"):
        write(nights, tmp_path, since="yesterday")
    with pytest.raises(UsageError, match="unknown category 'lid'"):
        write(nights, tmp_path, categories=["lid"])
    with pytest.raises(UsageError, match="--models is for the report on one run"):
        write(nights, tmp_path, models="models")
    with pytest.raises(UsageError, match="give --to another place"):
        mvad.report(str(nights), to=str(nights / "other.html"), quiet=True)
    write_rows(tmp_path / "run", "cap", [{"image_id": "a"}])
    write_run(tmp_path / "run", cap=1.0)
    with pytest.raises(UsageError, match=r"--since and --until are for a folder of nights, and .* of one run"):
        write(tmp_path / "run", tmp_path, until="2026-11-01")


@pytest.mark.parametrize("look", [DESK, PHONE])
def test_the_list_of_all_nights_is_searched_filtered_and_opened(browser, nights, tmp_path, look):
    write(nights, tmp_path)
    with visit(browser, tmp_path / "report.html", **look) as visited:
        page = visited.page
        shown = page.locator(".flagged .shown")
        total = 2 * DEFECTIVE * COUNT
        assert shown.inner_text() == f"{total} of {total} images"
        page.fill("[name=name]", f"{date_of(4)} cap")
        assert shown.inner_text() == f"{DEFECTIVE} of {total} images"
        page.fill("[name=name]", "")
        page.select_option("[name=night]", label=str(LAST))
        assert shown.inner_text() == f"{2 * DEFECTIVE} of {total} images"
        assert set(listed(page).locator("[data-title=Night]").all_inner_texts()) <= {str(LAST), f"Night {LAST}"}
        name = listed(page).first.locator("th").inner_text()
        listed(page).first.locator(".show").click()
        assert page.locator("dialog h2").inner_text() == f"{name}, night of {LAST}"
        page.keyboard.press("Escape")
        page.select_option("[name=night]", label="all")
        page.select_option("[name=review]", label="defect")
        assert listed(page).locator("[data-title=Review]").all_inner_texts()[0].endswith("defect: dent")
        assert shown.inner_text() == f"1 of {total} images"
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert visited.messages == []
        assert all(url.startswith(("file:", "data:")) for url in visited.requests)
