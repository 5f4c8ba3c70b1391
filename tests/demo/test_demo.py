"""The demo: the scores of the other commands, a sentence for every unusable upload, and a page that shows both."""

import base64
import io
import os
import re
import shutil
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import psutil
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from PIL import Image
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance
from starlette.testclient import TestClient

import mvad
from helpers.browser import drop, visit
from helpers.tiles import EMBEDDED, paint
from helpers.wide_samples import png16
from mvad import results
from mvad.anomaly_maps.colours import THRESHOLD_LEVEL
from mvad.calibration import DecisionRule
from mvad.data.images import resize_and_crop
from mvad.data.layouts.files import SUFFIXES
from mvad.demo.answers import LimitsAnswer
from mvad.demo.app import ASSETS, MAX_SIDE_PIXELS, STATIC, demo_app, map_layer
from mvad.demo.category_models import CategoryModel, detect_category, read_category_models
from mvad.demo.hosts import AllowedHosts, is_loopback
from mvad.demo.requests import SECURITY_HEADERS
from mvad.demo.scorer import DemoScorer, Sample
from mvad.demo.server import serving
from mvad.demo.waiting import BusyError, ImageQueue
from mvad.errors import UsageError
from mvad.features.backbones import describe
from mvad.features.specs import prepare
from mvad.features.weights import Network
from mvad.html.image_memory import ImageMemory
from mvad.html.thumbnails import fit_within
from mvad.model_store import read_origins
from mvad.options import ServeOptions

LIMITS = LimitsAnswer(upload_bytes=300_000, files=3, pixels=40_000)
ADDRESS, HOSTS = "http://127.0.0.1", AllowedHosts("127.0.0.1")
MAX_MODEL_BYTES = 1 << 30
DONE = ".result:not([aria-busy])"
BUSY_ONCE = """() => {
    const real = window.fetch;
    window.fetch = () => {
        window.fetch = real;
        return Promise.resolve(new Response('{"error": "busy"}', { status: 503, headers: { "Retry-After": "0" } }));
    };
}"""
HOSTILE = "<img src=x onerror=alert(1)>\"'&\u202e.png"


@pytest.fixture(scope="module")
def folder(base_run):
    return str(base_run[0] / "models")


@pytest.fixture(scope="module")
def models(folder):
    return read_category_models(folder, ServeOptions())[0]


@pytest.fixture(scope="module")
def extractor_specs(models):
    network = Network.load(describe(EMBEDDED["backbone"]), None)
    (key,) = {model.extractor_key for model in models.values()}
    return {key: prepare(["patches"], network, key[1], "auto")}


@pytest.fixture(scope="module")
def scorer(models, extractor_specs):
    return DemoScorer(models, extractor_specs, MAX_MODEL_BYTES)


def application(scorer, hosts=HOSTS):
    async def score(sample):
        return scorer.score([sample])[0]

    return demo_app(scorer.models, LIMITS, score, hosts, ImageMemory(256 << 20), ImageQueue())


@pytest.fixture(scope="module")
def client(scorer):
    return TestClient(application(scorer), ADDRESS)


@pytest.fixture(scope="module")
def rows(base_run):
    table = results.read_scores(base_run[0].as_uri(), ["image_id", "score", "threshold", "p_value", "is_anomaly"])
    return {row["image_id"]: row for row in table.to_pylist()}


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


GOOD = png(Image.fromarray(paint(np.random.default_rng(1))[0]))
DEFECTIVE = png(Image.fromarray(paint(np.random.default_rng(2), defect=True)[0]))


def post(client, *files, **fields):
    """POST /score with files of (name, content)."""
    return client.post("/score", files=[("images", file) for file in files], data=fields)


