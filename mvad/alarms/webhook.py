"""Send the document of a night by HTTP POST, signed."""

from __future__ import annotations

import hashlib
import hmac
import http
import ipaddress
import os
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from mvad import storage
from mvad.alarms.channel import AlarmError, system_reason
from mvad.alarms.document import Night, document
from mvad.console import as_document
from mvad.errors import UsageError
from mvad.version import VERSION

if TYPE_CHECKING:
    import requests

SECRET = "MVAD_NOTIFY_SECRET"  # variable of the environment
TOO_MANY_REQUESTS = 429


@dataclass(frozen=True)
class Timing:
    """How long to try, in seconds."""

    answer_s: float = 10.0  # for a connection, and for each part of an answer
    attempts: int = 5
    pause_s: float = 1.0  # after the first attempt; it doubles
    longest_pause_s: float = 30.0  # also if the server asks for a longer one
    total_s: float = 90.0


@dataclass(frozen=True)
class _Failure:
    reason: str
    may_pass: bool = False  # so that trying again is worth it
    retry_after_s: float = 0.0  # that the server asks for


class Webhook:
    """An address that the document is sent to; `channel.Channel`.

    UsageError, which shows no secret, if ``url`` is no URL, or one of plain HTTP to another machine and not
    ``insecure``.
    """

    def __init__(self, url: str, *, insecure: bool = False, timing: Timing = Timing()) -> None:
        host = _host(url)
        self.name, self.limit_s = storage.readable(url), timing.total_s
        self._url, self._timing = url, timing
        self._is_loopback = is_loopback(host)
        if not url.lower().startswith("https:") and not self._is_loopback and not insecure:
            raise UsageError(
                f"--notify {self.name} sends the night without encryption; use https://, or allow it with "
                "--notify-insecure."
            )
        self._secret = os.environ.get(SECRET, "").encode()

    def send(self, night: Night) -> None:
        """Send the document, more than once if a server is not reached, is busy (429) or fails (5xx)."""
        import requests

        body, timing = as_document(document(night)).encode(), self._timing
        deadline, pause_s = time.monotonic() + timing.total_s, timing.pause_s
        with requests.Session() as session:
            session.trust_env = not self._is_loopback  # no proxy leads to this machine
            for attempt in range(timing.attempts):
                failure = self._try(session, body)
                if failure is None:
                    return
                wait_s = min(max(pause_s, failure.retry_after_s), timing.longest_pause_s)
                is_last = attempt == timing.attempts - 1 or time.monotonic() + wait_s > deadline
                if is_last or not failure.may_pass:
                    raise AlarmError(failure.reason)
                time.sleep(wait_s)
                pause_s *= 2

    def _try(self, session: requests.Session, body: bytes) -> _Failure | None:
        import requests

        try:
            # The answer is not read: how much it is, and where it leads, is up to the server.
            answer = session.post(
                self._url,
                data=body,
                headers=self._headers(body),
                timeout=self._timing.answer_s,
                allow_redirects=False,
                stream=True,
            )
        except requests.Timeout:
            return _Failure(f"no answer within {self._timing.answer_s:g} s", may_pass=True)
        except requests.RequestException as error:  # its own text has the URL
            reason = system_reason(error)
            return _Failure(
                "it cannot be reached" + (f": {reason}" if reason else ""), isinstance(error, requests.ConnectionError)
            )
        answer.close()
        status = answer.status_code
        if http.HTTPStatus.OK <= status < http.HTTPStatus.MULTIPLE_CHOICES:
            return None
        return _Failure(
            f"it answered {_shown_status(status)}",
            status == TOO_MANY_REQUESTS or status >= http.HTTPStatus.INTERNAL_SERVER_ERROR,
            _seconds(answer.headers.get("Retry-After")),
        )

    def _headers(self, body: bytes) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "User-Agent": f"mvad/{VERSION}"}
        if self._secret:
            timestamp = str(int(time.time()))
            headers |= {"X-Mvad-Timestamp": timestamp, "X-Mvad-Signature": signature(self._secret, timestamp, body)}
        return headers


def signature(secret: bytes, timestamp: str, body: bytes) -> str:
    """The header ``X-Mvad-Signature``: HMAC-SHA256 of timestamp (seconds since 1970), a dot and body."""
    return "sha256=" + hmac.new(secret, timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


def is_loopback(host: str) -> bool:
    """Whether a name or address is one of this machine that no network leads to."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _host(url: str) -> str:
    """The host that a URL names; UsageError, without the URL and its secrets, if it is none."""
    try:
        parts = urlsplit(url)
        is_url = parts.scheme in ("http", "https") and parts.port != 0
        host = (parts.hostname or "") if is_url else ""
    except ValueError:
        host = ""
    if not host or re.search(r"[\s\x00-\x1f\x7f]", url):
        raise UsageError("--notify needs a URL such as https://host/path.")
    return host


def _shown_status(status: int) -> str:
    try:
        return f"{status} {http.HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def _seconds(retry_after: str | None) -> float:
    """The seconds that the header ``Retry-After`` asks for, as a number or a date; 0 if it is neither."""
    import urllib3

    try:
        return urllib3.Retry().parse_retry_after(retry_after) if retry_after else 0.0
    except (urllib3.exceptions.InvalidHeader, ValueError):  # the second for a number of too many digits
        return 0.0
