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
from typing import Any, BinaryIO, NamedTuple, TypeVar
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit, urlunsplit

import pyarrow as pa
import pyarrow.fs as pafs

from mvad.errors import ImageError, UsageError, one_line
from mvad.storage import keys
from mvad.storage.endpoints import reachable
from mvad.storage.uris import REFUSED, is_local, join, local_path, readable, without_keys

STORES = ("s3", "gs", "gcs")  # schemes of object stores

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
    """Return a URI's file system and the path on it; UsageError if the URI is of no known kind or cannot be opened."""
    parts, given = _parse(uri)
    if parts.scheme == "file":
        return pafs.LocalFileSystem(), os.fsdecode(local_path(uri))
    filesystem = _filesystem(parts.scheme, parts.netloc, parts.query, given or keys.find(urlunsplit(parts)))
    return filesystem, without_keys(parts.netloc) + unquote(parts.path)


def _parse(uri: str) -> tuple[SplitResult, str]:
    """Return the parts of a URI, without keys, and the keys it was given with; UsageError if it cannot be used."""
    bare, given = keys.split_keys(uri)
    try:
        parts = urlsplit(bare)
    except ValueError as error:
        raise UsageError(f"{bare} is not a URI ({error}).") from error
    kinds = "use a path, file://, s3:// or gs://"
    if parts.scheme != "file" and parts.scheme not in STORES:
        raise UsageError(f"{parts.scheme}:// is not supported; {kinds}.")
    if parts.scheme == "file" and parts.netloc not in ("", "localhost"):
        raise UsageError(f"{bare} names another machine; {kinds}.")
    if parts.scheme != "file" and not without_keys(parts.netloc):
        raise UsageError(f"{bare} names no bucket; write {parts.scheme}://BUCKET/PATH.")
    if given == REFUSED:
        raise UsageError(
            "it names an endpoint of its own, or keys; give DATA with the same endpoint, or set AWS_ENDPOINT_URL and "
            "the keys in the environment."
        )
    return parts, given


@functools.lru_cache(maxsize=32)
def _filesystem(scheme: str, netloc: str, query: str, written_keys: str) -> pafs.FileSystem:
    key, _, secret = (unquote(part) for part in written_keys.partition(":"))
    user = f"{quote(key, safe='')}:{quote(secret, safe='')}@" if written_keys else ""
    try:
        filesystem = pafs.FileSystem.from_uri(urlunsplit((scheme, user + netloc, "", query, "")))[0]
        if isinstance(filesystem, pafs.S3FileSystem):
            return _with_retries(filesystem, key, secret, query)
        return filesystem
    except (pa.ArrowInvalid, OSError, ValueError) as error:
        bucket, reason = f"{scheme}://{without_keys(netloc)}", str(error).replace(user, "") if user else error
        raise UsageError(f"{bucket} cannot be reached ({reason}); use a path, file://, s3:// or gs://.") from None


def _with_retries(filesystem: pafs.S3FileSystem, key: str, secret: str, query: str) -> pafs.S3FileSystem:
    """Open the same store with more retries, and with one request per small file.

    A URI cannot ask for either. By default, a store that answers "slow down" is asked again at the same pace for six
    seconds, and then the run ends. By default, an upload takes three requests, and one that succeeded but whose answer
    was lost looks like one that failed.
    """
    options: dict[str, Any] = dict(parse_qsl(query))
    if not options.keys() <= {"region", "scheme", "endpoint_override", "tls_ca_file_path", *S3_FLAGS}:
        return filesystem  # the constructor does not take every option of a URI
    options |= {name: options[name].lower() in ("1", "true") for name in S3_FLAGS if name in options}
    if key:
        options |= {"access_key": key, "secret_key": secret}
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


def read_bytes(uri: str, limit: int, *, head: bool = False) -> bytes:
    """Read an image file, or with ``head`` its first ``limit`` bytes.

    ImageError if it is missing, unreadable, not a regular file or larger than ``limit``, or ``uri`` is not a URI; at
    once if its object store was not reached a moment ago.
    """
    try:
        _parse(uri)
        if is_local(uri):
            data = _read_local(local_path(uri), limit)
        else:
            with reachable(uri):
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
    if len(data) > limit and not head:
        raise ImageError(f"the file is larger than {limit:,} bytes")
    return data[:limit]


def _read_local(path: bytes, limit: int) -> bytes:
    with open_regular(path) as stream:
        return stream.read(limit + 1)


def open_regular(path: str | bytes) -> BinaryIO:
    """Open a local file to read; ImageError, at once, if it is a named pipe or a device, OSError if it cannot be."""
    # O_NONBLOCK: opening a named pipe must not wait for a writer.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise ImageError("not a regular file")
    return os.fdopen(handle, "rb")


