"""Read, write, copy and remove files, on this machine and in object storage."""

import functools
import os
import shutil
import socket
import stat
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit

import pyarrow as pa
import pyarrow.fs as pafs

from mvad.errors import ImageError, UsageError, one_line
from mvad.storage.uris import is_local, join, local_path, readable, without_keys

COPY_CHUNK_BYTES = 1 << 24
# Per request, with pauses that double up to 20 seconds. Arrow retries gs:// for a quarter of an hour by itself.
S3_MAX_ATTEMPTS = 10
S3_FLAGS = ("allow_bucket_creation", "allow_bucket_deletion", "check_directory_existence_before_creation")
UNFINISHED = ".unfinished"  # suffix of files that `write` has not renamed yet
UNFINISHED_MAX_AGE_S = 24 * 3600.0
THREADS = 16  # requests to a store that run in parallel

Item = TypeVar("Item")
Result = TypeVar("Result")


def resolve(uri: str) -> tuple[pafs.FileSystem, str]:
    """Return a URI's file system and the path on it; UsageError if the scheme is unknown or it cannot be opened."""
    if is_local(uri):
        return pafs.LocalFileSystem(), os.fsdecode(local_path(uri))
    parts = urlsplit(uri)
    return _filesystem(parts.scheme, parts.netloc, parts.query), without_keys(parts.netloc) + unquote(parts.path)


@functools.lru_cache(maxsize=32)
def _filesystem(scheme: str, netloc: str, query: str) -> pafs.FileSystem:
    try:
        filesystem = pafs.FileSystem.from_uri(urlunsplit((scheme, netloc, "", query, "")))[0]
        return _with_retries(filesystem, netloc, query) if isinstance(filesystem, pafs.S3FileSystem) else filesystem
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
    """Apply a function that waits for files to items, in threads, in their order; the first exception is raised."""
    with ThreadPoolExecutor(THREADS) as threads:
        return list(threads.map(function, items))


def read_bytes(uri: str, limit: int) -> bytes:
    """Read an image file.

    ImageError if it is missing, unreadable, not a regular file or larger than ``limit``, or ``uri`` is not a URI.
    """
    try:
        if is_local(uri):
            data = _read_local(local_path(uri), limit)
        else:
            filesystem, path = resolve(uri)
            with filesystem.open_input_stream(path) as stream:
                data = stream.read(limit + 1)
    except ImageError:
        raise
    except (ValueError, UsageError) as error:  # a table of images may hold anything as a URI
        raise ImageError(f"the uri cannot be read: {error}") from error
    except FileNotFoundError:
        raise ImageError("the file does not exist") from None
    except PermissionError:
        raise ImageError("permission to read the file was refused") from None
    except OSError as error:
        raise ImageError(f"the file cannot be read: {error.strerror or error}") from error
    if len(data) > limit:
        raise ImageError(f"the file is larger than {limit:,} bytes")
    return data


def _read_local(path: bytes, limit: int) -> bytes:
    # O_NONBLOCK: opening a named pipe must not wait for a writer.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise ImageError("not a regular file")
    with os.fdopen(handle, "rb") as stream:
        return stream.read(limit + 1)


def read(uri: str) -> bytes:
    """Read a whole file that mvad wrote; OSError if it cannot be read."""
    filesystem, path = resolve(uri)
    with filesystem.open_input_stream(path) as stream:
        return stream.read()


def exists(uri: str) -> bool:
    """Return whether there is a file or folder of this name."""
    filesystem, path = resolve(uri)
    return filesystem.get_file_info(path).type != pafs.FileType.NotFound


@contextmanager
def local_copy(uri: str) -> Iterator[str]:
    """Give the path of a file that mvad wrote: its own on this machine, otherwise that of a temporary copy.

    Memory maps of the copy stay valid after it has been removed.
    """
    filesystem, path = resolve(uri)
    if is_local(uri):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="mvad-") as folder:
        copy = os.path.join(folder, "copy")
        with filesystem.open_input_stream(path) as source, open(copy, "wb") as target:
            shutil.copyfileobj(source, target, COPY_CHUNK_BYTES)
        yield copy


def write(uri: str, *parts: bytes | memoryview | pa.Buffer) -> None:
    """Write a file, one part after the other, and create its folder; a reader sees all of the file or none of it.

    OSError, which names the file, if it cannot be written.
    """
    filesystem, path = resolve(uri)
    if not is_local(uri):  # an object appears when its stream is closed
        with filesystem.open_output_stream(path) as stream:
            for part in parts:
                stream.write(part)
        return
    try:
        _write_local(path, *parts)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error


def _write_local(path: str, *parts: bytes | memoryview | pa.Buffer) -> None:
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    temporary = f"{folder}/.{uuid.uuid4().hex}.{socket.gethostname()}.{os.getpid()}{UNFINISHED}"
    try:
        with open(temporary, "wb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def ensure_writable_folder(uri: str) -> None:
    """Make sure, before there are results, that files can be written below a folder; it need not exist, nor is created.

    UsageError if they cannot.
    """
    probe = f".{uuid.uuid4().hex}{UNFINISHED}"
    try:
        if is_local(uri):
            folder = Path(resolve(uri)[1])
            existing = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
            (existing / probe).touch()
            (existing / probe).unlink()
        else:
            write(join(uri, probe), b"")
            remove(join(uri, probe))
    except OSError as error:
        reason = one_line(error.strerror or error)
        raise UsageError(f"{readable(uri)} cannot be written to ({reason}); name a place that can.") from error


def is_unfinished(name: str) -> bool:
    """Whether a file's name is that of a `write` that has not ended, or was killed."""
    return name.startswith(".") and name.endswith(UNFINISHED)


def remove_unfinished(uri: str) -> None:
    """Remove the temporary files that a killed `write` left below a local folder; object storage keeps none.

    Those of processes that may still write stay: processes of this machine that are alive, and of other machines for
    `UNFINISHED_MAX_AGE_S` after their last change.
    """
    if is_local(uri):
        for path in Path(resolve(uri)[1]).glob(f"**/.*{UNFINISHED}"):
            with suppress(FileNotFoundError):
                if not _may_be_written(path):
                    path.unlink()


def _may_be_written(path: Path) -> bool:
    if time.time() - path.stat().st_mtime > UNFINISHED_MAX_AGE_S:
        return False
    host, _, process = path.name.removesuffix(UNFINISHED).partition(".")[2].partition(".")[2].rpartition(".")
    if host != socket.gethostname():
        return bool(host)  # without one, it is of an earlier version, which named no process
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is somebody else's
        return True
    return True


def remove(uri: str) -> None:
    """Remove a file, or a folder with everything in it; a missing one is not an error."""
    filesystem, path = resolve(uri)
    kind = filesystem.get_file_info(path).type
    if kind == pafs.FileType.Directory:
        if is_local(uri):
            shutil.rmtree(path)
        elif has_directories(filesystem):
            filesystem.delete_dir(path)
        else:
            filesystem.delete_dir_contents(path, missing_dir_ok=True)
            if exists(uri):  # the folder has an object of its own
                filesystem.delete_dir(path)
    elif kind != pafs.FileType.NotFound:
        filesystem.delete_file(path)
