"""A person can work with the report: the list of flagged images, larger pictures, and thresholds to try."""

import json
import re

import numpy as np
import pytest
from PIL import Image

import mvad
from helpers.browser import visit
from helpers.synthetic import finish, write_category
from helpers.waits import wait_until
from mvad.calibration import DecisionRule

LONG = "long name without a break " + "x" * 300
NAMES = [
    "\"quotes' & <b>",
    "</script><script>alert(1)</script>",
    "right\u202eto\u200fleft\u2028line",
    LONG,
    "<!-- <script>",
]
PHONE = {"viewport": {"width": 360, "height": 700}, "color_scheme": "dark", "reduced_motion": "reduce"}
DESK = {"viewport": {"width": 1200, "height": 900}, "color_scheme": "light", "reduced_motion": "reduce"}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report on two categories: 130 images of ``plates``, 105 of them flagged and 10 uncertain, and five of LONG."""
    folder = tmp_path_factory.mktemp("report")
    uri = (folder / "plate.png").as_uri()
    pixels = np.full((900, 1600, 3), 120, np.uint8)
    pixels[700:720, 1500:1520] = 255
    Image.fromarray(pixels).save(folder / "plate.png")
    region = {"x": 1500, "y": 700, "width": 20, "height": 20, "area": 400, "peak": 4.0, "mean": 2.0}
    plates = [
        {
            "image_id": f"p/{n}.png",
            "uri": (folder / f"p/{n}.png").as_uri(),
            "score": n + 0.5,
            "label": int(n >= 40),
        }
        for n in range(130)
    ]
    for row in plates:
        row["defect"] = "dent" if row["label"] else "good"
    plates[-3] |= {"uri": uri, "width": 1600, "height": 900}
    plates[-1] |= {"uri": uri, "width": 1600, "height": 900, "regions": [region], "grid": np.eye(4, dtype=np.float32)}
    rule = DecisionRule("0" * 64, np.arange(200, dtype=np.float32), "conformal", 25.0, uncertain_threshold=15.0)
    odd = [{"image_id": name, "uri": f"file:///data/{n}", "score": 50.0 + n} for n, name in enumerate(NAMES)]
    facts = {
        "plates": write_category(folder / "out", "plates", plates, rule=rule),
        LONG: write_category(folder / "out", LONG, odd, rule=rule._replace(threshold=10.0)),
    }
    finish(folder / "out", facts)
    mvad.report(str(folder / "out"), quiet=True)
    return folder / "out/report.html"


def listed(page):
    """The first words of each row of the list: its name."""
    return page.locator(".flagged tbody th").all_inner_texts()


def silent(visited):
    return visited.messages == [] and all(url.startswith(("file:", "data:")) for url in visited.requests)


def test_the_list_is_sorted_filtered_searched_and_paged(browser, report):
    with visit(browser, report, **DESK) as visited:
        page = visited.page
        shown, where = page.locator(".flagged .shown"), page.locator(".pager > span")
        assert shown.inner_text() == "120 of 120 images"
        assert where.first.inner_text() == "Page 1 of 3"
        table = page.locator(".flagged .scroll")
        assert table.evaluate("element => element.scrollWidth <= element.clientWidth")
        assert listed(page)[:2] == ["<!-- <script>", LONG]  # 5.4 times and 5.3 times their threshold
        assert page.locator("[aria-sort]").get_attribute("aria-sort") == "descending"

        page.click(".flagged .next")
        page.click(".flagged .next")
        assert len(listed(page)) == 20
        assert page.locator(".flagged .next").is_disabled()
        assert page.locator(".uncertain:text('uncertain')").count() >= 10

        page.locator(".flagged thead button", has_text="Score").press("Enter")
        assert listed(page)[0] == "p/129.png"
        page.keyboard.press("Enter")
        assert listed(page)[0] == "p/15.png"
        assert page.locator("[aria-sort]").all_inner_texts() == ["Score"]
        assert page.locator("[aria-sort]").get_attribute("aria-sort") == "ascending"
        page.click(".flagged thead button:text('Name')")
        assert [name for name in listed(page) if name.startswith("p/")][:3] == ["p/15.png", "p/16.png", "p/17.png"]

        page.fill("[name=name]", " P/11")
        assert listed(page) == [f"p/{n}.png" for n in range(110, 120)]
        page.fill("[name=name]", "")
        page.select_option("[name=verdict]", label="uncertain")
        assert shown.inner_text() == "10 of 120 images"
        page.select_option("[name=verdict]", label="flagged")
        page.select_option("[name=label]", label="good")
        assert listed(page) == [f"p/{n}.png" for n in range(25, 40)]
        page.select_option("[name=label]", label="none")
        assert shown.inner_text() == "5 of 120 images"
        page.select_option("[name=category]", label="plates")
        assert shown.inner_text() == "0 of 120 images"
        assert silent(visited)


def test_hostile_names_are_text_that_is_cut_and_can_be_copied(browser, report):
    with visit(browser, report, permissions=["clipboard-read", "clipboard-write"], **DESK) as visited:
        page = visited.page
        page.select_option("[name=label]", label="none")
        visible = ["right\\u202eto\\u200fleft\\u2028line" if "left" in name else name for name in NAMES]
        assert sorted(listed(page)) == sorted(visible)
        cut = page.locator(".flagged tbody .id .clamp")
        assert cut.get_attribute("title") == LONG
        assert cut.bounding_box()["width"] <= 320
        selected = "element => { getSelection().selectAllChildren(element); return String(getSelection()) }"
        assert page.evaluate(selected, cut.element_handle()) == LONG
        page.locator(".flagged tbody tr", has_text="quotes").get_by_role("button", name="Copy").click()
        wait_until(lambda: "Copied" in page.locator(".flagged tbody").inner_text())
        assert page.evaluate("navigator.clipboard.readText()") == "/data/0"
        assert silent(visited)


def test_a_picture_opens_at_its_own_pixels(browser, report):
    with visit(browser, report, **DESK) as visited:
        page = visited.page
        page.focus("[aria-label^='Enlarge p/129.png']")
        page.keyboard.press("Enter")
        assert page.locator("dialog h2").inner_text() == "p/129.png"
        assert page.evaluate("document.querySelector('dialog .own img').naturalWidth") == 192
        assert "pixels 1408 to 1599 from the left, 614 to 805 from the top" in page.locator("dialog .own").inner_text()
        assert page.locator("dialog .own img").bounding_box()["width"] == 192  # one for one
        assert page.locator("dialog figure:not(.own) img").first.bounding_box()["width"] > 208
        page.keyboard.press("ArrowRight")
        assert page.locator("dialog h2").inner_text() == "p/127.png"
        assert page.locator("dialog .own").count() == 0
        page.keyboard.press("Escape")
        assert not page.locator("dialog").is_visible()
        assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("Enlarge p/129.png")
        page.click(".flagged tbody button:text('p/129.png')")
        assert page.locator("dialog").is_visible()
        page.click("dialog button:text('Close')")
        assert silent(visited)


def test_another_threshold_is_counted_as_evaluate_counts_it(browser, report, tmp_path):
    with visit(browser, report, permissions=["clipboard-read", "clipboard-write"], **DESK) as visited:
        group = visited.page.get_by_role("group", name="What if the threshold were another").last
        counts = group.locator(".counts")
        assert counts.inner_text().splitlines()[::2] == [
            "105 of 130 images flagged (80.8%)",
            "90 of 90 defective images found: recall (100.0%)",
            "15 of 40 good images flagged: false alarms (37.5%)",
        ]
        assert "Nothing is changed by it." in group.inner_text()
        field, slider = group.get_by_label("Threshold", exact=True), group.get_by_role("slider")
        field.fill("100.7")
        field.press("Enter")
        assert counts.inner_text().splitlines()[::2][0] == "29 of 130 images flagged (22.3%); at present 105"
        slider.press("ArrowRight")
        slider.press("ArrowRight")
        assert "27 of 90 defective images found: recall (30.0%); at present 90" in counts.inner_text()
        assert slider.get_attribute("aria-valuetext") == field.input_value()
        group.get_by_role("button", name="Copy").click()
        group.get_by_text("Copied").wait_for()
        command = visited.page.evaluate("navigator.clipboard.readText()")
        threshold = re.fullmatch(r"mvad evaluate \S+/out --threshold plates=([\d.]+)", command)[1]
        group.get_by_role("button", name="Back").click()
        assert field.input_value() == "25"
        assert "at present" not in counts.inner_text()
        assert silent(visited)
    rows = mvad.evaluate(str(report.parent), threshold=f"plates={threshold}", quiet=True).summary
    (row,) = [row for row in rows if row["category"] == "plates"]
    assert [row["n_flagged"], row["n_found"], row["n_false_alarms"]] == [27, 27, 0]


def test_a_phone_does_not_scroll_sideways(browser, report):
    with visit(browser, report, **PHONE) as visited:
        page = visited.page
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        assert page.evaluate("document.querySelector('.flagged table').scrollWidth") <= 360
        assert page.locator(".flagged tbody tr").first.is_visible()
        page.click("[aria-label^='Enlarge p/129.png']")
        assert page.evaluate("document.querySelector('dialog').scrollWidth") <= 360
        assert silent(visited)


def test_without_a_script_the_page_shows_the_first_part_of_the_list(browser, report):
    with visit(browser, report, java_script_enabled=False, **PHONE) as visited:
        page = visited.page
        assert len(listed(page)) == 50
        assert page.locator(".flagged .shown").inner_text().startswith("The first 50 of 120; a browser that runs")
        assert page.locator(".flagged button:visible, .what-if:visible, .filters:visible").count() == 0
        assert page.locator("caption:has-text('What other false-alarm rates would flag')").count() == 2
        assert silent(visited)


def test_the_data_of_the_page_are_safe_in_html(report):
    blocks = re.findall(r'<script type="application/json">(.*?)</script>', report.read_text(), re.S)
    assert len(blocks) == 3
    assert not set("<>&\u2028\u2029\u202e") & set("".join(blocks))
    assert [len(json.loads(block)) for block in blocks] == [7, 2, 2]