def decoded(uri):
    head, _, data = uri.partition(",")
    assert head == "data:image/webp;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_scores_are_those_of_the_main_job(client, tiles, rows):
    for image_id in ("alpha/test/good/000.png", "alpha/test/spot/001.png", "beta/test/spot/000.png"):
        answer = post(client, ("a.png", (tiles / image_id).read_bytes()), category=image_id.split("/")[0])
        assert answer.status_code == 200
        (image,) = answer.json()["images"]
        row = rows[image_id]
        assert image["score"] == pytest.approx(row["score"], rel=1e-5)
        assert (image["threshold"], image["is_anomaly"]) == (pytest.approx(row["threshold"]), row["is_anomaly"])
        assert image["verdict"] == ("anomalous" if row["is_anomaly"] else "good")
        assert image["p_value"] == pytest.approx(row["p_value"])
        assert (image["status"], image["error"], image["guessed"]) == ("ok", None, False)
        assert image["picture"] is None is image["map"]


def test_an_image_beyond_the_bit_depth_of_its_model_has_a_reason(client):
    answer = post(client, ("a.png", png16(np.full((96, 96), 5000, np.uint16))), category="alpha")
    assert answer.status_code == 422
    assert "has values up to 5,000, but its category was fitted to 8-bit images" in answer.json()["error"]


def test_other_images_change_no_score(scorer, tiles):
    paths = sorted((tiles / "alpha/test").rglob("*.png"))
    (size,) = {model.model.size for model in scorer.models.values()}
    pixels = [{size: resize_and_crop(Image.open(path).convert("RGB"), size)} for path in paths]
    samples = [Sample(image, ("alpha", "beta", None)[row % 3], row % 2 == 0) for row, image in enumerate(pixels)]
    for sample, result in zip(samples, scorer.score(samples), strict=True):
        (alone,) = scorer.score([sample])
        assert alone.scores == result.scores
        assert alone.category == result.category
        assert (alone.patch_scores is None) == (result.patch_scores is None) == (not sample.wants_map)
        assert not sample.wants_map or np.array_equal(alone.patch_scores, result.patch_scores)


def test_a_sample_is_told_what_is_nearest_to_its_worst_patch(scorer, tiles):
    (size,) = {model.model.size for model in scorer.models.values()}
    pixels = {size: resize_and_crop(Image.open(tiles / "alpha/test/spot/001.png").convert("RGB"), size)}
    wanted, other = scorer.score([Sample(pixels, "alpha", wants_map=True, wants_nearest=True), Sample(pixels, "alpha")])
    assert wanted.scores == other.scores
    assert other.nearest is None
    assert wanted.nearest.grid == wanted.patch_scores.shape
    assert wanted.nearest.patch == wanted.patch_scores.argmax()
    image, patch = read_origins(scorer.models["alpha"].model).image_of(wanted.nearest.vector)
    assert image.image_id.startswith("alpha/train/good/")
    assert image.uri == (tiles / image.image_id).as_uri()
    assert 0 <= patch < wanted.patch_scores.size


def calibrated(scores, threshold=None):
    scores = np.array(scores, np.float32)
    return CategoryModel(
        None, DecisionRule("id", scores, "conformal", scores.max() if threshold is None else threshold)
    )


def test_the_lowest_standardised_score_decides_the_category():
    models = {
        "fine": calibrated(np.linspace(1.0, 1.2, 50)),
        "coarse": calibrated(np.linspace(10.0, 14.0, 50)),
        "bare": CategoryModel(None, DecisionRule("id")),
        "flat": calibrated([5.0, 5.0, 5.0]),
    }
    assert detect_category({"fine": 2.0, "coarse": 13.0, "bare": 0.1}, models) == "coarse"
    assert detect_category({"fine": 1.15, "coarse": 60.0, "bare": 0.1}, models) == "fine"
    assert detect_category({"fine": 1.3, "flat": 4.9}, models) == "flat"
    assert detect_category({"bare": 3.0}, models) == "bare"
    # both are above all good images, so p-values could not decide
    assert models["fine"].p_value(2.0) == models["coarse"].p_value(20.0)
    assert detect_category({"fine": 2.0, "coarse": 20.0}, models) == "coarse"
    assert models["bare"].p_value(1.0) is None is models["bare"].is_anomaly(1.0)


