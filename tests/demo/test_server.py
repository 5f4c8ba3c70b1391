"""The demo's server among strangers: pages of other sites, clients that stall or flood it, images that fill memory."""

import asyncio
import functools
import io
import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import requests
from PIL import Image
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.testclient import TestClient

from helpers.waits import wait_until
from mvad.calibration import DecisionRule
from mvad.data.image_size import ImageSize
from mvad.data.images import decode
from mvad.demo import server
from mvad.demo.answers import LimitsAnswer
from mvad.demo.app import demo_app, display_image, map_layer
from mvad.demo.category_models import CategoryModel
from mvad.demo.connections import ConnectionLimits, Connections
from mvad.demo.hosts import AllowedHosts, host_name
from mvad.demo.requests import SECURITY_HEADERS
from mvad.demo.scorer import Sample, SampleResult
from mvad.demo.server import serving_app
from mvad.demo.waiting import Batches, BusyError, ImageQueue
from mvad.errors import ImageError, UsageError
from mvad.html.image_memory import ImageMemory, give_back_freed_memory, image_bytes, picture_bytes
from mvad.options import ServeOptions, build

SHORT_S = 0.1
SHORT = ConnectionLimits(header_s=5 * SHORT_S, response_s=SHORT_S)  # a header that is sent arrives in time
LIMITS = LimitsAnswer(upload_bytes=8 << 20, files=16, pixels=9_000_000)
MODELS = {
    "tile": CategoryModel(
        SimpleNamespace(size=ImageSize.square(32), method="patchcore", model_id="0", bit_depth=16),
        DecisionRule("id"),
    )
}


async def score_at_once(sample):
    return SampleResult({"tile": 1.0}, "tile")


