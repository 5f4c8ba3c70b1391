"""What every request and answer passes: a bound on the body, and headers that keep the page to itself."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class TooLargeError(Exception):
    """A request's body is larger than allowed."""


def too_large(limit: int) -> JSONResponse:
    return JSONResponse(
        {"error": f"the upload is larger than the {limit:,} bytes allowed; send smaller images, or fewer at a time."},
        413,
    )


class Guard:
    """ASGI middleware: adds `HEADERS`, and stops a body of more than ``limit`` bytes wherever it is read.

    A body that says its length is refused before any of it is read; another one once it has passed the limit, by a
    `TooLargeError` in its reader.
    """

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app, self.limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        read = 0

        async def bounded() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self.limit:
                raise TooLargeError
            return message

        async def labelled(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        said = dict(scope["headers"]).get(b"content-length", b"")
        if said.isdigit() and int(said[:20]) > self.limit:
            await too_large(self.limit)(scope, receive, labelled)
        else:
            await self.app(scope, bounded, labelled)