def test_an_image_is_uncertain_where_its_row_would_be():
    scores = np.arange(19, dtype=np.float32)
    model = CategoryModel(None, DecisionRule("id", scores, "conformal", 18.0, uncertain_threshold=16.0))
    assert [model.verdict(score) for score in (18.5, 18.0, 16.5, 16.0)] == [
        "anomalous",
        "uncertain",
        "uncertain",
        "good",
    ]
    assert CategoryModel(None, DecisionRule("id")).verdict(18.5) is None


def test_a_detected_category_comes_with_candidates(client):
    (image,) = post(client, ("a.png", GOOD)).json()["images"]
    assert image["guessed"]
    near = [candidate["strangeness"] for candidate in image["candidates"]]
    assert image["candidates"][0]["category"] == image["category"]
    assert len(near) == 2
    assert near == sorted(near)
    assert post(client, ("a.png", GOOD), category=image["category"]).json()["images"][0]["score"] == image["score"]


def test_each_of_several_images_has_a_score_or_an_error(client):
    answer = post(client, ("a.png", GOOD), ("notes.txt", b"no image"), ("c.png", DEFECTIVE), category="alpha")
    assert answer.status_code == 200
    first, second, third = answer.json()["images"]
    assert (first["name"], first["is_anomaly"], third["is_anomaly"]) == ("a.png", False, True)
    assert (second["status"], second["score"], second["name"]) == ("error", None, "notes.txt")
    assert second["error"].startswith("not an image of a known kind")


BOMB = png(Image.new("1", (9000, 9000)))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"<svg onload='alert(1)'/>", "not an image of a known kind"),
        (GOOD[:200], "cannot be decoded"),
        (BOMB, "decodes to 9000 x 9000 pixels"),
    ],
)
def test_an_unusable_image_gets_a_sentence(client, content, reason):
    answer = post(client, ("x.png", content))
    assert answer.status_code == 422
    assert answer.json()["error"].startswith(f"x.png: {reason}")
    assert answer.json()["images"][0]["status"] == "error"
    several = post(client, ("x.png", content), ("y.png", content))
    assert several.json()["error"].startswith("none of the 2 images could be scored; x.png:")
    assert several.status_code == 422


def form(*parts, kind='multipart/form-data; boundary="b"'):
    """A request with raw parts of (headers, content)."""
    body = b"".join(b"--b\r\n" + head + b"\r\n\r\n" + content + b"\r\n" for head, content in parts) + b"--b--\r\n"
    return {"content": body, "headers": {"content-type": kind}}


FILE = b'content-disposition: form-data; name="images"; filename="%s"'
CATEGORY = b'content-disposition: form-data; name="category"'


