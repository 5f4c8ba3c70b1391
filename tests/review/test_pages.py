"""Nights and Review: what happened is seen, what people say is kept, and nobody gets more than that."""

import contextlib
import io
import re
import socket

import numpy as np
import pyarrow.csv as pacsv
import pytest
from PIL import Image
from starlette.testclient import TestClient

from helpers.browser import visit
from helpers.many_nights import DEAD, DEFECTIVE, GOOD, LIGHT, NEW_PRODUCT, SIDE, THRESHOLD, date_of, write_nights
from helpers.score_files import write_rows
from helpers.waits import wait_until
from mvad.demo.answers import LimitsAnswer
from mvad.demo.app import demo_app
from mvad.demo.connections import ConnectionLimits
from mvad.demo.hosts import AllowedHosts
from mvad.demo.server import serving_app
from mvad.demo.waiting import ImageQueue
from mvad.errors import UsageError
from mvad.html.image_memory import ImageMemory
from mvad.nights.labels import read_labels
from mvad.review.folder import NightsFolder
from mvad.review.pages import ASSETS, STATIC, review_routes
from mvad.storage import to_uri

LAST = date_of(29)
FOLDER = f"date={LAST}"
LIMITS = LimitsAnswer(upload_bytes=1 << 20, files=3, pixels=1_000_000)


async def never_score(sample):
    raise AssertionError


def application(root):
    memory = ImageMemory(1 << 30)
    pages = review_routes(NightsFolder(to_uri(root)), memory, LIMITS.pixels)
    return demo_app({}, LIMITS, never_score, AllowedHosts("127.0.0.1"), memory, ImageQueue(), pages=pages)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    place = tmp_path_factory.mktemp("nights")
    write_nights(place / "nights", place / "images")
    return place / "nights"


@pytest.fixture
def nights(written):
    """The nights, without labels."""
    for path in (written / "labels").glob("*"):
        path.unlink()
    return written


@pytest.fixture
def client(nights):
    return TestClient(application(nights), "http://127.0.0.1")


@pytest.fixture
def served(nights):
    with (
        contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listener,
        serving_app(application(nights), listener, ConnectionLimits()),
    ):
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def series_of(client, name, **parameters):
    content = client.get("/api/nights", params=parameters).json()
    (found,) = (one for one in content["series"] if one["category"] == name)
    return found


def queue(client, **parameters):
    return client.get("/api/queue", params=parameters).json()


def label(client, images, judgement="good", reviewer="ann", **facts):
    labels = [{"folder": one["folder"], "image_id": one["image_id"], "judgement": judgement, **facts} for one in images]
    return client.post("/api/labels", json={"reviewer": reviewer, "labels": labels})


def test_the_numbers_of_each_night(client):
    cap = series_of(client, "cap")["nights"]
    assert [night["night"] for night in cap] == [date_of(number).isoformat() for number in range(30)]
    usual, light, dead = cap[0], cap[LIGHT], cap[DEAD]
    assert (usual["n_images"], usual["n_flagged"], usual["n_errors"]) == (GOOD + DEFECTIVE, DEFECTIVE, 0)
    assert usual["drifted"] is False
    assert (light["drifted"], light["n_flagged"]) == (True, GOOD + DEFECTIVE)
    assert light["n_flagged"] / light["n_decided"] > light["flagged_limits"][1]
    assert usual["flagged_limits"][0] <= usual["n_flagged"] / usual["n_decided"] <= usual["flagged_limits"][1]
    assert (dead["n_images"], dead["n_errors"], dead["median_score"]) == (0, GOOD + DEFECTIVE, None)
    assert [number for number, night in enumerate(cap) if night["model_changed"]] == [20]
    new = series_of(client, "unknown product")["nights"]
    assert [night["night"] for night in new] == [date_of(NEW_PRODUCT).isoformat()]


def test_nights_are_chosen_by_date_and_category(client):
    until = date_of(3).isoformat()
    assert len(series_of(client, "cap", until=until, category="cap")["nights"]) == 4
    content = client.get("/api/nights", params={"since": LAST.isoformat(), "category": ["plate"]}).json()
    assert [one["category"] for one in content["series"]] == ["plate"]
    assert content["categories"] == ["cap", "plate"]
    nothing = client.get("/api/nights", params={"since": "2030-01-01"})
    assert (nothing.status_code, "no results of these nights" in nothing.json()["error"]) == (404, True)
    wrong = client.get("/api/nights", params={"since": "yesterday"})
    assert (wrong.status_code, wrong.json()["error"].startswith("since: ")) == (422, True)


