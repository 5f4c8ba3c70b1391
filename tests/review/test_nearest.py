"""The nearest good image: what the model in use names, where both are alike, or in one sentence why it is not known."""

import asyncio
import contextlib
import io
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import requests
import torch
from PIL import Image as Picture
from starlette.testclient import TestClient

from helpers.browser import visit
from helpers.many_nights import DEFECTIVE, SIDE, date_of, write_nights
from helpers.waits import wait_until
from mvad.data.image_size import ImageSize
from mvad.demo.answers import LimitsAnswer
from mvad.demo.app import demo_app
from mvad.demo.connections import ConnectionLimits
from mvad.demo.hosts import AllowedHosts
from mvad.demo.server import serving_app
from mvad.demo.waiting import BusyError, ImageQueue
from mvad.detectors import PatchCore
from mvad.detectors.base import Nearest
from mvad.errors import UsageError
from mvad.features.backbones import describe
from mvad.html.image_memory import ImageMemory
from mvad.model_store import FittedModel, save_model
from mvad.origins.bank_origins import IMAGES, Image, origins_of
from mvad.review.folder import NightsFolder
from mvad.review.nearest import GoodImages
from mvad.review.pages import review_routes
from mvad.storage import to_uri

COUNT = 3
LAST = date_of(COUNT - 1)
FOLDER = f"date={LAST}"
FLAGGED = f"cap/{COUNT - 1:02}-019.png"
LIMITS = LimitsAnswer(upload_bytes=1 << 20, files=3, pixels=1_000_000)
SIZE = ImageSize.square(64)
GRID = (4, 4)
WORST, ALIKE = 6, 9  # patches: row 1, column 2 of the image; row 2, column 1 of the good one
GOOD_SIDES = (200, 100)
MAX_WAIT_S = 60


async def never_score(sample):
    raise AssertionError


def save(folder, images, category="cap", bank=True):
    features = torch.from_numpy(np.random.default_rng(0).standard_normal((len(images), 4, 4, 6)).astype(np.float32))
    detector = PatchCore(coreset_ratio=1.0).fit(features)
    record = {"n_train": len(images), "errors": [], "fit_seconds": 1.0}
    parts = (category, PatchCore, detector.state, describe("efficientnet_lite0"), "abc", SIZE, record)
    origins = origins_of(detector.chosen, images, GRID) if bank else None
    return save_model(to_uri(folder), FittedModel(*parts, origins=origins)), detector.chosen


class Compare:
    """Finds patch `ALIKE` of the second image, after the image has been read; or what ``answer`` is set to."""

    def __init__(self, chosen):
        self.vector = int(np.flatnonzero(chosen == 16 + ALIKE)[0])
        self.answer, self.loaded = Nearest(self.vector, WORST, GRID), []

    async def __call__(self, category, load):
        self.loaded.append((category, load()))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Place:
    """Nights, a model of the category cap, and the pages on both."""

    def __init__(self, root):
        write_nights(root / "nights", root / "images", COUNT)
        self.root, self.good = root, [root / f"good/{number}.png" for number in range(2)]
        (root / "good").mkdir()
        for file in self.good:
            Picture.new("RGB", GOOD_SIDES, (90, 120, 60)).save(file)
        named = [Image(f"good/{file.name}", file.as_uri()) for file in self.good]
        self.model, chosen = save(root / "models", named)
        self.old, _ = save(root / "old", named, "plate", bank=False)
        self.compare = Compare(chosen)

    def application(self, **models):
        memory = ImageMemory(1 << 30)
        models = models or {"cap": self.model, "plate": self.old}
        good_images = GoodImages(models, self.compare, memory, LIMITS.pixels)
        pages = review_routes(NightsFolder(to_uri(self.root / "nights")), memory, LIMITS.pixels, good_images)
        return demo_app({}, LIMITS, never_score, AllowedHosts("127.0.0.1"), memory, ImageQueue(), pages=pages)

    def client(self, **models):
        return TestClient(self.application(**models), "http://127.0.0.1")


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def nearest(client, image_id=FLAGGED, folder=FOLDER):
    answer = client.get("/api/nearest", params={"folder": folder, "image_id": image_id})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_the_good_image_and_the_places_that_are_alike(place):
    found = nearest(place.client())
    assert (found["image_id"], found["category"], found["why"]) == ("good/1.png", "cap", None)
    assert found["uri"] == str(place.good[1])
    quarter = SIDE // 4
    assert found["place"] == {"x": 2 * quarter, "y": quarter, "width": quarter, "height": quarter}
    assert found["good_place"] == {"x": 50, "y": 50, "width": 50, "height": 25}
    assert found["good_size"] == {"width": GOOD_SIDES[0], "height": GOOD_SIDES[1]}
    assert found["same_model"] is False  # the rows are of another one
    ((category, pixels),) = place.compare.loaded
    assert category == "cap"
    assert pixels[SIZE].shape == (64, 64, 3)