@pytest.mark.parametrize(
    ("request_", "status", "words"),
    [
        ({"json": {"images": []}}, 415, "multipart/form-data"),
        ({}, 415, "multipart/form-data"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "boundary"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data; boundary=b"}}, 400, "cannot be read"),
        (form(), 422, "no image was sent"),
        (form((CATEGORY, b"alpha")), 422, "no image was sent"),
        (form((b'content-disposition: form-data; name="images"', GOOD[:9])), 422, "holds text"),
        (form((FILE % b"a", GOOD), (CATEGORY, b"gamma")), 422, "no category 'gamma'; choose one of: alpha, beta"),
        (form((FILE % b"a", GOOD), (CATEGORY, b"alpha"), (CATEGORY, b"beta")), 422, "not several"),
        (form((FILE % b"a", GOOD), (CATEGORY + b'; filename="a"', b"alpha")), 422, "not a file"),
        (form((FILE % b"a", GOOD), (b'content-disposition: form-data; name="gategory"', b"")), 422, "'gategory'"),
        (form((FILE % b"a", GOOD), (b'content-disposition: form-data; name="pictures"', b"1")), 422, "true or false"),
        (form((FILE % b"a", GOOD), (CATEGORY, b"x" * 9000)), 400, "maximum size"),
        (form(*[(FILE % b"a", b"x")] * 4), 400, "Maximum number of files is 3"),
        (form((FILE % b"a", GOOD), kind="multipart/form-data; boundary=b; charset=undefined"), 400, "cannot be read"),
    ],
)
def test_an_unusable_form_gets_a_sentence(client, request_, status, words):
    answer = client.post("/score", **request_)
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"}
    assert words in answer.json()["error"]


@pytest.mark.parametrize("name", [HOSTILE, "x" * 2000, "../../etc/passwd", "ü\u0000\n.png"])
def test_names_come_back_as_text(client, name):
    answer = post(client, (name, b"no image"))
    assert answer.status_code == 422
    assert len(answer.json()["images"][0]["name"]) <= 255


def test_a_name_that_is_not_unicode(client):
    kind = "multipart/form-data; boundary=b; charset=utf-7"
    answer = client.post("/score", **form((FILE % b"+2AA-.png", b"x"), kind=kind))
    assert answer.status_code == 422
    assert answer.json()["images"][0]["name"] == "?.png"


def test_an_upload_is_limited(client):
    large = post(client, ("a.png", b"x" * 400_000))
    assert large.status_code == 413
    assert "300,000 bytes" in large.json()["error"]

    # without a declared length, it is stopped while it is read
    def chunks():
        yield b"--b\r\n" + FILE % b"a" + b"\r\n\r\n"
        for _ in range(1000):
            yield b"x" * 10_000

    stopped = client.post("/score", content=chunks(), headers={"content-type": "multipart/form-data; boundary=b"})
    assert stopped.status_code == 413
    assert stopped.json() == large.json()
    for answer in (large, stopped):
        assert answer.headers["content-security-policy"] == SECURITY_HEADERS["Content-Security-Policy"]


def test_every_response_has_security_headers(client):
    for path, status in [
        ("/", 200),
        ("/static/demo.js", 200),
        ("/categories", 200),
        ("/nowhere", 404),
        ("/score", 405),
    ]:
        answer = client.get(path)
        assert answer.status_code == status
        for name, value in SECURITY_HEADERS.items():
            assert answer.headers[name] == value
        assert status == 200 or set(answer.json()) == {"error"}
    assert client.head("/").status_code == 200
    assert client.get("/score").headers["allow"] == "POST"
    assert client.get("/static/..%2fapp.py").status_code == 404
    assert client.get("/docs").status_code == 404


def test_the_page_loads_nothing_from_elsewhere():
    page = (STATIC / "index.html").read_text()
    named = set(re.findall(r'(?:href|src)="static/([^"]+)"', page))
    assert named == set(ASSETS)
    text = page + "".join((STATIC / name).read_text() for name in ("demo.css", "demo.js"))
    assert not re.search(r"https?:|innerHTML|insertAdjacentHTML|document\.write|eval\(|@import|url\(", text)
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*src=)", page)


def test_the_page_offers_every_kind_of_image():
    (accepted,) = re.findall(r'accept="([^"]*)"', (STATIC / "index.html").read_text())
    assert {word for word in accepted.split(",") if word.startswith(".")} == set(SUFFIXES)


def test_categories_and_limits(client, models, base_run):
    answer = client.get("/categories").json()
    assert [category["category"] for category in answer["categories"]] == ["alpha", "beta"]
    for category in answer["categories"]:
        assert category["n_calibration"] == 8
        assert category["threshold"] == pytest.approx(models[category["category"]].rule.threshold)
        assert "calibration" in category["promise"]
    assert answer["limits"] == {"upload_bytes": 300_000, "files": 3, "pixels": 40_000}