def test_numbers_are_computed_ahead_of_the_first_question(nights, monkeypatch):
    folder = NightsFolder(to_uri(nights))
    folder.look_ahead().join()
    monkeypatch.setattr("mvad.nights.rows.NightRows.query", lambda *args: pytest.fail("they were not kept"))
    assert len(folder.trends.of(folder.nights())) == 2 * 30 + 1
    damaged = NightsFolder(to_uri(nights.parent / "images"))
    damaged.look_ahead().join()
    with pytest.raises(UsageError, match="no results in"):
        damaged.nights()


def test_a_night_that_grows_is_seen(client, nights, monkeypatch):
    monkeypatch.setattr("mvad.review.folder.LISTED_AGAIN_S", 0)
    later = nights / "date=2026-12-01"
    assert len(series_of(client, "plate")["nights"]) == 30
    try:
        for name in ("a", "b"):
            write_rows(later, "plate", [{"image_id": name, "threshold": THRESHOLD, "is_anomaly": False}])
            latest = series_of(client, "plate")["nights"][-1]
            assert latest["night"] == "2026-12-01"
            assert latest["n_images"] == (1 if name == "a" else 2)
    finally:
        for path in sorted(later.rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        later.rmdir()


def test_flagged_images_come_in_order_of_their_score(client):
    found = queue(client, drawn="score", among="flagged", since=LAST.isoformat())
    scores = [image["score"] for image in found["images"]]
    assert found["n_images"] == len(scores) == 2 * DEFECTIVE
    assert scores == sorted(scores, reverse=True)
    assert all(score > THRESHOLD for score in scores)


def test_images_near_the_threshold_come_first(client):
    found = queue(client, drawn="threshold", among="all", since=LAST.isoformat())
    distances = [abs(image["score"] - THRESHOLD) for image in found["images"]]
    assert distances == sorted(distances)
    assert found["n_images"] == 2 * (GOOD + DEFECTIVE)


def test_a_random_sample_is_the_same_for_everybody_and_goes_on_without_its_labelled_images(client):
    asked = {"drawn": "random", "among": "passed", "category": "cap", "limit": 200}
    everything = queue(client, **asked)["images"]
    names = [image["image_id"] for image in everything]
    assert names != sorted(names)
    assert names == [image["image_id"] for image in queue(client, **asked)["images"]]
    label(client, everything[:3], drawn="random")
    assert [image["image_id"] for image in queue(client, **asked)["images"]][:197] == names[3:]
    label(client, everything[5:6], drawn="score")  # still belongs to the sample
    assert [image["image_id"] for image in queue(client, **asked)["images"]][:197] == names[3:]
    assert names[5] not in [image["image_id"] for image in queue(client, drawn="chosen", among="all")["images"]]


def test_labels_say_who_when_what_and_of_which_model(client, nights):
    images = queue(client, since=LAST.isoformat())["images"]
    assert label(client, images[:2], "defect", defect="spot", drawn="score").status_code == 201
    assert label(client, images[:1], None).status_code == 201
    rows = read_labels(to_uri(nights)).table.to_pylist()
    assert [(row["image_id"], row["judgement"]) for row in rows] == [
        (images[0]["image_id"], "defect"),
        (images[1]["image_id"], "defect"),
        (images[0]["image_id"], None),
    ]
    assert (rows[1]["reviewer"], rows[1]["defect"], rows[1]["model_id"]) == ("ann", "spot", "b" * 64)
    assert (rows[1]["night"], rows[1]["folder"], rows[1]["verdict"]) == (LAST, FOLDER, "anomalous")
    left = queue(client, since=LAST.isoformat())["images"]
    assert images[1]["image_id"] not in [image["image_id"] for image in left]
    shown = queue(client, since=LAST.isoformat(), labelled="too")["images"]
    said = {image["image_id"]: image["label"] for image in shown}
    assert said[images[1]["image_id"]] == {"judgement": "defect", "defect": "spot", "reviewer": "ann"}
    assert said[images[0]["image_id"]] is None


def test_labels_as_csv_hold_no_formulas(client):
    label(client, queue(client, since=LAST.isoformat())["images"][:1], "defect", reviewer="=1+1", defect="@x")
    answer = client.get("/labels.csv")
    (row,) = pacsv.read_csv(io.BytesIO(answer.content)).to_pylist()
    assert (row["reviewer"], row["defect"], row["judgement"]) == ("'=1+1", "'@x", "defect")


def test_labels_as_coco_have_the_regions_of_defects_alone(client):
    first, second, third = queue(client, since=LAST.isoformat())["images"][:3]
    label(client, [first], "defect", defect="spot")
    label(client, [second], "good")
    label(client, [third], "defect")
    coco = client.get("/labels.json").json()
    kinds = {kind["id"]: kind["name"] for kind in coco["categories"]}
    names = {image["id"]: image["file_name"] for image in coco["images"]}
    assert {*names.values()} == {f"{FOLDER}/{image['image_id']}" for image in (first, second, third)}
    boxes = {(names[one["image_id"]], kinds[one["category_id"]]): one["bbox"] for one in coco["annotations"]}
    assert boxes == {
        (f"{FOLDER}/{image['image_id']}", kind): [image["regions"][0][key] for key in ("x", "y", "width", "height")]
        for image, kind in ((first, "spot"), (third, "defect"))
    }
    assert [one["id"] for one in coco["annotations"]] == [1, 2]


@pytest.mark.parametrize(
    ("change", "status"),
    [({"judgement": "bad"}, 422), ({"image_id": "none.png"}, 404), ({"folder": "../x"}, 404), ({"other": 1}, 422)],
)
def test_labels_that_are_not_right_are_refused_and_nothing_is_written(client, nights, change, status):
    (image, *_) = queue(client, since=LAST.isoformat())["images"]
    labels = [{"folder": FOLDER, "image_id": image["image_id"], "judgement": "good", **change}]
    answer = client.post("/api/labels", json={"reviewer": "ann", "labels": labels})
    assert answer.status_code == status
    assert answer.json()["error"]
    assert not list((nights / "labels").glob("*"))


def test_labels_from_a_page_of_another_site_are_refused(client, nights):
    headers = {"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"}
    (image, *_) = queue(client, since=LAST.isoformat())["images"]
    body = {"reviewer": "x", "labels": [{"folder": FOLDER, "image_id": image["image_id"], "judgement": "good"}]}
    assert client.post("/api/labels", json=body, headers=headers).status_code == 403
    assert not list((nights / "labels").glob("*"))


def picture(client, path="/api/picture", **parameters):
    answer = client.get(path, params={"folder": FOLDER, **parameters})
    assert answer.status_code == 200, answer.text
    return Image.open(io.BytesIO(answer.content))


def test_pictures_of_an_image_its_own_pixels_and_its_map(client, nights):
    (image, *_) = queue(client, since=LAST.isoformat(), category="cap")["images"]
    name = image["image_id"]
    assert picture(client, image_id=name).size == (SIDE, SIDE)
    assert picture(client, image_id=name, side=48).size == (48, 48)
    part = picture(client, image_id=name, left=80, top=10, width=32, height=20)  # moved so that it lies inside
    assert part.size == (32, 20)
    stored = np.asarray(Image.open(nights.parent / "images" / name).convert("RGB"), float)
    assert np.abs(np.asarray(part.convert("RGB"), float) - stored[10:30, 64:96]).mean() < 8
    drawn = picture(client, "/api/map", image_id=name)
    assert (drawn.mode, drawn.size) == ("RGBA", (SIDE, SIDE))
    good = queue(client, drawn="random", among="passed", since=LAST.isoformat())["images"][0]
    assert client.get("/api/map", params={"folder": FOLDER, "image_id": good["image_id"]}).status_code == 204


def test_an_image_that_has_gone_is_one_sentence(client):
    (image, *_) = queue(client, until=date_of(0).isoformat())["images"]
    answer = client.get("/api/picture", params={"folder": image["folder"], "image_id": image["image_id"]})
    assert answer.status_code == 404
    assert image["image_id"] in answer.json()["error"]
    assert client.get("/api/picture", params={"folder": "", "image_id": "/etc/passwd"}).status_code == 404


def test_a_damaged_file_of_labels_is_named(client, nights):
    (nights / "labels").mkdir(exist_ok=True)
    (nights / "labels/x.parquet").write_bytes(b"PAR1")
    (problem,) = queue(client, since=LAST.isoformat())["problems"]
    assert "x.parquet" in problem


def test_the_pages_load_nothing_from_elsewhere():
    for page in ("nights", "review"):
        text = (STATIC / f"{page}.html").read_text()
        named = set(re.findall(r'(?:href|src)="review-static/([^"]+)"', text))
        assert named <= {*ASSETS}
        assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*src=)|https?:", text)
        script = (STATIC / f"{page}.js").read_text()
        assert not re.search(r"https?:|innerHTML|insertAdjacentHTML|document\.write|eval\(", script)


