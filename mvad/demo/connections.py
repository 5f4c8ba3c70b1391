"""Connections of clients: how many there may be, how long each may take, and how many bytes they may hold.

uvicorn itself waits without limit for a request to arrive and for an answer to be taken.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from mvad.demo.requests import SECURITY_HEADERS
from mvad.demo.waiting import BusyError


@dataclass(frozen=True)
class ConnectionLimits:
    """Limits of open connections. A client is an IP address."""

    per_client: int = 128
    total: int = 512
    held_bytes: int = 256 << 20  # uploads and answers of all connections
    header_s: float = 10.0  # from the connection to the end of the first request's header
    response_s: float = 60.0  # from the start of an answer to the end of the next request's header


class Connection(H11Protocol):
    """A connection; if its time is over before the next thing that it waits for has happened, it is closed."""

    def __init__(self, connections: "Connections", **arguments: Any) -> None:
        super().__init__(**arguments)
        self.app_state = {"connection": self}  # becomes the ``state`` of each request's scope
        self.address = ""
        self.received_bytes = 0  # of the current request
        self.is_waiting = True  # for the client, and not for a score
        self._connections = connections
        self._timer: asyncio.TimerHandle | None = None

    @property
    def held_bytes(self) -> int:
        """Bytes of the request that have been received, and of answers that the client has not taken."""
        return self.received_bytes + self.transport.get_write_buffer_size()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.address = self.client[0] if self.client else ""
        self.close_after(self._connections.limits.header_s)
        if not self._connections.add(self):
            transport.write(
                _answer(503, "there are too many connections; try again in a moment.", ("Retry-After", "5"))
            )
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.close_after(None)
        self._connections.remove(self)
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        self.transport.write(_answer(400, "this is not a request that HTTP allows."))
        self.transport.close()

    def close_after(self, seconds: float | None) -> None:
        """Close the connection after so many seconds, unless it is told otherwise by then; None: never."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        if seconds is not None and not self.transport.is_closing():
            self._timer = self.loop.call_later(seconds, self.abort)

    def abort(self) -> None:
        """Close the connection now; what the client has not taken is lost."""
        self._connections.remove(self)
        self.transport.abort()


class Connections:
    """All open connections. If they reach a limit, the one that has kept the demo waiting for longest is closed."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self.limits = limits
        self._open: dict[Connection, None] = {}  # in the order of their last step

    def add(self, connection: Connection) -> bool:
        """Add a new connection; False if there are too many, all of which wait for scores."""
        counts = Counter(other.address for other in self._open)
        if counts[connection.address] >= self.limits.per_client:
            is_free = self._close_one(lambda other: other.address == connection.address)
        elif len(self._open) >= self.limits.total:
            greediest, _ = counts.most_common(1)[0]
            is_free = self._close_one(lambda other: other.address == greediest)
        else:
            is_free = True
        if is_free:
            self._open[connection] = None
        return is_free

    def remove(self, connection: Connection) -> None:
        """Forget a connection that is closed, or was never added."""
        self._open.pop(connection, None)

    def moved(self, connection: Connection) -> None:
        """Note that a connection has made a step: it has now waited for the shortest time."""
        if connection in self._open:
            del self._open[connection]
            self._open[connection] = None

    def fit_memory(self, connection: Connection) -> bool:
        """Close connections other than the given one until the bytes held are allowed; False if that is not enough."""
        while sum(other.held_bytes for other in self._open) > self.limits.held_bytes:
            if not self._close_one(lambda other: other.held_bytes > 0 and other is not connection):
                return False
        return True

    def _close_one(self, is_meant: Callable[[Connection], bool]) -> bool:
        found = next((other for other in self._open if other.is_waiting and is_meant(other)), None)
        if found is not None:
            found.abort()
        return found is not None


class TrackedApp:
    """ASGI middleware that tells a `Connection` how far its request has come."""

    def __init__(self, app: ASGIApp, connections: Connections) -> None:
        self._app, self._connections = app, connections

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection: Connection = scope["state"]["connection"]
        connections, response_s = self._connections, self._connections.limits.response_s
        connection.close_after(None)  # `requests.GuardedApp` limits the time of an upload
        connections.moved(connection)

        async def receive_tracked() -> Message:
            message = await receive()
            if message["type"] == "http.request":
                connection.received_bytes += len(message.get("body", b""))
                connection.is_waiting = message.get("more_body", False)
                if not connections.fit_memory(connection):
                    raise BusyError("too many uploads are being received; try again in a moment.")
            return message

        async def send_tracked(message: Message) -> None:
            if message["type"] == "http.response.start":
                connection.is_waiting = True
                connection.close_after(response_s)
                connections.moved(connection)
            await send(message)
            connections.fit_memory(connection)

        try:
            await self._app(scope, receive_tracked, send_tracked)
        finally:
            if connection.scope is scope:  # the next request may have begun
                connection.received_bytes = 0
                connection.is_waiting = True
                connection.close_after(response_s)
                connections.moved(connection)


def _answer(status: int, error: str, *headers: tuple[str, str]) -> bytes:
    """A whole answer like the application's, for what never reaches it."""
    body = json.dumps({"error": error}).encode()
    fixed = {"Content-Type": "application/json", "Content-Length": len(body), "Connection": "close", **SECURITY_HEADERS}
    lines = [f"{name}: {value}" for name, value in [*fixed.items(), *headers]]
    return "\r\n".join([f"HTTP/1.1 {status} ", *lines, "", ""]).encode() + body