def test_only_images_that_the_model_names_are_served(place):
    client = place.client()

    def ask(**parameters):
        return client.get("/api/nearest/picture", params=parameters)

    shown = ask(category="cap", image_id="good/1.png")
    assert (shown.status_code, shown.headers["content-type"]) == (200, "image/webp")
    assert Picture.open(io.BytesIO(shown.content)).size == GOOD_SIDES
    for category, image_id in (("cap", FLAGGED), ("cap", str(place.good[1])), ("plate", "good/1.png"), ("x", "x")):
        refused = ask(category=category, image_id=image_id)
        assert refused.status_code == 404
        assert refused.json()["error"].startswith("the model in use names no such image")
    place.good[1].unlink()
    assert ask(category="cap", image_id="good/1.png").status_code == 404
    found = nearest(client)
    assert (found["image_id"], found["good_place"], found["good_size"]) == ("good/1.png", None, None)


@pytest.mark.parametrize(
    ("image_id", "why"),
    [
        (FLAGGED.replace("cap", "plate"), "this model does not say which images it has learnt from"),
        (FLAGGED.replace("019", "018"), "the file does not exist"),
        (FLAGGED.replace("019", "017"), "its size has changed since it was scored"),
    ],
)
def test_why_the_good_image_is_not_known(place, image_id, why):
    (place.root / "images" / FLAGGED.replace("019", "018")).unlink()
    Picture.new("RGB", (SIDE, SIDE + 1)).save(place.root / "images" / FLAGGED.replace("019", "017"))
    found = nearest(place.client(), image_id)
    assert found["image_id"] is None
    assert why in found["why"]


def test_models_that_cannot_say_it_are_named(place):
    assert "no model of this category" in nearest(place.client(plate=place.old))["why"]
    other = replace(place.model, method="subspace")
    assert "a subspace model does not compare" in nearest(place.client(cap=other))["why"]
    place.compare.answer = UsageError("the model is damaged; fit it again")
    assert nearest(place.client())["why"] == "the model is damaged; fit it again"
    for vector in (10_000, -1):
        place.compare.answer = Nearest(vector, WORST, GRID)
        assert "is damaged; fit it again" in nearest(place.client())["why"]
    place.compare.answer = BusyError("8 images are waiting, for 20 s; try again then.")
    busy = place.client().get("/api/nearest", params={"folder": FOLDER, "image_id": FLAGGED})
    assert (busy.status_code, busy.json()["error"]) == (503, "8 images are waiting, for 20 s; try again then.")
    (place.root / "models/patchcore/cap" / IMAGES).write_text("[]")
    assert "images.json is damaged" in nearest(place.client())["why"]


@contextlib.contextmanager
def served(place):
    with (
        contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listener,
        serving_app(place.application(), listener, ConnectionLimits()),
    ):
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_other_pages_answer_while_a_comparison_takes_long(place):
    started, release = threading.Event(), threading.Event()

    async def compare(category, load):
        started.set()
        await asyncio.to_thread(release.wait)
        return Nearest(vector, WORST, GRID)

    vector, place.compare = place.compare.vector, compare
    with served(place) as address, ThreadPoolExecutor(1) as thread:
        parameters = {"folder": FOLDER, "image_id": FLAGGED}
        waiting = thread.submit(requests.get, f"{address}/api/nearest", parameters, timeout=MAX_WAIT_S)
        try:
            assert started.wait(MAX_WAIT_S)
            categories = requests.get(f"{address}/api/categories", timeout=MAX_WAIT_S).json()
            assert categories == {"categories": ["cap", "plate"]}
            assert not waiting.done()
        finally:
            release.set()
        assert waiting.result().json()["image_id"] == "good/1.png"


@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 390)])
def test_the_nearest_good_image_is_shown_beside_the_image(browser, place, scheme, width):
    look = {"color_scheme": scheme, "viewport": {"width": width, "height": 900}}
    with served(place) as address, visit(browser, f"{address}/review?since={LAST}&order=score+flagged", **look) as seen:
        page = seen.page
        page.locator("#image-title").wait_for()
        wait_until(lambda: page.evaluate("document.querySelector('#picture').naturalWidth > 0"), "the picture")
        assert page.locator("#good").is_hidden()
        assert place.compare.loaded == []
        names = set()
        page.locator("#image-title").focus()
        page.keyboard.press("n")
        for _ in range(2 * DEFECTIVE):
            name = page.inner_text("#image-title")
            names.add(name)
            caption = page.locator("#good-caption")
            if name.startswith("plate"):
                caption.get_by_text("this model does not say which images it has learnt from").wait_for()
                assert page.locator("#good-viewer").is_hidden()
                assert page.locator("#place").is_hidden()
            else:
                caption.get_by_text("at the worst place: good/1.png. Another model scored this image").wait_for()
                page.locator("#good-place").wait_for()
                picture, box = (page.locator(id).bounding_box() for id in ("#good-picture", "#good-place"))
                assert abs(box["x"] - picture["x"] - picture["width"] / 4) < 2
                assert abs(box["y"] - picture["y"] - picture["height"] / 2) < 2
                assert abs(box["height"] - picture["height"] / 4) < 5
                picture, box = (page.locator(id).bounding_box() for id in ("#picture", "#place"))
                assert abs(box["x"] - picture["x"] - picture["width"] / 2) < 2
                assert abs(box["y"] - picture["y"] - picture["height"] / 4) < 2
            page.keyboard.press("ArrowRight")
        assert len(names) == 2 * DEFECTIVE
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.keyboard.press("n")
        page.locator("#good").wait_for(state="hidden")
        assert page.locator("#place").is_hidden()
        assert seen.messages == []