def test_nights_in_a_browser(browser, served):
    for scheme, width in (("light", 1200), ("dark", 390)):
        with visit(browser, f"{served}/nights", color_scheme=scheme, viewport={"width": width, "height": 900}) as seen:
            page = seen.page
            page.locator("section h2", has_text="unknown product").wait_for()
            assert "30 nights from 2026-10-01 to 2026-10-30, 3 categories." in page.inner_text("#state")
            alarms = page.locator("tr.alarm")
            texts = alarms.all_inner_texts()
            assert any(date_of(LIGHT).isoformat() in text and "drifted" in text for text in texts)
            assert any(date_of(DEAD).isoformat() in text and "no image could be scored" in text for text in texts)
            assert page.locator("canvas").count() >= 6
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            assert seen.messages == []
            assert all(url.startswith((served, "data:")) for url in seen.requests)
    with visit(browser, f"{served}/nights?category=plate") as seen:
        seen.page.locator("section h2", has_text="plate").wait_for()
        assert seen.page.locator("#series section").count() == 1
        seen.page.get_by_role("link", name=LAST.isoformat()).click()
        seen.page.locator("#image-title", has_text="plate/29-").wait_for()
        assert seen.page.input_value("#since") == LAST.isoformat()


def test_ten_images_are_reviewed_by_keyboard(browser, served, nights):
    address = f"{served}/review?since={LAST}&order=threshold+all"
    with visit(browser, address, viewport={"width": 390, "height": 800}) as seen:
        page = seen.page
        page.fill("#reviewer", "ann")
        page.locator("#image-title").wait_for()
        wait_until(lambda: page.evaluate("document.querySelector('#picture').naturalWidth > 0"), "the picture")
        page.locator("#image-title").focus()
        names = []
        for count, key in enumerate("gdugdugdug", 1):
            names.append(page.inner_text("#image-title"))
            page.keyboard.press(key)
            page.locator("#state", has_text=f" {count} labelled now").wait_for()
        wait_until(lambda: len(read_labels(to_uri(nights)).table) == 10, "the last label")
        page.keyboard.press("z")
        wait_until(lambda: len(read_labels(to_uri(nights)).table) == 11, "taking it back")
        page.locator("#state", has_text=" 9 labelled now").wait_for()
        assert page.inner_text("#image-title") == names[-1]
        page.keyboard.press("o")
        page.locator(".viewer.own-pixels").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert seen.messages == []
    labels = read_labels(to_uri(nights)).table.to_pylist()
    assert [row["judgement"] for row in labels] == [*("good", "defect", "unsure") * 3, "good", None]
    assert [row["image_id"] for row in labels] == [*names, names[-1]]
    assert len({*names}) == 10
    assert {(row["reviewer"], row["drawn"]) for row in labels} == {("ann", "threshold")}


