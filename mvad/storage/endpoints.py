"""Which object stores answer: one that is away costs an image some seconds, and the images after it nothing.

Arrow asks a store again for a minute and a half, and Google's for a quarter of an hour, whatever is wrong. That is
right for one that answers "slow down", and costs a night if none is there and a table names a million images on it.
"""

import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import parse_qs, urlsplit

from mvad.errors import ImageError, UsageError

CONNECT_TIMEOUT_S = 3.0
PAUSES_S = (0.5, 1.0, 2.0)  # between attempts to connect
VALID_S = 60.0  # for so long, a store that was reached, or was not, is taken to be as it was
GOOGLE = "storage.googleapis.com"
# With these set, requests to Google's store go another way than a connection from here would.
GOOGLE_DETOURS = ("CLOUD_STORAGE_EMULATOR_ENDPOINT", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
NO_CONNECTION = re.compile(r"curlCode: [67]\b|[Cc]ould(?: not|n't) (?:connect|resolve)|Connection timed out")

_states: dict[str, tuple[float, str | None]] = {}  # by endpoint: when it was tried, and what went wrong


@contextmanager
def reachable(uri: str) -> Iterator[None]:
    """Read from an object store inside of the context; ImageError at once if it was not reached a moment ago.

    A connection that fails inside is remembered too. Any other failure, such as a missing object, is not.
    """
    address = _address(uri)
    parts = urlsplit(uri)
    name = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}" if address is None else f"{address[0]}:{address[1]}"
    tried, problem = _states.get(name, (-VALID_S, None))
    if time.monotonic() - tried > VALID_S:
        problem = None if address is None else _try_to_connect(address)
        _states[name] = time.monotonic(), problem
    if problem is not None:
        raise ImageError(f"the object store {name} cannot be reached: {problem}")
    try:
        yield
    except (OSError, UsageError) as error:
        if NO_CONNECTION.search(str(error)):
            _states[name] = time.monotonic(), str(error)
        raise


def _address(uri: str) -> tuple[str, int] | None:
    """Host and port of a URI's object store; None if only Arrow knows them."""
    parts = urlsplit(uri)
    options = parse_qs(parts.query)
    if "endpoint_override" in options:
        endpoint, scheme = options["endpoint_override"][0], options.get("scheme", ["https"])[0]
    elif parts.scheme == "s3":
        endpoint, scheme = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "", "https"
    else:
        endpoint, scheme = "" if any(os.environ.get(name) for name in GOOGLE_DETOURS) else GOOGLE, "https"
    if not endpoint:
        return None
    place = urlsplit(endpoint if "://" in endpoint else f"{scheme}://{endpoint}")
    return place.hostname or "", place.port or (80 if place.scheme == "http" else 443)


def _try_to_connect(address: tuple[str, int]) -> str | None:
    """Connect to a host and port, and return what went wrong if no attempt succeeds."""
    for pause in (*PAUSES_S, None):
        try:
            socket.create_connection(address, CONNECT_TIMEOUT_S).close()
            return None
        except OSError as error:
            problem = error.strerror or str(error)
        if pause is not None:
            time.sleep(pause)
    return problem
