"""The report is complete for any results, hostile names included, self-contained, and usable in a browser."""

import base64
import hashlib
import io
import itertools
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

import mvad
from helpers.browser import visit
from helpers.synthetic import draw, finish, write_category
from mvad import results
from mvad.anomaly_maps.colours import draw_boxes
from mvad.calibration import DecisionRule
from mvad.commands.nightly import nightly
from mvad.errors import UsageError
from mvad.html.charts import histogram, precision_recall, roc
from mvad.reports import page
from mvad.reports.page import readable_duration
from mvad.storage.text import visible

HOSTILE = "<script>alert(1)</script>\"'&\n\u202e{{ 7 * 7 }}"


TAGS = ("style", "script")  # that the policy knows by their hashes


class Reader(HTMLParser):
    """Tags with their attributes, and the text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def read(path):
    return Reader(path.read_text())


def unlabelled(data, count, seed=0):
    random = np.random.default_rng(seed)
    return [
        {"image_id": f"x/{number}.png", "uri": (data / f"{number}.png").as_uri(), "score": score}
        for number, score in enumerate(random.gamma(4, 1, count))
    ]


def test_the_report_of_a_run(base_run, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(base_run[0], out)
    result = mvad.report(str(out))
    assert result.exit_code == 0
    assert "with 16 images" in capsys.readouterr().out
    page = read(out / "report.html")
    for row in base_run[1].summary[:2]:
        assert f"{row['image_auroc']:.3f}" in page.text
        assert f"{row['pixel_ap']:.3f}" in page.text
    assert "Pixel AP" in page.text
    assert page.text.count("Missed defects") == 2
    assert "calibration (8)" in page.text
    pictures = [image for image in page.all("img") if "anomaly" in image["alt"].lower() or "/test/" in image["alt"]]
    assert all(image["src"].startswith("data:image/webp;base64,") for image in pictures)
    assert any("its marked defect outlined" in image["alt"] for image in pictures)
    assert any(re.match(r"Anomaly map of alpha/test/spot/\d+.png: highest \d+% from", i["alt"]) for i in pictures)
    # results that have a report can still be replaced; the report goes with them
    results.ensure_writable(out.as_uri(), replace=True)
    results.clear(out.as_uri())
    assert not (out / "report.html").exists()


def test_a_night_without_labels(base_run, tiles, tmp_path):
    shutil.copytree(tiles / "alpha/test", tmp_path / "dump/alpha")
    (tmp_path / "dump/alpha/broken.png").write_bytes(b"")
    nightly(str(tmp_path / "dump"), str(base_run[0] / "models"), str(tmp_path), "2026-11-23", actors=1, quiet=True)
    out = tmp_path / "date=2026-11-23"
    result = mvad.report(str(out), quiet=True)
    page = read(out / "report.html")
    assert "unlabelled (8)" in page.text
    assert "calibration (8)" in page.text  # found where the models were used from
    assert "ROC" not in page.text
    assert "the file is empty" in page.text
    assert "kept its map" in page.text
    assert not result.errors
    again = nightly(str(tmp_path / "dump"), str(base_run[0] / "models"), str(tmp_path), "2026-11-23", quiet=True)
    assert len(again.errors) == 1  # a run whose folder has a report can be resumed


@pytest.fixture
def hostile(tmp_path):
    """Results whose names are all hostile; all images but one are missing."""
    out = tmp_path / "out"
    rows = [
        {"image_id": f"{HOSTILE}{number}", "uri": f"file:///nowhere/{number}", "label": number % 2, "score": number}
        for number in range(6)
    ]
    for row in rows:
        row |= {"defect": HOSTILE if row["label"] else "good", "grid": np.arange(16, dtype=np.float32).reshape(4, 4)}
    rows[5]["uri"] = draw(tmp_path / "fine.png", defect=True)
    rows[5]["mask_uri"] = (tmp_path / "no_mask.png").as_uri()
    rows.append({"image_id": f"{HOSTILE}x", "uri": "s3://key:secret@b/x", "error": HOSTILE})
    facts = write_category(out, HOSTILE, rows, calibration=[0, 1, 2], threshold=2.0, warning=HOSTILE, note=HOSTILE)
    run = {"data": HOSTILE, "run_id": HOSTILE, "versions": {HOSTILE: HOSTILE}}
    options = {"weights": "s3://key:secret@bucket/weights.pth", HOSTILE: HOSTILE}
    finish(out, {HOSTILE: facts}, **run, options=options)
    return out


def test_hostile_names_are_text(hostile, tmp_path):
    result = mvad.report(str(hostile), to=str(tmp_path / "elsewhere/page.html"), quiet=True)
    text = (tmp_path / "elsewhere/page.html").read_text()
    page = Reader(text)
    assert [script.get("type") for script in page.all("script")] == ["application/json", "application/json", None]
    assert text.count("<script") == text.count("</script") == 3
    assert "secret" not in text
    assert "49" not in page.text.replace("\\u202e{{ 7 * 7 }}", "").split()
    assert page.text.count("<script>alert(1)</script>\"'&\\n\\u202e{{ 7 * 7 }}") > 20
    assert "\u202e" not in text
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on") or name == "style"]
    assert {error["error"].split(":")[0] for error in result.errors} == {"source image", "mask"}
    assert len(result.errors) == 6
    assert page.text.count("The source image cannot be shown.") == 7  # five are missing, two of them in two galleries
    assert len([image for image in page.all("img") if image["alt"].startswith("Anomaly map")]) >= 6


def test_the_page_may_load_and_run_nothing(hostile):
    mvad.report(str(hostile), quiet=True)
    page = read(hostile / "report.html")
    (policy,) = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    style, script = (re.search(f"<{tag}>(.*?)</{tag}>", (hostile / "report.html").read_text(), re.S)[1] for tag in TAGS)
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    assert policy == (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digests[0]}'; script-src 'sha256-{digests[1]}'; "
        "base-uri 'none'; form-action 'none'"
    )
    for tag, attributes in page.tags:
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("#", "data:")), tag


def test_the_page_is_structured(hostile):
    mvad.report(str(hostile), quiet=True)
    page = read(hostile / "report.html")
    assert [page.tags[0][0], page.all("html")[0]["lang"]] == ["html", "en"]
    assert all(len(page.all(landmark)) == 1 for landmark in ("main", "nav", "h1", "footer"))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert all(image["alt"] for image in page.all("img"))
    assert len(page.all("caption")) == len(page.all("table"))
    assert all("scope" in cell for cell in page.all("th"))
    assert all(svg.get("aria-label") or svg.get("aria-hidden") for svg in page.all("svg"))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    linked = [link["href"][1:] for link in page.all("a")]
    assert set(linked) <= set(ids)
    labels = [value for _, attributes in page.tags for key, value in attributes.items() if key == "aria-labelledby"]
    assert set(labels) <= set(ids)


def test_results_of_all_kinds(tmp_path):
    """Several methods, without maps or threshold; a category with good images only; one that was not scored."""
    out = tmp_path / "out"
    plain = unlabelled(tmp_path, 5)
    good = [{**row, "image_id": f"g{row['image_id']}", "label": 0} for row in unlabelled(tmp_path, 5, seed=1)]
    mixed = [{**row, "image_id": f"m{row['image_id']}"} for row in unlabelled(tmp_path, 6, seed=2)]
    for number, row in enumerate(mixed):
        row |= {"label": number % 2, "defect": ["good", "scratch"][number % 2]}
    failed = [{"image_id": "f/0.png", "uri": "file:///x", "error": "no model of category 'failed'"}]
    categories = {
        "failed": write_category(out, "failed", failed, note="the fit failed: too few images"),
        "good": write_category(out, "good", good, calibration=[1, 2, 3], threshold=3.0),
        "mixed": write_category(out, "mixed", mixed, method="vae"),
        "plain": write_category(out, "plain", plain, method="knn", backbone="resnet50"),
    }
    finish(out, categories)
    mvad.report(str(out), quiet=True)
    text = read(out / "report.html").text
    for words in (
        "No image was scored: the fit failed: too few images.",
        "the images carry no labels",
        "no defective test images",
        "False alarms",
        "Defective images that score lowest",
        "Good images that score highest",
        "none, so no image is flagged: the model is not calibrated",
        "Calibration scores are not shown: the model was not found; give the folder of its models with --models.",
        "no model of category 'failed'",
        "knn on resnet50",
    ):
        assert words in text
    assert text.count("Missed defects") == 0

    mvad.report(str(out), categories="failed", pictures=0, quiet=True)
    assert "mixed" not in read(out / "report.html").text


def cells_of(path, caption):
    """The rows of the table with this caption, as lists of texts."""
    table = re.search(rf"<caption>{caption}.*?</table>", path.read_text(), re.DOTALL).group()
    rows = re.findall("<tr>(.*?)</tr>", table, re.DOTALL)
    return [[Reader(cell).text for cell in re.findall("<t[hd].*?</t[hd]>", row, re.DOTALL)] for row in rows]


def test_a_table_says_what_other_false_alarm_rates_would_flag(tmp_path):
    """Of 200 calibration scores, 190 are below the threshold at 5 %; it needs no script, and evaluate agrees."""
    rows = [{"image_id": f"c/{n}", "uri": "file:///x", "label": n % 2, "score": 150.5 + n} for n in range(48)]
    rule = DecisionRule("0" * 64, np.arange(200, dtype=np.float32), "conformal", 198.0, rate=0.01)
    finish(tmp_path, {"c": write_category(tmp_path, "c", rows, rule=rule)})
    mvad.report(str(tmp_path), quiet=True)
    table = {row[0]: row[1:] for row in cells_of(tmp_path / "report.html", "What other false-alarm rates would flag")}
    assert table["False-alarm rate"] == ["Flagged", "Defects found", "Defects missed", "False alarms", ""]
    assert table["0.1%"] == ["0", "0", "24", "0", "needs 799 more good images"]
    assert table["1% asked for"] == ["0", "0", "24", "0", ""]
    assert table["5%"] == ["8", "4", "20", "4", ""]
    row = mvad.evaluate(str(tmp_path), false_alarm_rate=0.05, quiet=True).summary[0]
    assert [row["n_flagged"], row["n_found"], row["n_false_alarms"]] == [8, 4, 4]
    mvad.evaluate(str(tmp_path), threshold="180", quiet=True)
    mvad.report(str(tmp_path), quiet=True)
    assert "asked for" not in read(tmp_path / "report.html").text
    assert "Threshold 180, as given" in read(tmp_path / "report.html").text


@pytest.mark.parametrize("label", [None, 0])
def test_uncertain_images_are_shown_as_such(tmp_path, label):
    rows = [{"image_id": f"c/{n}", "uri": "file:///x", "label": label, "score": 180.5 + n} for n in range(20)]
    rule = DecisionRule("0" * 64, np.arange(200, dtype=np.float32), "conformal", 198.0, uncertain_threshold=190.0)
    finish(tmp_path, {"c": write_category(tmp_path, "c", rows, rule=rule)})
    mvad.report(str(tmp_path), quiet=True, pictures=40)
    page = read(tmp_path / "report.html")
    assert "uncertain 8" in page.text
    assert "Uncertain above 190 and not flagged: for people to look at" in page.text
    assert [tag.get("class") for tag in page.all("span")].count("badge uncertain") == 8 + 8  # pictures, list


@pytest.mark.parametrize(
    ("flags", "statement"),
    [
        ({"moved": False}, "No drift (score level as in calibration)."),
        ({"moved": True}, "DRIFT: the whole batch scores differently; check camera and light first."),
        ({"moved": True, "drifted": False}, "No drift (score level as in calibration)."),
    ],
)
def test_drift_is_stated_in_words_with_its_statistics_folded(tmp_path, flags, statement):
    """Results of earlier versions say ``moved`` only."""
    drift = {"ks_p_value": 0.4, "share_below": 0.05, "median_shift": 0.1, "n": 5, "moved": False, **flags}
    finish(tmp_path, {"c": write_category(tmp_path, "c", unlabelled(tmp_path, 5), drift=drift)})
    mvad.report(str(tmp_path), quiet=True)
    text = read(tmp_path / "report.html").text
    assert f"Drift {statement} Statistics" in text
    assert "5.0% of the 5 images that are not labelled defective" in text


def test_many_categories_have_pages_of_their_own(tmp_path):
    out = tmp_path / "out"
    names = [f"part {number:02}%#?" for number in range(41)]
    facts = {name: write_category(out, name, unlabelled(tmp_path, 2, 1)[:1]) for name in names}
    finish(out, facts)
    mvad.report(str(out), to=str(out / "report.html"), quiet=True)
    links = [link["href"] for link in read(out / "report.html").all("a")]
    assert "report/part%252000%2525%2523%253F.html" not in links
    assert len({link for link in links if link.startswith("report/")}) == 41
    assert len(list((out / "report").iterdir())) == 41
    results.ensure_writable(out.as_uri(), replace=True)


@pytest.fixture(scope="module")
def thousands(tmp_path_factory):
    """The page on 5,000 labelled images of ten categories with maps; the images are noise, which compresses worst."""
    folder = tmp_path_factory.mktemp("thousands")
    random, uris = np.random.default_rng(0), []
    for number in range(40):
        uris.append((folder / f"{number}.png").as_uri())
        Image.fromarray(random.integers(0, 256, (400, 400, 3), np.uint8)).save(folder / f"{number}.png")
    facts = {}
    for name in (f"part {number}" for number in range(10)):
        rows = []
        for number in range(500):
            label = int(number % 5 == 0)
            row = {"image_id": f"{name}/{number:04}.png", "uri": uris[number % 40], "width": 400, "height": 400}
            row |= {"label": label, "defect": "dent" if label else "good", "score": random.normal(label, 0.6)}
            rows.append(row | {"grid": random.random((28, 28), np.float32)})
        calibration = random.normal(0, 0.6, 200)
        facts[name] = write_category(folder / "out", name, rows, calibration=calibration, threshold=1.0)
    finish(folder / "out", facts)
    mvad.report(str(folder / "out"), quiet=True)
    return folder / "out/report.html"


def test_a_report_of_thousands_of_images_is_a_few_megabytes(thousands):
    assert len(read(thousands).all("section")) > 10
    assert not (thousands.parent / "report").exists()
    assert 2e6 < thousands.stat().st_size < 15e6


def test_a_page_that_would_grow_too_large_is_divided(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "MAX_SECTION_BYTES", 10_000)
    names = "abcdefgh"
    finish(tmp_path, {name: write_category(tmp_path, name, unlabelled(tmp_path, 3)) for name in names})
    mvad.report(str(tmp_path), quiet=True)
    links = {link["href"] for link in read(tmp_path / "report.html").all("a")}
    assert {f"report/{name}.html" for name in names} <= links
    assert "Scores by group" not in read(tmp_path / "report.html").text
    for name in names:
        assert "Scores by group" in read(tmp_path / f"report/{name}.html").text


def test_a_report_of_thousands_of_images_in_a_browser(browser, thousands):
    with visit(browser, thousands) as visited:
        pictures = visited.page.evaluate("document.images.length")
        assert pictures > 200
        assert visited.page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
        assert visited.messages == []


def test_patch_scores_are_read_for_shown_images_only(tmp_path, monkeypatch):
    out = tmp_path / "out"
    rows = unlabelled(tmp_path, 60)
    for row in rows:
        row["grid"] = np.ones((4, 4), np.float32)
    finish(out, {"c": write_category(out, "c", rows)})
    counts = []
    read_images = results.read_images
    monkeypatch.setattr(results, "read_images", lambda *args: counts.append(len(args[2])) or read_images(*args))
    monkeypatch.setattr(results, "read_part", lambda *args: pytest.fail("a file was read in full"))
    mvad.report(str(out), pictures=7, quiet=True)
    assert counts == [60, 7]  # a sample for the colours, and the images shown
    with pytest.raises(UsageError, match="pictures -1 is too small"):
        mvad.report(str(out), pictures=-1)


def test_wrong_uses(tmp_path, hostile):
    with pytest.raises(UsageError, match=r"does not end in \.html"):
        mvad.report(str(hostile), to=str(tmp_path / "page.pdf"))
    with pytest.raises(UsageError, match="lies in the folder of the results"):
        mvad.report(str(hostile), to=str(hostile / "page.html"))
    with pytest.raises(UsageError, match="unknown category 'lid'"):
        mvad.report(str(hostile), categories="lid")
    with pytest.raises(UsageError, match="no results in"):
        mvad.report(str(tmp_path))
    finish(hostile, {}, command="compare")
    with pytest.raises(UsageError, match="holds a comparison"):
        mvad.report(str(hostile))


def test_histograms_count_every_score():
    groups = {"good": np.array([1.0, 2, 2, 3]), "defective": np.array([2.5, 1000.0]), "unlabelled": np.array([])}
    chart = histogram(groups, 2.2)
    assert chart.columns == ["score", "good", "defective"]
    counts = [[int(cell) for cell in row[1:]] for row in chart.rows]
    assert np.sum(counts, axis=0).tolist() == [4, 2]
    assert "Defective: 2, median 501.2, from 2.5 to 1000, 2 above the threshold." in chart.text
    assert histogram({"good": np.array([])}, None) is None
    assert "Good: 1" in histogram({"good": np.array([5.0])}, None).text
    crowd = histogram({"good": np.append(np.linspace(1, 2, 100), 1e6)}, None)
    assert "The last bar holds all values" in crowd.text
    assert sum(int(row[1]) for row in crowd.rows) == 101


def test_curves_agree_with_the_metrics():
    random = np.random.default_rng(0)
    labels = (random.random(5000) < 0.3).astype(np.int8)
    scores = (random.normal(size=5000) + labels).astype(np.float32)
    from mvad.metrics.image import image_metrics

    metrics = image_metrics(labels, scores)
    assert f"AUROC {metrics['image_auroc']:.3f}" in roc(labels, scores, (0.1, 0.2)).text
    chart = precision_recall(labels, scores)
    assert f"{metrics['image_ap']:.3f}" in chart.text
    assert len(chart.svg) < 8000
    first_and_last = re.search(r'points="([^ ]+) [^"]* ([^ "]+)"', roc(labels, scores).svg).groups()
    assert first_and_last == ("44.0,240.0", "274.0,10.0")


def test_names_and_times_for_people():
    assert visible("a\tb\0c\u200b ü 漢") == "a\\tb\\x00c\\u200b ü 漢"
    assert [readable_duration(value) for value in (3.26, 125, 7322)] == ["3.3 s", "2 min 05 s", "2 h 02 min"]


def test_in_a_browser(browser, hostile, tmp_path):
    """The console and the network stay silent, links work, and a phone does not have to scroll sideways."""
    mvad.report(str(hostile), quiet=True)
    for context in (
        {"color_scheme": "light", "viewport": {"width": 1200, "height": 900}},
        {"color_scheme": "dark", "viewport": {"width": 360, "height": 700}},
    ):
        with visit(browser, hostile / "report.html", **context, reduced_motion="reduce") as visited:
            page = visited.page
            assert page.title().startswith("Anomaly report: <script>alert(1)</script>")
            content, window = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
            assert content <= window
            background = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert background == {"light": "rgb(246, 246, 244)", "dark": "rgb(20, 22, 25)"}[context["color_scheme"]]
            assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
            page.keyboard.press("Tab")
            assert page.evaluate("document.activeElement.className") == "skip"
            for link in page.query_selector_all("nav a"):
                link.click()
                target = page.url.partition("#")[2]
                assert page.evaluate(f"document.getElementById('{target}').getBoundingClientRect().top < innerHeight")
            details = page.query_selector("details summary")
            details.click()
            assert page.evaluate("document.querySelector('details').open")
            assert visited.messages == []
            assert [request for request in visited.requests if not request.startswith(("file:", "data:"))] == []


def test_pages_of_categories_in_a_browser(browser, tmp_path):
    out = tmp_path / "out"
    names = [f"part {number:02}%#?é" for number in range(41)]
    finish(out, {name: write_category(out, name, unlabelled(tmp_path, 1)) for name in names})
    mvad.report(str(out), quiet=True)
    with visit(browser, out / "report.html") as visited:
        visited.page.click("tbody a >> nth=3")
        assert visited.page.inner_text("h1") == names[3]
        visited.page.click("main p a")
        assert visited.page.inner_text("h1") == "Anomaly report"
        assert visited.messages == []


def test_regions_are_boxes_on_the_image_and_a_line_below(tmp_path):
    out = tmp_path / "out"
    Image.new("RGB", (400, 200), (90, 90, 90)).save(tmp_path / "a.png")
    box = {"x": 100, "y": 40, "width": 80, "height": 60, "area": 900, "peak": 4.0, "mean": 2.0}
    small = {**box, "x": 300, "width": 8, "peak": 3.0}
    rows = [
        {"image_id": name, "uri": (tmp_path / "a.png").as_uri(), "score": score, "width": 400, "height": 200}
        for name, score in (("two", 3.0), ("none", 1.0), ("unknown", 0.5))
    ]
    rows[0]["regions"], rows[1]["regions"] = [box, small], []
    finish(out, {"c": write_category(out, "c", rows, calibration=np.linspace(0, 2, 30), threshold=2.0)})
    mvad.report(str(out), quiet=True)
    page = (out / "report.html").read_text()
    assert page.count("2 regions; the strongest 80 x 60 pixels at x 100, y 40") == 1
    assert page.count("no region above the pixel threshold") == 1
    picture = Image.new("RGB", (200, 100), (90, 90, 90))
    draw_boxes(picture, [box], 400, 200)
    coloured = np.argwhere((np.asarray(picture) != 90).any(axis=2))
    assert coloured.min(axis=0).tolist() == [19, 49]
    assert coloured.max(axis=0).tolist() == [50, 90]


def large_images(folder, count, **facts):
    """Results on large images of noise, each with a small region."""
    random = np.random.default_rng(0)
    region = {"x": 590, "y": 10, "width": 8, "height": 300, "area": 9, "peak": 4.0, "mean": 2.0}
    wide = {**region, "x": 0, "width": 400, "area": 8, "peak": 5.0}  # larger only in its box
    rows = []
    for number in range(count):
        Image.fromarray(random.integers(0, 256, (1500, 600, 3), np.uint8)).save(folder / f"{number}.png")
        rows.append({"image_id": f"{number}", "uri": (folder / f"{number}.png").as_uri(), "score": 1.0 - number / 100})
        rows[-1] |= {"width": 600, "height": 1500, "regions": [wide, region]}
    finish(folder / "out", {"c": write_category(folder / "out", "c", rows, **facts)})
    return folder / "out"


def test_a_detail_shows_the_pixels_around_the_largest_region(tmp_path):
    out = large_images(tmp_path, 1)
    mvad.report(str(out), quiet=True)
    (image,) = [image for image in read(out / "report.html").all("img") if image["alt"].startswith("Around the")]
    assert (image["width"], image["height"]) == ("192", "512")
    assert image["alt"].endswith("of 0: pixels 408 to 599 from the left, 0 to 511 from the top")
    shown = Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2])))
    place = Image.open(tmp_path / "0.png").crop((408, 0, 600, 512))
    light, own = (np.asarray(one.convert("L"), float).ravel() for one in (shown, place))
    assert np.corrcoef(light, own)[0, 1] > 0.8  # lossy, and of noise


def test_details_are_left_out_and_counted_where_a_page_would_grow_too_large(tmp_path, monkeypatch):
    out = large_images(tmp_path, 3)
    mvad.report(str(out), quiet=True)
    size = next(len(image["src"]) for image in read(out / "report.html").all("img") if "Around" in image["alt"])
    monkeypatch.setattr(page, "MAX_DETAIL_BYTES", int(1.5 * size))
    mvad.report(str(out), quiet=True)
    report = read(out / "report.html")
    assert [image["alt"][:31] for image in report.all("img") if "Around" in image["alt"]] == [
        "Around the largest region of 0:"
    ]
    assert "The own pixels of 2 pictures are left out, so that the page does not grow too large." in report.text


def test_thumbnails_of_large_and_long_images(tmp_path):
    out = tmp_path / "out"
    Image.new("RGB", (4000, 10), (200, 10, 10)).save(tmp_path / "long.png")
    row = {"image_id": "long.png", "uri": (tmp_path / "long.png").as_uri(), "score": 1.0, "width": 4000, "height": 10}
    row["grid"] = np.eye(4, dtype=np.float32)
    finish(out, {"c": write_category(out, "c", [row])})
    result = mvad.report(str(out), quiet=True)
    assert not result.errors
    sizes = {(image["width"], image["height"]) for image in read(out / "report.html").all("img")}
    assert ("208", "10") in sizes