def test_two_browsers_at_once_lose_no_label(browser, served, nights):
    address = f"{served}/review?since={LAST}&order=score+flagged"
    with visit(browser, address) as one, visit(browser, address) as other:
        for seen, name in ((one, "ann"), (other, "bob")):
            seen.page.fill("#reviewer", name)
            seen.page.locator("#image-title").wait_for()
            seen.page.locator("#image-title").focus()
        for count in range(1, 2 * DEFECTIVE + 1):
            for seen in (one, other):
                seen.page.keyboard.press("d")
            for seen in (one, other):
                seen.page.locator("#state", has_text=f" {count} labelled now").wait_for()
        wait_until(lambda: len(read_labels(to_uri(nights)).table) == 4 * DEFECTIVE, "the last label")
        assert one.messages == other.messages == []
    labels = read_labels(to_uri(nights)).table
    assert labels.group_by("reviewer").aggregate([("label_id", "count")]).sort_by("reviewer").to_pylist() == [
        {"reviewer": name, "label_id_count": 2 * DEFECTIVE} for name in ("ann", "bob")
    ]


def test_keys_that_come_faster_than_answers_label_one_image_each(browser, served, nights):
    with visit(browser, f"{served}/review?since={LAST}&order=random+passed") as seen:
        page = seen.page
        page.fill("#reviewer", "ann")
        page.locator("#image-title").wait_for()
        page.locator("#image-title").focus()
        for key in "gdgug":
            page.keyboard.press(key, delay=0)
        wait_until(lambda: len(read_labels(to_uri(nights)).table) == 5, "the last label")
        assert seen.messages == []
    labels = read_labels(to_uri(nights)).table
    assert labels["judgement"].to_pylist() == ["good", "defect", "good", "unsure", "good"]
    assert len({*labels["image_id"].to_pylist()}) == 5


def test_a_label_that_is_not_kept_brings_its_image_back(browser, served, nights):
    with visit(browser, f"{served}/review?since={LAST}&order=score+flagged") as seen:
        page = seen.page
        page.fill("#reviewer", "ann")
        page.locator("#image-title").wait_for()
        name = page.inner_text("#image-title")
        (nights / "labels").rmdir() if (nights / "labels").exists() else None
        (nights / "labels").write_text("in the way")
        try:
            page.get_by_role("button", name="good").click()
            page.locator("#problem", has_text="labels").wait_for()
        finally:
            (nights / "labels").unlink()
        assert page.inner_text("#image-title") == name
        assert "0 labelled now" in page.inner_text("#state")
