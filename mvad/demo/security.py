"""Middleware for every request and response: a limit on the body, and headers that isolate the page."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SECURITY_HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class SecurityMiddleware:
    """ASGI middleware that adds `SECURITY_HEADERS` and stops the reading of bodies of more than ``max_bytes`` bytes.

    Whoever reads such a body gets an HTTPException of status 413: before the first byte if the request declares its
    length, otherwise as soon as the limit is passed.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        length = dict(scope["headers"]).get(b"content-length", b"")
        declared = int(length[:20]) if length.isdigit() else 0
        received = 0

        def check(n_bytes: int) -> None:
            if n_bytes > self.max_bytes:
                limit = f"the {self.max_bytes:,} bytes allowed"
                raise HTTPException(413, f"the upload is larger than {limit}; send smaller images, or fewer at a time.")

        async def receive_within_limit() -> Message:
            nonlocal received
            check(declared)
            message = await receive()
            received += len(message.get("body", b""))
            check(received)
            return message

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(SECURITY_HEADERS)
            await send(message)

        await self.app(scope, receive_within_limit, send_with_headers)
