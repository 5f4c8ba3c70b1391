"""Names of files: local paths and URIs (``file://``, ``s3://``, ``gs://``). Nothing here reads or writes.

A URI is percent-encoded, so any file name, even one that is not UTF-8, can be stored in a table.
"""

import hashlib
import os
import re
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, unquote_to_bytes, urlsplit, urlunsplit

from mvad.errors import UsageError
from mvad.storage import keys

MAX_SAFE_LENGTH = 40
SAFE_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]*[a-z0-9_-])?")
MAX_FOLDER_LENGTH = 246  # with the prefix of older results, what file systems allow
HASH_SUFFIX = re.compile(r"-[0-9a-f]{16}$")
IS_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
ON_WINDOWS_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
REFUSED = "***"  # in place of keys: a URI of a table that must not be opened
FREE_OPTIONS = ("region",)  # that a URI of a table may choose: they send requests nowhere else
RESERVED_ON_WINDOWS = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\.|$)", re.IGNORECASE)


def to_uri(path: str | os.PathLike[str]) -> str:
    """Return the URI of a local path; a URI is returned without trailing slashes and without keys: see `keys`.

    Anything without ``scheme://`` is a path, but for ``file:/path``. Paths are made absolute; symbolic links are not
    resolved. UsageError if it looks like a URI and is none.
    """
    text = os.fspath(path)
    if IS_URI.match(text):
        uri, given = keys.split_keys(text.rstrip("/"))
        try:
            keys.remember(uri, given)
        except ValueError as error:
            raise UsageError(f"{uri} is not a URI ({error}).") from error
        return uri
    if re.match("file:/", text, re.IGNORECASE):
        return f"file://{text[len('file:') :]}".rstrip("/")
    return Path(os.path.abspath(text)).as_uri()


def is_relative(name: str) -> bool:
    """Return whether a name is a relative path, and neither a URI nor a path on this machine or a Windows drive."""
    return not (IS_URI.match(name) or ON_WINDOWS_DRIVE.match(name) or name.lower().startswith(("/", "file:/")))


def uri_in_table(name: str, table: str) -> str:
    """Return the URI of a file that a table (a URI) names; a relative name starts from the folder of the table.

    Who writes a table does not choose where requests and keys go. A URI with connection options that the table's own
    does not have, or with keys that were not given for its bucket, has `REFUSED` instead of keys.
    """
    if is_relative(name):
        return sibling(table, name)
    if ON_WINDOWS_DRIVE.match(name) and os.name != "nt":
        return f"file:///{quote(name)}"
    if not IS_URI.match(name):
        return to_uri(name)
    uri, given = keys.split_keys(name)
    try:
        options, allowed = parse_qsl(urlsplit(uri).query), parse_qsl(urlsplit(table).query)
        is_trusted = all(option in allowed or option[0] in FREE_OPTIONS for option in options)
        if is_trusted and given in ("", keys.find(uri)):
            return uri
    except ValueError:  # not a URI: reading it will say so
        return uri
    scheme, _, rest = uri.partition("://")
    return f"{scheme}://{REFUSED}@{rest}"


def join(uri: str, *names: str) -> str:
    """Return the URI of a file below the folder ``uri``; ``names`` are plain text and are percent-encoded here."""
    parts = urlsplit(uri)
    path = "/".join([parts.path.rstrip("/"), *(quote(name, safe="/=") for name in names)])
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


def name_of(uri: str) -> str:
    """Return the name of a file or folder without those that it lies in, as plain text."""
    return unquote(urlsplit(uri).path.rpartition("/")[2])


def parent(uri: str) -> str:
    """Return the URI of the folder that a file or folder lies in."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(path=parts.path.rpartition("/")[0]))


def sibling(uri: str, name: str) -> str:
    """Return the URI of a file or folder in the same folder as ``uri``; ``name`` is plain text."""
    return join(parent(uri), name)


def folder_name(name: str) -> str:
    """Make a name safe as the name of one folder: percent-encoded, never ``.`` or ``..``; `safe_name` if too long."""
    quoted = quote(name, safe=" ", errors="surrogatepass") if name.strip(".") else name.replace(".", "%2E")
    return quoted if len(quoted) <= MAX_FOLDER_LENGTH else safe_name(name)


def safe_name(name: str) -> str:
    """Make any name a short folder name that every file system and every reader of Parquet folders accepts.

    A lower-case name of at most 40 ASCII letters, digits, ``-``, ``_`` and ``.`` that starts with a letter or digit
    stays as it is. Any other name keeps up to 40 of its safe characters and gets ``-`` and 16 hexadecimal digits of its
    SHA-256. So do names that Windows reserves or changes (``con``, a trailing dot), and names that end like such a
    hash. Different names therefore differ in more than capitals, on file systems that ignore them too. The result has
    at most 57 ASCII characters and never starts with ``.`` or ``_``, which mark hidden files for Arrow and Spark.
    """
    if (
        len(name) <= MAX_SAFE_LENGTH
        and SAFE_NAME.fullmatch(name)
        and not HASH_SUFFIX.search(name)
        and not RESERVED_ON_WINDOWS.match(name)
    ):
        return name
    stem = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._-")[:MAX_SAFE_LENGTH] or "name"
    if RESERVED_ON_WINDOWS.match(stem):  # it would be reserved with a suffix behind the dot too
        stem = stem.replace(".", "_")
    return f"{stem}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"


def readable(uri: str) -> str:
    """Return a URI as a person would write it: a local path, or a URI without keys and connection options."""
    try:
        parts = urlsplit(uri)
    except ValueError:  # a table may hold anything
        return uri
    if is_local(uri):
        return printable(local_path(uri))
    return f"{parts.scheme}://{without_keys(parts.netloc)}{unquote(parts.path)}"


def without_keys(netloc: str) -> str:
    """Return the bucket of a URI's network location, without the access keys before it."""
    return netloc.rpartition("@")[2]


def is_local(uri: str) -> bool:
    """Return whether the URI names a file on this machine."""
    return urlsplit(uri).scheme == "file"


def local_path(uri: str) -> bytes:
    """Return the path of a ``file://`` URI, as the bytes that the file system knows."""
    return unquote_to_bytes(urlsplit(uri).path)


def printable(path: bytes) -> str:
    r"""Decode a local path; a byte that is not UTF-8 becomes ``\xff``. Different paths give different texts."""
    text = path.decode("utf-8", "surrogateescape")
    # Backslashes before such a byte, or before what looks like one, are doubled.
    text = re.sub(r"(\\+)(?=x[89a-f][0-9a-f]|[\udc80-\udcff])", r"\1\1", text)
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
