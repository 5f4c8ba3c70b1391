"""From URIs to ``pyarrow.fs`` file systems, with retries, and parallel requests to them."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit

import pyarrow as pa
import pyarrow.fs as pafs

from mvad.errors import UsageError
from mvad.storage.uris import is_local, local_path, without_keys

# Per request, with pauses that double up to 20 seconds. Arrow retries gs:// for a quarter of an hour by itself.
S3_MAX_ATTEMPTS = 10
S3_FLAGS = ("allow_bucket_creation", "allow_bucket_deletion", "check_directory_existence_before_creation")
THREADS = 16  # requests to a store that run in parallel

Item = TypeVar("Item")
Result = TypeVar("Result")


def resolve(uri: str) -> tuple[pafs.FileSystem, str]:
    """Return the file system of a URI and the path on it.

    Raises
    ------
    UsageError
        The scheme is unknown or its file system cannot be opened.
    """
    if is_local(uri):
        return pafs.LocalFileSystem(), os.fsdecode(local_path(uri))
    parts = urlsplit(uri)
    return _filesystem(parts.scheme, parts.netloc, parts.query), without_keys(parts.netloc) + unquote(parts.path)


@functools.lru_cache(maxsize=32)
def _filesystem(scheme: str, netloc: str, query: str) -> pafs.FileSystem:
    try:
        filesystem = pafs.FileSystem.from_uri(urlunsplit((scheme, netloc, "", query, "")))[0]
        is_s3 = isinstance(filesystem, pafs.S3FileSystem)
        return _with_retries(filesystem, netloc, query) if is_s3 else filesystem
    except (pa.ArrowInvalid, OSError, ValueError) as error:
        bucket = f"{scheme}://{without_keys(netloc)}"
        raise UsageError(f"{bucket} cannot be reached ({error}); use a path, file://, s3:// or gs://.") from error


def _with_retries(filesystem: pafs.S3FileSystem, netloc: str, query: str) -> pafs.S3FileSystem:
    """Open the same store with more retries, and with one request per small file.

    A URI cannot ask for either. By default, a store that answers "slow down" is asked again at the same pace for six
    seconds, and then the run ends. By default, an upload takes three requests, and one that succeeded but whose answer
    was lost looks like one that failed.
    """
    options: dict[str, Any] = dict(parse_qsl(query))
    if not options.keys() <= {"region", "scheme", "endpoint_override", "tls_ca_file_path", *S3_FLAGS}:
        return filesystem  # the constructor does not take every option of a URI
    options |= {name: options[name].lower() in ("1", "true") for name in S3_FLAGS if name in options}
    key, _, secret = netloc.rpartition("@")[0].partition(":")
    if key:
        options |= {"access_key": unquote(key), "secret_key": unquote(secret)}
    options |= {"region": filesystem.region, "allow_delayed_open": True}
    return pafs.S3FileSystem(**options, retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=S3_MAX_ATTEMPTS))


def has_directories(filesystem: pafs.FileSystem) -> bool:
    """Return whether a folder can be listed without everything below it.

    Folders in object storage are common beginnings of names. On Google Cloud Storage, Arrow shows only folders with an
    object of their own, which few programs create.
    """
    return filesystem.type_name != "gcs"


def parallel_map(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Apply a function that waits for files to every item, in threads; results keep the order of the items.

    The first exception is raised.
    """
    with ThreadPoolExecutor(THREADS) as threads:
        return list(threads.map(function, items))