def run_async(coroutine):
    """Run a coroutine in a thread: the tests in a browser leave an event loop running in this one."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, coroutine).result()


def application(score=score_at_once, hosts=None, memory=None, queue=None, **arguments):
    hosts, memory, queue = hosts or AllowedHosts("127.0.0.1"), memory or ImageMemory(1 << 30), queue or ImageQueue()
    return demo_app(MODELS, LIMITS, score, hosts, memory, queue, **arguments)


MOVED, CLOSED = set(), set()  # ports of clients


class ObservedConnections(Connections):
    """Connections that tell when the server has begun with a request, or has closed a connection."""

    def moved(self, connection):
        super().moved(connection)
        MOVED.add(connection.client[1])

    def remove(self, connection):
        super().remove(connection)
        CLOSED.add(connection.client[1])


def connect(port):
    connection = socket.socket()
    connection.settimeout(20)
    connection.bind(("127.0.0.1", 0))
    for ports in (MOVED, CLOSED):
        ports.discard(connection.getsockname()[1])  # an earlier client may have had the same one
    connection.connect(("127.0.0.1", port))
    return connection


def has_moved(connection):
    return connection.getsockname()[1] in MOVED


def was_closed(connection):
    return connection.getsockname()[1] in CLOSED


@contextmanager
def served(limits=None, **arguments):
    """Serve the application; yields its port."""
    with (
        patch.object(server, "Connections", ObservedConnections),
        closing(socket.create_server(("127.0.0.1", 0))) as listener,
        serving_app(application(**arguments), listener, limits or ConnectionLimits()),
    ):
        yield listener.getsockname()[1]


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


SMALL = encoded(Image.new("RGB", (40, 40)))


def post(port, content=SMALL, count=1):
    files = [("images", ("a.png", content))] * count
    return requests.post(f"http://127.0.0.1:{port}/score", files=files, timeout=20)


def is_closed(connection):
    """Whether the server has closed a connection; what it still sends is read."""
    with suppress(ConnectionError):
        while connection.recv(1 << 16):
            pass
    return True


# Other sites


@pytest.mark.parametrize(
    ("bound", "others", "host", "allowed"),
    [
        ("127.0.0.1", [], "127.0.0.1:8000", True),
        ("127.0.0.1", [], "LocalHost.:1", True),
        ("127.0.0.1", [], "[::1]:8000", True),
        ("127.0.0.1", [], "[0:0:0:0:0:0:0:1]", True),
        ("127.0.0.1", [], "evil.example:8000", False),
        ("127.0.0.1", [], "localhost.evil.example", False),
        ("127.0.0.1", [], "127.0.0.1@evil.example", False),
        ("127.0.0.1", [], "evil.example#localhost", False),
        ("127.0.0.1", [], "10.0.0.1", False),
        ("127.0.0.1", [], "", False),
        ("127.0.0.1", ["Demo.Example"], "demo.example", True),
        ("127.0.0.1", ["fe80::1"], "[FE80::1]:80", True),
        ("10.0.0.1", [], "10.0.0.1:8000", True),
        ("10.0.0.1", [], "10.0.0.2:8000", False),
        ("0.0.0.0", [], "10.0.0.1", True),
        ("::", [], socket.gethostname(), True),
        ("0.0.0.0", [], "evil.example", False),
    ],
)
def test_only_names_of_the_demo_are_served(bound, others, host, allowed):
    hosts = AllowedHosts(bound, others)
    if allowed:
        hosts.check("GET", Headers({"host": host}))
    else:
        with pytest.raises(HTTPException) as caught:
            hosts.check("GET", Headers({"host": host}))
        assert caught.value.status_code == 421
        assert "--allow-host" in caught.value.detail
    assert host_name("a:b:c") is None


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({}, True),
        ({"origin": "http://127.0.0.1:8000"}, True),
        ({"origin": "https://demo.example"}, True),  # behind a proxy of that name
        ({"origin": "http://127.0.0.1:8000", "sec-fetch-site": "same-origin"}, True),
        ({"sec-fetch-site": "none"}, True),
        ({"origin": "http://evil.example"}, False),
        ({"origin": "http://127.0.0.1:3000"}, False),  # another server on this machine
        ({"origin": "http://127.0.0.1:8000.evil.example"}, False),
        ({"origin": "null"}, False),
        ({"sec-fetch-site": "cross-site"}, False),
        ({"sec-fetch-site": "same-site"}, False),
        ({"origin": "https://demo.example", "sec-fetch-site": "cross-site"}, False),
    ],
)
def test_pages_of_other_sites_cannot_post(headers, allowed):
    client = TestClient(application(hosts=AllowedHosts("127.0.0.1", ["demo.example"])), "http://127.0.0.1:8000")
    answer = client.post("/score", files={"images": ("a.png", SMALL)}, headers=headers)
    assert answer.status_code == (200 if allowed else 403)
    assert allowed or "another site" in answer.json()["error"]
    assert client.get("/", headers=headers).status_code == 200  # a link is no attack


@pytest.mark.parametrize("names", [["https://a.example"], ["a.example:8000"], ["a.example/"], ["*"]])
def test_names_that_no_host_has(names):
    with pytest.raises(UsageError, match=r"--allow-host .* leave out https://, the port and the path"):
        build(ServeOptions, {"allow_host": names})
    assert build(ServeOptions, {"allow_host": ["a.example,::1", "b"]}).allow_host == ["a.example", "::1", "b"]


async def fail(sample):
    raise ZeroDivisionError


REQUESTS = {
    "refused name": (421, b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n"),
    "no name": (421, b"GET / HTTP/1.0\r\n\r\n"),
    "Ray Serve's health": (404, b"GET /-/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    "Ray Serve's routes": (404, b"GET /-/routes HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    "not HTTP": (400, b"\x16\x03\x01\x02\r\n\r\n"),
    "two names": (400, b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n"),
    "long header": (400, b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_every_answer_of_the_server_has_security_headers(shared_port, name):
    status, request = REQUESTS[name]
    with connect(shared_port) as connection:
        connection.sendall(request)
        answer = b""
        while not answer.endswith(b"}"):
            answer += connection.recv(1 << 16)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert int(head.split()[1]) == status
    lines = {line.partition(":")[0].lower(): line.partition(": ")[2] for line in head.decode().splitlines()[1:]}
    assert lines.items() >= {name.lower(): value for name, value in SECURITY_HEADERS.items()}.items()
    assert json.loads(body).keys() == {"error"}


def test_a_failure_of_the_application_is_a_sentence():
    with served(score=fail) as port:
        answer = post(port)
    assert answer.status_code == 500
    assert answer.json().keys() == {"error"}
    assert answer.headers.items() >= SECURITY_HEADERS.items()


# Slow clients


@pytest.fixture(scope="module")
def shared_port():
    with served() as port:
        yield port


@pytest.fixture(scope="module")
def impatient_port():
    with served(SHORT, max_upload_s=SHORT_S) as port:
        yield port


HEAD = b"GET /categories HTTP/1.1\r\nHost: localhost\r\n"
UPLOAD = (
    b"POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    b"Content-Length: 500000\r\n\r\n"
)
PART = b'--b\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n'
STALLS = {
    "nothing": b"",
    "half a line": b"GET / HT",
    "half a header": HEAD,
    "no body": UPLOAD,
    "half a body": UPLOAD + PART + b"x" * 1000,
    "half a second request": HEAD + b"\r\n" + HEAD,
    "body after a refusal": UPLOAD.replace(b"localhost", b"evil"),
}


@pytest.mark.parametrize("drips", [False, True])
@pytest.mark.parametrize("name", STALLS)
def test_a_client_that_stalls_is_disconnected(impatient_port, name, drips):
    with connect(impatient_port) as connection:
        connection.sendall(STALLS[name])
        if drips:  # the time limit is one of the whole request, and not of each byte
            stopped = threading.Event()

            def drip():
                with suppress(OSError):
                    while not stopped.wait(SHORT_S / 5):
                        connection.sendall(b"x")

            thread = threading.Thread(target=drip)
            thread.start()
        received = b""
        with suppress(ConnectionError):
            while data := connection.recv(1 << 16):
                received += data
        if drips:
            stopped.set()
            thread.join()
    if name in ("no body", "half a body") and not drips:
        assert received.startswith(b"HTTP/1.1 408")
        assert b"took longer than the 0.1 s allowed" in received


def test_a_client_that_takes_no_answer_is_disconnected(impatient_port):
    count = 3000
    with connect(impatient_port) as connection:
        with suppress(ConnectionError):  # the demo stops reading, and later closes the connection
            connection.sendall((b"GET /static/demo.js HTTP/1.1\r\nHost: localhost\r\n\r\n") * count)
        wait_until(lambda: was_closed(connection))
        answers = b""
        with suppress(ConnectionError):
            while data := connection.recv(1 << 20):
                answers += data
    assert answers.count(b"HTTP/1.1 200") < count


@contextmanager
def stalled(port, count, request):
    """Connections that have sent half a request; where that has a header, the server has read it, one by one."""
    with ExitStack() as stack:
        connections = []
        for _ in range(count):
            connections.append(stack.enter_context(connect(port)))
            connections[-1].sendall(request)
            if b"\r\n\r\n" in request:
                wait_until(lambda: has_moved(connections[-1]))
        yield connections


@pytest.mark.parametrize("name", ["nothing", "half a header", "half a body"])
def test_stalled_clients_do_not_block_others(shared_port, name):
    with stalled(shared_port, 90, STALLS[name]):
        assert post(shared_port).status_code == 200


@pytest.mark.parametrize("limits", [ConnectionLimits(per_client=4), ConnectionLimits(total=4)])
def test_the_longest_stalled_connection_makes_room(limits):
    with served(limits) as port, stalled(port, 4, STALLS["half a body"]) as connections:
        assert post(port).status_code == 200
        assert is_closed(connections[0])
        connections[3].setblocking(False)
        with pytest.raises(BlockingIOError):
            connections[3].recv(1)


def test_connections_that_wait_for_scores_are_kept():
    go_on = threading.Event()

    async def score(sample):
        await asyncio.to_thread(go_on.wait)
        return await score_at_once(sample)

    queue = ImageQueue()
    with served(ConnectionLimits(per_client=2), score=score, queue=queue) as port, ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(post, port) for _ in range(2)]
        wait_until(lambda: queue.n_images == 2)
        refused = requests.get(f"http://127.0.0.1:{port}/", timeout=5)
        go_on.set()
        assert [answer.result().status_code for answer in answers] == [200, 200]
    assert refused.status_code == 503
    assert refused.headers["Retry-After"]
    assert refused.headers.items() >= SECURITY_HEADERS.items()
    assert "too many connections" in refused.json()["error"]


def test_uploads_hold_a_limited_number_of_bytes():
    half = UPLOAD + PART + b"x" * 80_000
    with served(ConnectionLimits(held_bytes=200_000)) as port, stalled(port, 4, half) as connections:
        assert post(port).status_code == 200
        assert is_closed(connections[0])
        too_large = post(port, b"x" * 250_000)
        assert too_large.status_code == 503
        assert "too many uploads" in too_large.json()["error"]


# The queue


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize("seconds", [0.01, 0.1, 1.0])
def test_the_queue_is_as_long_as_can_be_served_in_time(seconds):
    clock = Clock()
    queue = ImageQueue(places=1, max_wait_s=10, clock=clock)

    async def image():
        async with queue.place():
            clock.now += seconds

    async def images(count):
        await asyncio.gather(*(image() for _ in range(count)))

    run_async(images(200))
    assert queue.n_images == 0
    clock.now += 1000  # a pause is not the time of an image
    run_async(images(1))
    assert queue.seconds_per_image == pytest.approx(seconds, rel=0.01)
    queue.n_images = round(9 / seconds)
    queue.require_room()
    queue.n_images = round(11.5 / seconds)
    with pytest.raises(BusyError, match=r"images are waiting, for 1[12] s") as caught:
        queue.require_room()
    assert caught.value.headers == {"Retry-After": "12"}


def test_a_full_queue_refuses_before_an_upload_is_read():
    queue = ImageQueue()
    queue.n_images = 1000
    with served(queue=queue) as port, connect(port) as connection:
        connection.sendall(UPLOAD)
        head = connection.recv(1 << 16)
        assert head.startswith(b"HTTP/1.1 503")
        assert b"retry-after: 50" in head


def test_no_work_is_done_for_clients_that_have_gone():
    go_on, scored = threading.Event(), []

    async def score(sample):
        scored.append(sample)
        await asyncio.to_thread(go_on.wait)
        return await score_at_once(sample)

    body = PART + SMALL + b"\r\n--b--\r\n"
    request = UPLOAD.replace(b"500000", str(len(body)).encode()) + body
    queue = ImageQueue(places=1)

    with served(score=score, queue=queue) as port, stalled(port, 1, request) as (first,):
        wait_until(lambda: len(scored) == 1)
        with stalled(port, 3, request):
            wait_until(lambda: queue.n_images == 4)
        threading.Event().wait(0.05)  # the server notices that they are closed
        go_on.set()
        assert first.recv(1 << 16).startswith(b"HTTP/1.1 200")
        wait_until(lambda: queue.n_images == 0)
    assert len(scored) == 1


def test_batches_grow_with_the_load_and_keep_the_order():
    sizes = []

    async def process(samples):
        sizes.append(len(samples))
        await asyncio.sleep(0)
        if any(sample.category == "bad" for sample in samples):
            raise BusyError("failed")
        return [SampleResult({sample.category: 1.0}) for sample in samples]

    async def run(names):
        batches = Batches([process], max_images=4)
        return await asyncio.gather(*(batches.score(Sample({}, name)) for name in names), return_exceptions=True)

    results = run_async(run([*"abcdefgh", "bad", "i"]))
    assert sizes == [1, 4, 4, 1]
    assert [next(iter(result.scores)) for result in results[:5]] == [*"abcde"]
    assert all(isinstance(result, BusyError) for result in results[5:9])
    assert results[9].scores == {"i": 1.0}


# Memory


def status_bytes(name):
    """Of the memory of this process, as Linux has it; the test is skipped elsewhere."""
    if not Path("/proc/self/status").exists():
        pytest.skip("memory is measured on Linux")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))


@contextmanager
def peak_growth():
    """Yields a list, and appends by how many bytes this process has grown at most."""
    before, growth = status_bytes("VmRSS"), []
    give_back_freed_memory()
    Path("/proc/self/clear_refs").write_text("5")
    yield growth
    growth.append(status_bytes("VmHWM") - before)


SLACK = 2 << 20
SIDE = 1000
TURNED = Image.Exif()
TURNED[0x0112] = 6


@functools.cache
def colours():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))


def grey16():
    return Image.fromarray(np.random.default_rng(0).integers(0, 1 << 16, (SIDE, SIDE), dtype=np.uint16))


KINDS = {
    "png": lambda: encoded(colours(), exif=TURNED, compress_level=0),
    "png 16 bits": lambda: encoded(grey16(), exif=TURNED, compress_level=0),
    "png transparent": lambda: encoded(colours().convert("RGBA"), exif=TURNED, compress_level=0),
    "png grey transparent": lambda: encoded(colours().convert("LA"), compress_level=0),
    "png palette": lambda: encoded(colours().convert("P"), transparency=3, compress_level=0),
    "jpeg": lambda: encoded(colours(), "JPEG", exif=TURNED),
    "jpeg progressive": lambda: encoded(colours(), "JPEG", exif=TURNED, progressive=True, subsampling=0),
    "jpeg cmyk": lambda: encoded(colours().convert("CMYK"), "JPEG", exif=TURNED, progressive=True, subsampling=0),
    "tiff 16 bits": lambda: encoded(grey16(), "TIFF"),
    "tiff 16 bits compressed": lambda: encoded(grey16(), "TIFF", compression="tiff_lzw"),
    "tiff 32 bits": lambda: encoded(grey16().convert("I"), "TIFF", compression="tiff_lzw"),
    "tiff": lambda: encoded(colours(), "TIFF", compression="tiff_adobe_deflate"),
    "bmp": lambda: encoded(colours(), "BMP"),
    "webp": lambda: encoded(colours(), "WEBP", lossless=True, method=0, exif=TURNED),
}


@pytest.mark.parametrize("kind", KINDS)
def test_no_image_takes_more_memory_than_is_reserved(kind):
    data = KINDS[kind]()
    with peak_growth() as growth:
        decode(data, SIDE * SIDE)
    assert growth[0] <= image_bytes(data, SIDE * SIDE, False) + SLACK


@pytest.mark.parametrize("kind", ["png", "png 16 bits"])
def test_no_picture_takes_more_memory_than_is_reserved(kind):
    data = KINDS[kind]()
    with peak_growth() as growth:
        display_image(decode(data, SIDE * SIDE))
    assert growth[0] <= image_bytes(data, SIDE * SIDE, True) + SLACK
    model = MODELS["tile"]
    with peak_growth() as growth:
        map_layer(np.random.default_rng(0).random((8, 8), np.float32), 1.0, model, SIDE, SIDE)
    assert growth[0] <= picture_bytes(SIDE, SIDE) + SLACK


def test_damaged_and_oversized_files_reserve_nothing():
    assert image_bytes(b"no image", 100, True) == 0
    assert image_bytes(SMALL, 40 * 40 - 1, True) == 0


def test_images_that_are_decoded_at_once_keep_within_the_limit(monkeypatch):
    """Six images that are sent at once, and would be decoded at once, would take 200 MB."""
    monkeypatch.setattr("mvad.demo.app.IMAGE_THREADS", 6)
    side = 1500
    files = [encoded(Image.new("RGB", (side, side))), encoded(Image.fromarray(np.zeros((side, side), np.uint16)))] * 3
    memory = ImageMemory(64 << 20)
    with served(memory=memory) as port, ThreadPoolExecutor(6) as pool:
        assert {answer.status_code for answer in pool.map(lambda _: post(port), range(12))} == {200}  # start threads
        with peak_growth() as growth:
            answers = list(pool.map(lambda data: post(port, data), files))
    assert [answer.status_code for answer in answers] == [200] * 6
    assert growth[0] <= memory.limit + SLACK
    assert memory.used == 0


def test_large_images_leave_no_memory_behind():
    data = encoded(Image.new("L", (3000, 2500)))
    with served(memory=ImageMemory(128 << 20)) as port, ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: post(port), range(8)))
        before = status_bytes("VmRSS")
        assert {answer.status_code for answer in pool.map(lambda _: post(port, data), range(4))} == {200}
        # A thread of the server may hold its last image for a moment after the answer.
        wait_until(lambda: status_bytes("VmRSS") - before <= 16 << 20, "giving the memory back")


def test_an_image_that_needs_more_memory_than_there_is():
    with served(memory=ImageMemory(1 << 20)) as port:
        answer = post(port, encoded(Image.new("RGB", (600, 600))))
        assert answer.status_code == 422
        assert "takes 4 MiB of memory, more than --image-memory allows (1 MiB)" in answer.json()["error"]
        assert post(port).status_code == 200


def test_memory_is_shared_in_the_order_of_arrival():
    memory, order = ImageMemory(10), []
    first = memory.reserve(6)
    first.__enter__()

    def use(name, n_bytes):
        with memory.reserve(n_bytes):
            order.append(name)

    threads = []
    for name, n_bytes in (("large", 8), ("small", 1)):
        threads.append(threading.Thread(target=use, args=(name, n_bytes)))
        threads[-1].start()
        while len(memory._waiting) < len(threads):
            threading.Event().wait(0.001)
    assert order == []
    first.__exit__(None, None, None)
    for thread in threads:
        thread.join()
    assert order == ["large", "small"]
    with pytest.raises(ImageError), memory.reserve(11):
        pass
