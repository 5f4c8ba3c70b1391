"""Access keys that people write into URIs: taken out at the door and held in memory alone.

``s3://KEY:SECRET@bucket/folder`` gives keys for a bucket. A URI also goes into rows, ``run.json``, reports, messages
and logs, so `uris.to_uri`, through which DATA, OUT and models come in, leaves the keys here and returns the URI without
them; `files.resolve` finds them again when it opens the bucket. Workers start without any: tasks and actors that open
files have `Keys` among their arguments, and these are known to a worker as soon as they are unpickled there. Arguments
travel in Ray's memory; nothing of this is written to a file. Where keys are missing, access is refused; they can never
be written by mistake.
"""

import itertools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

ANONYMOUS = "anonymous"  # in a gs:// URI: without any keys
# A secret key of S3 may hold a slash that was not percent-encoded; a bucket's name has no colon.
_S3_KEYS = re.compile(r"(s3://)([^/@:]*:[^@]*|[^/@]*)@", re.IGNORECASE)
_KEYS = re.compile(r"([a-z][a-z0-9+.-]*://)([^/@]*)@", re.IGNORECASE)
_KEYS_IN_TEXT = re.compile(r"\b([a-z][a-z0-9+.-]*://)[^\s/@:]*:[^\s@]*@", re.IGNORECASE)

Connection = tuple[str, str, str]  # scheme, bucket and options of a URI
_known: dict[Connection, dict[str, str]] = {}  # keys, "" for none, by connection and the path they were given with


class Keys:
    """The keys that this process knows, on their way to another one, which knows them too once they have arrived."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrive, ({connection: dict(paths) for connection, paths in _known.items()},)


def _arrive(known: Mapping[Connection, Mapping[str, str]]) -> Keys:
    for connection, paths in known.items():
        _known.setdefault(connection, {}).update(paths)
    return Keys()


@dataclass(frozen=True)
class WithKeys:
    """A function for Ray's workers, where it knows the keys that this process knows."""

    function: Callable[..., Any]
    keys: Keys = field(default_factory=Keys)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self.function(*arguments, **named)


def split_keys(uri: str) -> tuple[str, str]:
    """Return a URI without its keys, and the keys as they were written, "" if it has none."""
    match = _S3_KEYS.match(uri) or _KEYS.match(uri)
    if not match or (match[2] == ANONYMOUS and match[1].lower() in ("gs://", "gcs://")):
        return uri, ""
    return match[1] + uri[match.end() :], match[2]


def hide_keys(text: str) -> str:
    """Take the keys out of all URIs in a text."""
    return _KEYS_IN_TEXT.sub(r"\1", text)


def remember(uri: str, keys: str) -> None:
    """Use these keys for the place ``uri`` (without keys) and all below it; "": those of the environment.

    A URI without keys that lies in a place already known keeps the keys of that place.
    """
    connection, path = _connection(uri)
    paths = _known.setdefault(connection, {})
    if keys or not any(f"{path}/".startswith(f"{place}/") for place in paths):
        paths[path] = keys


def find(uri: str) -> str:
    """Return the keys for a URI: those given with the path that has most folders in common with its own."""
    connection, path = _connection(uri)
    places = _known.get(connection, {}).items()
    return max(places, key=lambda place: (_n_common(place[0], path), bool(place[1])), default=("", ""))[1]


def _n_common(path: str, other: str) -> int:
    pairs = zip(path.split("/"), other.split("/"), strict=False)
    return len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))


def _connection(uri: str) -> tuple[Connection, str]:
    parts = urlsplit(uri)
    return (parts.scheme, parts.netloc, parts.query), parts.path.rstrip("/")