def read(uri: str) -> bytes:
    """Read a whole file that mvad wrote; OSError if it cannot be read."""
    filesystem, path = resolve(uri)
    with filesystem.open_input_stream(path) as stream:
        return stream.read()


class FileState(NamedTuple):
    """What tells whether a file has changed; None where it cannot be told."""

    size: int | None = None  # bytes
    mtime: int | None = None  # when it was last changed, in microseconds since 1970

    @classmethod
    def of_local(cls, status: os.stat_result) -> "FileState":
        return cls(status.st_size, status.st_mtime_ns // 1000)

    @classmethod
    def of_store(cls, info: pafs.FileInfo) -> "FileState":
        return cls(info.size, None if info.mtime_ns is None else info.mtime_ns // 1000)


def file_state(uri: str) -> FileState:
    """The state of a file; it cannot be told of one that is missing."""
    try:
        if is_local(uri):
            return FileState.of_local(os.stat(local_path(uri)))
        filesystem, path = resolve(uri)
        return FileState.of_store(filesystem.get_file_info(path))
    except OSError:
        return FileState()


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
    _write(uri, parts)


def write_stream(uri: str, parts: Iterable[bytes]) -> None:
    """Write a file, as `write` does, from parts that are made one after the other and need not fit into memory.

    No file appears if making a part fails: for object storage, the parts are collected in a temporary file first.
    """
    if is_local(uri):
        _write(uri, parts)
        return
    with tempfile.TemporaryFile() as collected:
        collected.writelines(parts)
        collected.seek(0)
        _write(uri, iter(functools.partial(collected.read, COPY_CHUNK_BYTES), b""))


def _write(uri: str, parts: Iterable[bytes | memoryview | pa.Buffer]) -> None:
    filesystem, path = resolve(uri)
    if not is_local(uri):  # an object appears when its stream is closed
        with filesystem.open_output_stream(path) as stream:
            for part in parts:
                stream.write(part)
        return
    try:
        _write_local(path, parts)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error


def _write_local(path: str, parts: Iterable[bytes | memoryview | pa.Buffer]) -> None:
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    temporary = f"{folder}/{_unfinished_name()}"
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
    probe = _unfinished_name()
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


def _unfinished_name() -> str:
    """A name for a file that is being written, which says by which process of which machine."""
    return f".{uuid.uuid4().hex}.{socket.gethostname()}.{os.getpid()}{UNFINISHED}"


def is_unfinished(name: str) -> bool:
    """Whether a file's name is that of a `write` that has not ended, or was killed."""
    return name.startswith(".") and name.endswith(UNFINISHED)


def remove_unfinished(uri: str, *, below: bool = True) -> None:
    """Remove the temporary files that a killed `write` left in a local folder, and below; object storage keeps none.

    Those of processes that may still write stay: processes of this machine that are alive, and of other machines for
    `UNFINISHED_MAX_AGE_S` after their last change.
    """
    if is_local(uri):
        for path in Path(resolve(uri)[1]).glob(f"{'**/' if below else ''}.*{UNFINISHED}"):
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


def move(uri: str, target: str) -> None:
    """Move a file, or a folder with everything in it, to another place on the same file system.

    In object storage, which cannot rename, each object is copied and removed: if that is interrupted, moving the rest
    completes it.
    """
    filesystem, path = resolve(uri)
    target_path = resolve(target)[1]
    if is_local(uri):
        os.makedirs(os.path.dirname(target_path), exist_ok=True)
        os.replace(path, target_path)
        return
    paths = [path]
    if filesystem.get_file_info(path).type == pafs.FileType.Directory:
        infos = filesystem.get_file_info(pafs.FileSelector(path, recursive=True))
        paths = [info.path for info in infos if info.type == pafs.FileType.File]

    def move_object(name: str) -> None:
        filesystem.copy_file(name, target_path + name.removeprefix(path))
        filesystem.delete_file(name)

    parallel_map(move_object, paths)
    remove(uri)


def real_place(uri: str) -> str:
    """The place that a URI leads to: links of local paths are followed, keys and connection options left out."""
    if is_local(uri):
        return Path(os.path.realpath(os.fsdecode(local_path(uri)))).as_uri()
    parts = urlsplit(uri)
    return urlunsplit((parts.scheme, without_keys(parts.netloc), parts.path.rstrip("/"), "", ""))


def lies_in(uri: str, folder: str) -> bool:
    """Return whether a URI leads to a folder, or to something in it, whatever links or options either has."""
    return f"{real_place(uri)}/".startswith(f"{real_place(folder)}/")
