"""Requests and responses: limits of uploads, headers that isolate the page, and a sentence for an unusable form."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from fastapi.routing import APIRoute
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mvad.demo.hosts import AllowedHosts

FIELDS = ("images", "category", "pictures")
MULTIPART = "multipart/form-data"
MAX_FIELD_BYTES = 4096  # limit for fields that are not files
MAX_NAME_LENGTH = 255
SECURITY_HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class UploadRequest(Request):
    """Request whose form is read within the limits in the application's state."""

    def form(self, **_: Any) -> Any:
        max_files = self.app.state.limits.files
        return super().form(max_files=max_files, max_fields=len(FIELDS), max_part_size=MAX_FIELD_BYTES)


class UploadRoute(APIRoute):
    """Route that gets an `UploadRequest`: FastAPI itself reads up to 1,000 files and fields of 1 MB.

    Nothing is read while the application's queue is full.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            if request.method == "POST":
                request.app.state.queue.require_room()
            return await handler(UploadRequest(request.scope, request.receive))

        return handle


def form_error(request: Request, error: Mapping[str, Any]) -> HTTPException:
    """Describe a form that pydantic refuses; ``error`` is the first of its errors."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != MULTIPART:
        return HTTPException(415, f"send the images as {MULTIPART}, in fields called images.")
    field, value = error["loc"][1], error["input"]
    if field not in FIELDS:
        reason = f"there is no field {plain(field)!r}; the fields are {', '.join(FIELDS)}."
    elif error["type"] == "missing":
        reason = "no image was sent; put one or more files into fields called images."
    elif field == "images":
        reason = "a field called images holds text; send a file, with a file name."
    elif isinstance(value, str):
        reason = f"the field {field} must be true or false, not {plain(value)!r}."
    else:
        reason = f"the field {field} must be a single text, not a file."
    return HTTPException(422, reason)


def plain(text: str) -> str:
    """Make a text from outside safe to send back: valid Unicode, not longer than a file name."""
    return text.encode("utf-8", "replace").decode()[:MAX_NAME_LENGTH]


class GuardedApp:
    """ASGI middleware around the whole application: `SECURITY_HEADERS` in every answer, and limits of requests.

    Requests that ``hosts`` does not allow are refused. Whoever reads a body of more than ``max_bytes`` bytes gets an
    HTTPException of status 413: before the first byte if the request declares its length, otherwise as soon as the
    limit is passed. If a body takes more than ``max_seconds`` seconds to arrive, the status is 408.
    """

    def __init__(self, app: ASGIApp, hosts: AllowedHosts, max_bytes: int, max_seconds: float) -> None:
        self._app, self._hosts, self._max_bytes, self._max_seconds = app, hosts, max_bytes, max_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(SECURITY_HEADERS)
            await send(message)

        try:
            self._hosts.check(scope["method"], Headers(scope=scope))
        except HTTPException as error:
            refusal = JSONResponse({"error": error.detail}, error.status_code)
            await refusal(scope, receive, send_with_headers)
            return
        await self._app(scope, self._within_limits(scope, receive), send_with_headers)

    def _within_limits(self, scope: Scope, receive: Receive) -> Receive:
        length = dict(scope["headers"]).get(b"content-length", b"")
        declared = int(length[:20]) if length.isdigit() else 0
        received, is_complete = 0, False
        deadline = time.monotonic() + self._max_seconds

        def check(n_bytes: int) -> None:
            if n_bytes > self._max_bytes:
                limit = f"the {self._max_bytes:,} bytes allowed"
                raise HTTPException(413, f"the upload is larger than {limit}; send smaller images, or fewer at a time.")

        async def receive_within_limits() -> Message:
            nonlocal received, is_complete
            if is_complete:
                return await receive()
            check(declared)
            try:
                message = await asyncio.wait_for(receive(), deadline - time.monotonic())
            except asyncio.TimeoutError:
                reason = (
                    f"the upload took longer than the {self._max_seconds:g} s allowed; send smaller images, or fewer."
                )
                raise HTTPException(408, reason, {"Connection": "close"}) from None
            is_complete = not message.get("more_body", False)
            received += len(message.get("body", b""))
            check(received)
            return message

        return receive_within_limits
