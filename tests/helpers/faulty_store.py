"""A loopback proxy for an S3 server that answers "slow down", closes connections, or breaks off its answers."""

from __future__ import annotations

import http.client
import random
import socket
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

FAULTS = ("slow down", "hang up", "break off", "lost answer")
MAX_FAULTS_IN_A_ROW = 3  # per request, so enough retries always succeed
SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
HOP_BY_HOP_HEADERS = ("connection", "keep-alive", "transfer-encoding", "content-length")


class FaultyStore:
    """The proxy, on its own port.

    Whether and how a request fails depends only on the seed, the request and how often it has been made, not on the
    order of requests.

    Attributes
    ----------
    rate
        Share of requests that fail.
    delay
        Seconds before each answer.
    injected
        Number of failed requests per fault.
    requests
        Number of requests per method.
    signers
        Number of requests per access key that they are signed with; "" for none.
    held
        Folders (paths in the bucket) whose listings are answered only once `released` is set.
    """

    def __init__(self, host: str, port: int, *, rate: float = 0.0, delay: float = 0.0, seed: int = 0) -> None:
        self.rate, self.delay, self.seed = rate, delay, seed
        self.injected: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        self.signers: Counter[str] = Counter()
        self.held: set[str] = set()
        self.released = threading.Event()
        self._tries: Counter[str] = Counter()
        self._in_a_row: Counter[str] = Counter()
        self._lock = threading.Lock()
        store = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def log_message(self, *arguments: Any) -> None:
                pass

            def handle_any(self) -> None:
                store._answer(self, host, port)

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any  # noqa: N815

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _fault(self, request: str) -> str | None:
        with self._lock:
            self._tries[request] += 1
            generator = random.Random(f"{self.seed} {request} {self._tries[request]}")
            if self._in_a_row[request] >= MAX_FAULTS_IN_A_ROW or generator.random() >= self.rate:
                self._in_a_row[request] = 0
                return None
            self._in_a_row[request] += 1
            fault = generator.choice(FAULTS)
            self.injected[fault] += 1
            return fault

    def _answer(self, handler: BaseHTTPRequestHandler, host: str, port: int) -> None:
        body = _body(handler)
        with self._lock:
            self.requests[handler.command] += 1
            self.signers[handler.headers.get("Authorization", "").partition("Credential=")[2].partition("/")[0]] += 1
        time.sleep(self.delay)
        if parse_qs(urlsplit(handler.path).query).get("prefix", [""])[0].rstrip("/") in self.held:
            self.released.wait()
        fault = self._fault(f"{handler.command} {handler.path}")
        if fault == "hang up":
            _hang_up(handler)
            return
        if fault == "slow down":
            _send(handler, 503, {"Content-Type": "application/xml"}, SLOW_DOWN)
            return
        connection = http.client.HTTPConnection(host, port, timeout=60)
        connection.request(handler.command, handler.path, body=body, headers=_headers(handler))
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        if fault == "lost answer":  # the request succeeded, but the client is not told
            _hang_up(handler)
            return
        headers = {name: value for name, value in answer.getheaders() if name.lower() not in HOP_BY_HOP_HEADERS}
        if handler.command == "HEAD":
            headers["Content-Length"] = answer.getheader("Content-Length", "0")
            content = b""
        _send(handler, answer.status, headers, content, break_off=fault == "break off")


def _headers(handler: BaseHTTPRequestHandler) -> dict[str, str]:
    return {
        name: value for name, value in handler.headers.items() if name.lower() not in (*HOP_BY_HOP_HEADERS, "expect")
    }


def _body(handler: BaseHTTPRequestHandler) -> bytes:
    if "chunked" not in handler.headers.get("Transfer-Encoding", ""):
        return handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
    parts = []
    while size := int(handler.rfile.readline().split(b";")[0], 16):
        parts.append(handler.rfile.read(size))
        handler.rfile.readline()
    while handler.rfile.readline().strip():
        pass
    return b"".join(parts)


def _send(
    handler: BaseHTTPRequestHandler, status: int, headers: dict[str, str], content: bytes, break_off: bool = False
) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    if handler.command != "HEAD":
        handler.send_header("Content-Length", str(len(content)))
    if break_off:
        content = content[: len(content) // 2]
    handler.end_headers()
    handler.wfile.write(content if handler.command != "HEAD" else b"")
    if break_off:
        _hang_up(handler)


def _hang_up(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True
    handler.wfile.flush()
    handler.connection.shutdown(socket.SHUT_RDWR)
