"""What all ways of telling somebody have in common."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent import futures
from typing import Protocol, TypeVar

from mvad.alarms.document import Night

Value = TypeVar("Value")


class AlarmError(Exception):
    """Somebody could not be told: why, in a few words that hold no secret."""


class Channel(Protocol):
    """A way to tell somebody.

    Attributes
    ----------
    name
        Whom, without secrets.
    limit_s
        Seconds that `send` may take.
    """

    name: str
    limit_s: float

    def send(self, night: Night) -> None:
        """Tell of a night; AlarmError if that failed."""


def within(seconds: float, function: Callable[..., Value], *arguments: object) -> Value:
    """What a function returns; AlarmError if it takes longer, as where each byte of an answer takes a while.

    It runs in a thread, which is left behind then, and does not keep the process from ending.
    """
    outcome: futures.Future[Value] = futures.Future()

    def call() -> None:
        try:
            outcome.set_result(function(*arguments))
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=call, name="alarm", daemon=True).start()
    try:
        return outcome.result(seconds)
    except futures.TimeoutError:
        raise AlarmError(f"not done within {seconds:g} s") from None


def system_reason(error: BaseException) -> str | None:
    """What the system said that an error comes from, such as "Connection refused"; None if it said nothing."""
    cause: BaseException | None = error
    reason = None
    while cause is not None:
        reason = getattr(cause, "verify_message", None) or getattr(cause, "strerror", None) or reason
        cause = cause.__cause__ or cause.__context__
    return reason