def test_pictures(client):
    turned = Image.open(io.BytesIO(DEFECTIVE)).convert("RGB").crop((0, 0, 96, 80))
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    turned.save(buffer, "TIFF", exif=exif)
    (image,) = post(client, ("a.tif", buffer.getvalue()), category="alpha", pictures="true").json()["images"]
    assert (image["width"], image["height"]) == (80, 96)
    shown, over = decoded(image["picture"]), decoded(image["map"])
    assert shown.size == over.size == (80, 96)
    assert (shown.mode, over.mode) == ("RGB", "RGBA")
    first = image["regions"][0]
    assert first["peak"] == max(region["peak"] for region in image["regions"])
    assert first["x"] + first["width"] <= 80
    assert first["y"] + first["height"] <= 96
    assert fit_within(100_000, 50_000, MAX_SIDE_PIXELS) == (MAX_SIDE_PIXELS, MAX_SIDE_PIXELS // 2)
    assert fit_within(100_000, 3, MAX_SIDE_PIXELS) == (MAX_SIDE_PIXELS, 1)


def test_a_map_exceeds_the_middle_colour_if_and_only_if_its_image_is_flagged(models, rows, monkeypatch):
    """The peak of the drawn map is above the middle of the colours exactly if the score is above the threshold."""
    model = models["alpha"]
    threshold, drawn = model.rule.threshold, []
    monkeypatch.setattr("mvad.demo.app.layer", lambda square, *rest: drawn.append(square) or Image.new("RGBA", (1, 1)))
    grid = np.ones((8, 8), np.float32)
    grid[2, 3] = 9.0
    scale = model.colour_scale()
    for score in (0.5 * threshold, 0.99 * threshold, 1.01 * threshold, 3 * threshold):
        map_layer(grid, score, model, 96, 96)
        levels = scale.levels(drawn[-1])
        assert (levels.max() >= THRESHOLD_LEVEL) == (score > threshold)
        assert np.median(drawn[-1]) == pytest.approx(1.0, abs=1e-3)
    assert scale.levels(np.array([np.median(model.rule.calibration)])) == 0
    map_layer(np.zeros((8, 8), np.float32), 1.0, model, 96, 96)  # flat
    map_layer(grid, 1.0, CategoryModel(model.model, DecisionRule("id")), 96, 96)  # not calibrated


def test_the_model_cache_keeps_what_memory_allows(models, extractor_specs, scorer):
    (size,) = {model.model.size for model in models.values()}
    black = {size: np.zeros((size.height, size.width, 3), np.uint8)}
    small = DemoScorer(models, extractor_specs, 1)  # too small for any model: one is kept all the same
    (result,) = small.score([Sample(black, None)])
    assert result.scores == scorer.score([Sample(black, None)])[0].scores
    assert small.cache.categories == ["beta"]
    assert scorer.cache.categories == ["alpha", "beta"]


def test_a_damaged_model_is_named(base_run, extractor_specs, tmp_path, caplog):
    shutil.copytree(base_run[0] / "models", tmp_path / "models")
    (tmp_path / "models/patchcore/alpha/bank.npy").write_bytes(b"x")
    damaged, _ = read_category_models(str(tmp_path / "models"), ServeOptions())
    client = TestClient(application(DemoScorer(damaged, extractor_specs, MAX_MODEL_BYTES)), ADDRESS)
    answer = post(client, ("a.png", GOOD), category="alpha")
    assert answer.status_code == 503
    assert "is damaged" in answer.json()["error"]
    assert post(client, ("a.png", GOOD)).json()["images"][0]["category"] == "beta"
    (tmp_path / "models/patchcore/beta/model.json").write_text("{}")
    served, found = read_category_models(str(tmp_path / "models"), ServeOptions())
    assert list(served) == ["alpha"]
    assert [str(error) for error in found.errors.values()] == found.warnings
    assert "patchcore/beta cannot be used: model.json is damaged: it lacks 'format'" in found.warnings[0]
    with pytest.raises(UsageError, match="beta cannot be used"):
        read_category_models(str(tmp_path / "models"), ServeOptions(categories="beta"))


def test_too_many_requests(models):
    async def score(sample):
        raise BusyError("too many images are waiting; try again in a moment.")

    client = TestClient(demo_app(models, LIMITS, score, HOSTS, ImageMemory(256 << 20), ImageQueue()), ADDRESS)
    answer = post(client, ("a.png", GOOD))
    assert answer.status_code == 503
    assert answer.json() == {"error": "too many images are waiting; try again in a moment."}
    assert answer.headers["retry-after"]


@pytest.fixture(scope="module")
def description(scorer):
    return schemathesis.openapi.from_asgi(
        "/openapi.json", application(scorer, AllowedHosts("localhost", ["testserver"]))
    )


@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize(("path", "method"), [("/score", "POST"), ("/categories", "GET")])
def test_every_request_is_answered_as_described(description, path, method, mode):
    operation = description[path][method]
    if mode is GenerationMode.NEGATIVE and method == "GET":
        pytest.skip("it has no parameters that could be wrong")
    statuses = set()

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    def send(case):
        # No schema can describe the bytes of an image: valid data may be refused, with a sentence.
        statuses.add(case.call_and_validate(excluded_checks=[positive_data_acceptance]).status_code)

    send()
    assert statuses <= ({200, 422} if mode is GenerationMode.POSITIVE else {400, 413, 415, 422, 405}), statuses
    assert (200 in statuses) == (mode is GenerationMode.POSITIVE)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"port": 70_000}, "--port 70000"),
        ({"max_upload": "much"}, "'much' is not a size"),
        ({"max_upload": "0"}, "--max-upload '0' is too small"),
        ({"max_files": 0}, "--max-files 0"),
        ({"false_alarm_rate": 2}, "--false-alarm-rate 2"),
        ({"threshold_rule": "guess"}, "'guess' is unknown"),
        ({"categories": "gamma"}, "no model for gamma; it has models for: alpha, beta"),
        ({"threshold": "gamma=1"}, "no model for gamma; it has models for: alpha, beta"),
        ({"method": "knn"}, "no models in"),
        ({"host": "256.1.1.1"}, "cannot listen on port"),
    ],
)
def test_wrong_use(folder, options, words):
    with pytest.raises(UsageError, match=re.escape(words)), serving(folder, **options):
        pass


def test_a_port_in_use(folder):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UsageError, match=f"port {port} of '127.0.0.1'"), serving(folder, port=port):
            pass
    assert is_loopback("127.0.0.1") and is_loopback("::1") and is_loopback("localhost")  # noqa: PT018
    assert not is_loopback("0.0.0.0") and not is_loopback("example.org")  # noqa: PT018


@pytest.fixture(scope="module")
def served(folder, ray_local):
    with serving(folder, port=0, quiet=True) as address:
        yield address


def test_the_nearest_good_image_of_a_reviewed_one(folder, base_run, tiles, ray_local):
    with serving(folder, results=str(base_run[0]), port=0, quiet=True) as address:
        asked = {"folder": "", "image_id": "alpha/test/spot/001.png"}
        found = requests.get(f"{address}api/nearest", asked, timeout=60).json()
        assert (found["why"], found["same_model"]) == (None, True)
        assert found["uri"] == str(tiles / found["image_id"])
        assert min(found["place"]["width"], found["good_place"]["width"]) > 0
        shown = {"category": "alpha", "image_id": found["image_id"]}
        assert requests.get(f"{address}api/nearest/picture", shown, timeout=60).status_code == 200


def test_programs_get_the_same_scores(served, tiles, rows):
    """Served in batches to concurrent requests, scores are bit for bit those of the main job."""

    def ask(image_id):
        files = {"images": (image_id, (tiles / image_id).read_bytes())}
        return requests.post(f"{served}score", files=files, data={"category": image_id.split("/")[0]}, timeout=60)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, rows))
    for image_id, answer in zip(rows, answers, strict=True):
        (image,) = answer.json()["images"]
        assert (image["name"], image["score"]) == (image_id, rows[image_id]["score"])
    assert requests.get(f"{served}openapi.json", timeout=60).json()["paths"].keys() == {"/categories", "/score"}
    assert requests.post(f"{served}score", data=b"x", timeout=60).status_code == 415


def test_a_scoring_process_that_dies_is_started_again(served, tiles):
    def ask():
        files = [("images", ("a.png", (tiles / "alpha/test/good/000.png").read_bytes()))]
        return requests.post(f"{served}score", files=files, data={"category": "alpha"}, timeout=60)

    before = ask().json()
    below = psutil.Process().children(recursive=True)
    killed = [process for process in below if any("ray::ScoringPro" in word for word in process.cmdline())]
    assert len(killed) == 1
    killed[0].kill()
    deadline = time.monotonic() + 60
    while (answer := ask()).status_code == 503 and time.monotonic() < deadline:
        assert "try again" in answer.json()["error"]
        time.sleep(0.2)
    assert answer.json() == before


def test_the_page(served, browser, tiles):
    files = [
        ("defective.png", (tiles / "alpha/test/spot/000.png").read_bytes()),
        (HOSTILE, (tiles / "alpha/test/good/000.png").read_bytes()),
        ("notes.txt", b"no image at all"),
    ]
    with visit(browser, served, viewport={"width": 390, "height": 800}) as seen:
        page = seen.page
        page.wait_for_selector("#category option[value=beta]", state="attached")
        page.select_option("#category", "alpha")
        assert "fitted to 8 good images" in page.inner_text("#about")
        page.evaluate(BUSY_ONCE)  # the page tries again
        drop(page, "#drop", files)
        page.locator(DONE).nth(2).wait_for()
        assert page.locator(".name").all_text_contents() == [name for name, _ in files]
        assert page.locator(".badge").all_text_contents() == ["Anomalous", "Looks good", "Not scored"]
        assert "Not an image of a known kind" in page.locator(".why").nth(2).inner_text()
        assert page.inner_text("#progress") == "3 of 3 images done."
        first = page.locator(".result").first
        assert "none of 8 good images scored as high" in first.inner_text()
        # the map lies over the image, and its slider works with the keyboard
        boxes = [first.locator(name).bounding_box() for name in (".image", ".map")]
        assert boxes[0] == boxes[1]
        assert boxes[0]["width"] > 200
        slider = first.locator("input[type=range]")
        slider.focus()
        page.keyboard.press("Home")
        assert first.locator(".map").evaluate("map => getComputedStyle(map).opacity") == "0"
        page.keyboard.press("End")
        assert first.locator(".map").evaluate("map => getComputedStyle(map).opacity") == "1"
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        # by the file button, with the category detected
        page.select_option("#category", "")
        page.set_input_files("#files", {"name": "chosen.png", "mimeType": "image/png", "buffer": GOOD})
        page.locator(DONE).nth(3).wait_for()
        assert ", detected (next closest:" in page.locator(".result").first.inner_text()
        page.click("#clear")
        assert page.locator(".result").count() == 0
    # the browser itself logs these responses
    assert [message for message in seen.messages if "422" not in message and "503" not in message] == []
    assert all(url.startswith((served, "data:")) for url in seen.requests)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_ends_on_a_signal(number, monkeypatch, capsys):
    """Everything is stopped, and the signal handlers are restored."""
    events = []

    @contextmanager
    def fake_serving(models, **options):
        yield "http://127.0.0.1:1/"
        events.append("ended")

    monkeypatch.setattr("mvad.demo.server.serving", fake_serving)
    before = signal.getsignal(number)
    timer = threading.Timer(0.2, os.kill, (os.getpid(), number))
    timer.start()
    mvad.serve("models")
    timer.join()
    assert events == ["ended"]
    assert signal.getsignal(number) is before
    assert "http://127.0.0.1:1/" in capsys.readouterr().out
