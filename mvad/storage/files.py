"""Where files are: local paths and ``pyarrow.fs`` URIs (``file://``, ``s3://``, ``gs://``), behind a few functions.

A URI is percent-encoded, so that any file name, even one that is not UTF-8, survives the trip through a table.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
import shutil
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import parse_qsl, quote, unquote, unquote_to_bytes, urlsplit, urlunsplit

import pyarrow as pa
import pyarrow.fs as pafs

from mvad.errors import ImageError, UsageError

S3_ATTEMPTS = (
    10  # at a request, with pauses that double up to 20 seconds; gs:// tries for a quarter of an hour by itself
)
S3_FLAGS = ("allow_bucket_creation", "allow_bucket_deletion", "check_directory_existence_before_creation")
COPIED_AT_ONCE = 1 << 24  # bytes
THREADS = 16  # of requests to a store that wait side by side

Item = TypeVar("Item")
Found = TypeVar("Found")


class FileEntry(NamedTuple):
    """One file or folder below a root: its readable relative path (POSIX slashes) and its URI."""

    path: str
    uri: str


def to_uri(place: str | os.PathLike[str]) -> str:
    """The URI of a local path or of a URI; relative paths are taken from the working directory.

    A path is recognised by having no ``scheme://``; it is made absolute but symbolic links stay as they are.
    """
    text = os.fspath(place)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text):
        return text.rstrip("/")
    return Path(os.path.abspath(text)).as_uri()


def join(uri: str, *names: str) -> str:
    """The URI of a file below the folder ``uri``; ``names`` are plain text and are percent-encoded here."""
    parts = urlsplit(uri)
    path = "/".join([parts.path.rstrip("/"), *(quote(name, safe="/=") for name in names)])
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


def sibling(uri: str, name: str) -> str:
    """The URI of a file or folder in the same folder as ``uri``; ``name`` is plain text."""
    parts = urlsplit(uri)
    return join(urlunsplit(parts._replace(path=parts.path.rpartition("/")[0])), name)


def folder_name(name: str) -> str:
    """A name made safe as the name of one folder: percent-encoded, and never ``.`` or ``..``."""
    return quote(name, safe=" ") if name.strip(".") else name.replace(".", "%2E")


def readable(uri: str) -> str:
    """A URI as a person would write it: local files as plain paths, others without keys and connection options."""
    if is_local(uri):
        return _readable(local_path(uri))
    parts = urlsplit(uri)
    return f"{parts.scheme}://{_bucket(parts.netloc)}{unquote(parts.path)}"


def _bucket(netloc: str) -> str:
    return netloc.rpartition("@")[2]


def is_local(uri: str) -> bool:
    return urlsplit(uri).scheme == "file"


def local_path(uri: str) -> bytes:
    """The path of a ``file://`` URI, as the bytes the file system knows."""
    return unquote_to_bytes(urlsplit(uri).path)


def _readable(path: bytes) -> str:
    # A byte that is not UTF-8 becomes ``\\xff``. Backslashes before one, or before what looks like one, are doubled:
    # two different paths never read the same.
    text = re.sub(
        r"\\+(?=x[89a-f][0-9a-f]|[\udc80-\udcff])",
        lambda backslashes: 2 * backslashes[0],
        path.decode("utf-8", "surrogateescape"),
    )
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


@functools.lru_cache(maxsize=32)
def _filesystem(scheme: str, netloc: str, query: str) -> pafs.FileSystem:
    try:
        found = pafs.FileSystem.from_uri(urlunsplit((scheme, netloc, "", query, "")))[0]
        return _patient(found, netloc, query) if isinstance(found, pafs.S3FileSystem) else found
    except (pa.ArrowInvalid, OSError, ValueError) as error:
        place = f"{scheme}://{_bucket(netloc)}"
        raise UsageError(f"{place} cannot be reached ({error}); use a path, file://, s3:// or gs://.") from error


def _patient(found: pafs.S3FileSystem, netloc: str, query: str) -> pafs.S3FileSystem:
    """The same store, tried again for longer, and with one request for a small file.

    A URI cannot say either. Without the first, a store that asks to slow down is asked again at the same pace for six
    seconds, and the run ends; without the second, an upload takes three requests, and one that was finished when its
    answer was lost cannot be told from one that failed.
    """
    options: dict[str, Any] = dict(parse_qsl(query))
    if not options.keys() <= {"region", "scheme", "endpoint_override", "tls_ca_file_path", *S3_FLAGS}:
        return found  # there are a few that only a URI can say
    options |= {name: options[name].lower() in ("1", "true") for name in S3_FLAGS if name in options}
    key, _, secret = netloc.rpartition("@")[0].partition(":")
    if key:
        options |= {"access_key": unquote(key), "secret_key": unquote(secret)}
    options |= {"region": found.region, "allow_delayed_open": True}
    return pafs.S3FileSystem(**options, retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=S3_ATTEMPTS))


def parallel_map(function: Callable[[Item], Found], items: Iterable[Item]) -> list[Found]:
    """What a function that waits for files gives for each item, in their order; the first exception is raised."""
    with ThreadPoolExecutor(THREADS) as threads:
        return list(threads.map(function, items))


def resolve(uri: str) -> tuple[pafs.FileSystem, str]:
    """The file system of a URI and the path on it.

    Raises
    ------
    UsageError
        The scheme is unknown or its file system cannot be opened.
    """
    if is_local(uri):
        return pafs.LocalFileSystem(), os.fsdecode(local_path(uri))
    parts = urlsplit(uri)
    return _filesystem(parts.scheme, parts.netloc, parts.query), _bucket(parts.netloc) + unquote(parts.path)


def list_files(root: str) -> Iterator[FileEntry]:
    """Every file below the folder ``root`` (a URI), except hidden ones, in no particular order: `list_pages`."""
    return itertools.chain.from_iterable(list_pages(root))


def list_pages(root: str) -> Iterator[list[FileEntry]]:
    """Every file below the folder ``root`` (a URI), except hidden ones, some at a time as they are found.

    Linked folders are followed, but never into themselves, so a loop of links ends. Object storage gives out a thousand
    names at a time: there folders are listed side by side.

    Raises
    ------
    UsageError
        There is no such folder, or it cannot be read.
    """
    if is_local(root):
        yield from _list_local(root)
        return
    filesystem, path = resolve(root)
    try:
        for infos in _list_store(filesystem, path):
            found = [info.path[len(path) :].lstrip("/") for info in infos if info.type != pafs.FileType.Directory]
            yield [FileEntry(name, join(root, name)) for name in found if not _hidden(name.split("/"))]
    except OSError as error:
        raise _unlisted(root, error) from error


def list_folders(root: str) -> list[FileEntry] | None:
    """The folders in the folder ``root`` (a URI), except hidden ones, in no particular order.

    None where only a listing of all files could tell: see `_knows_folders`.

    Raises
    ------
    UsageError
        There is no such folder, or it cannot be read.
    """
    if is_local(root):
        return [_entry(local_path(root), one.path) for one in _scan(local_path(root))[1] if _is_folder(one)]
    filesystem, path = resolve(root)
    if not _knows_folders(filesystem):
        return None
    try:
        infos = filesystem.get_file_info(pafs.FileSelector(path))
    except OSError as error:
        raise _unlisted(root, error) from error
    return [FileEntry(info.base_name, join(root, info.base_name)) for info in _folders_among(infos)]


def _folders_among(infos: Iterable[pafs.FileInfo]) -> list[pafs.FileInfo]:
    return [info for info in infos if info.type == pafs.FileType.Directory and not _hidden([info.base_name])]


def _unlisted(root: str, error: OSError) -> UsageError:
    return UsageError(
        f"{readable(root)} cannot be listed ({error}); see that there is such a folder and who may read it."
    )


def _knows_folders(filesystem: pafs.FileSystem) -> bool:
    """Whether a folder can be listed without all that is below it.

    A folder of object storage is what names have in common. Arrow's Google Cloud Storage shows only those that have an
    object of their own, which few programs make.
    """
    return filesystem.type_name != "gcs"


def _list_store(filesystem: pafs.FileSystem, root: str) -> Iterator[list[pafs.FileInfo]]:
    """What is below a folder of object storage, as the answers come in.

    While threads are idle, a folder is listed by itself, and then its sub-folders side by side; otherwise in one go
    with all that is below it, which takes fewer requests. No more answers than threads wait to be taken.
    """
    threads = ThreadPoolExecutor(THREADS)
    left = [root]
    asked: dict[Future[list[pafs.FileInfo]], bool] = {}
    try:
        while left or asked:
            while left and len(asked) < THREADS:
                folder = left.pop()
                deep = len(left) + len(asked) >= THREADS or not _knows_folders(filesystem)
                # A folder below that is gone by now has no files.
                selector = pafs.FileSelector(folder, recursive=deep, allow_not_found=folder != root)
                asked[threads.submit(filesystem.get_file_info, selector)] = deep
            for request in wait(asked, return_when=FIRST_COMPLETED).done:
                deep, infos = asked.pop(request), request.result()
                if not deep:
                    left += [info.path for info in _folders_among(infos)]
                yield infos
    finally:
        threads.shutdown(wait=False, cancel_futures=True)


def _hidden(names: list[str]) -> bool:
    return any(name.startswith(".") or name == "__MACOSX" for name in names)


def _list_local(root: str) -> Iterator[list[FileEntry]]:
    top = local_path(root)
    waiting: list[tuple[bytes, frozenset[tuple[int, int]]]] = [(top, frozenset())]  # folders, and those they are in
    while waiting:
        folder, above = waiting.pop()
        here, found = _scan(folder)
        if here in above:
            continue
        page = []
        for entry in found:
            if _is_folder(entry):
                waiting.append((entry.path, above | {here}))
            else:
                page.append(_entry(top, entry.path))
        yield page


def _entry(top: bytes, path: bytes) -> FileEntry:
    relative = os.path.relpath(path, top).replace(os.sep.encode(), b"/")
    return FileEntry(_readable(relative), Path(os.fsdecode(path)).as_uri())


def _scan(folder: bytes) -> tuple[tuple[int, int], list[os.DirEntry[bytes]]]:
    """A local folder's device and inode, which are its own whatever links lead to it, and what is in it and not hidden.

    Raises
    ------
    UsageError
        There is no such folder, or it cannot be read.
    """
    if not os.path.isdir(folder):
        problem = "is a file, not a folder" if os.path.exists(folder) else "does not exist"
        raise UsageError(f"no such folder: {_readable(folder)} {problem}.")
    try:
        status = os.stat(folder)
        with os.scandir(folder) as entries:
            seen = [entry for entry in entries if not _hidden([os.fsdecode(entry.name)])]
        return (status.st_dev, status.st_ino), seen
    except OSError as error:
        raise UsageError(f"the folder {_readable(folder)} cannot be read: {error.strerror}.") from error


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, say: listed as a file, which then has its reason
        return False


def read_bytes(uri: str, limit: int) -> bytes:
    """The content of an image file, of at most ``limit`` bytes.

    Raises
    ------
    ImageError
        The file is missing, cannot be read, is not a regular file or is larger than ``limit``, or ``uri`` is no URI.
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
    except (ValueError, UsageError) as error:  # a table of images may name anything
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


def exists(uri: str) -> bool:
    filesystem, path = resolve(uri)
    return filesystem.get_file_info(path).type != pafs.FileType.NotFound


def list_folder(uri: str) -> list[str]:
    """The names of the files and folders directly in ``uri``, sorted; empty if there is no such folder."""
    filesystem, path = resolve(uri)
    selector = pafs.FileSelector(path, allow_not_found=True, recursive=not _knows_folders(filesystem))
    infos = filesystem.get_file_info(selector)
    return sorted({info.path[len(path) :].lstrip("/").split("/")[0] for info in infos})


def remove(uri: str) -> None:
    """Remove a file or a folder with all it holds; nothing happens if it is not there."""
    filesystem, path = resolve(uri)
    kind = filesystem.get_file_info(path).type
    if kind == pafs.FileType.Directory:
        if is_local(uri):
            shutil.rmtree(path)
        elif _knows_folders(filesystem):
            filesystem.delete_dir(path)
        else:
            filesystem.delete_dir_contents(path, missing_dir_ok=True)
            if filesystem.get_file_info(path).type != pafs.FileType.NotFound:  # the folder has an object of its own
                filesystem.delete_dir(path)
    elif kind != pafs.FileType.NotFound:
        filesystem.delete_file(path)


def read(uri: str) -> bytes:
    """The whole content of a file of ours."""
    filesystem, path = resolve(uri)
    with filesystem.open_input_stream(path) as stream:
        return stream.read()


@contextmanager
def local_copy(uri: str) -> Iterator[str]:
    """The path of a file of ours: itself if it is on this machine, or else a copy that is removed afterwards.

    What has been mapped into memory in the meantime stays there.
    """
    filesystem, path = resolve(uri)
    if is_local(uri):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="mvad-") as folder:
        copy = os.path.join(folder, "copy")
        with filesystem.open_input_stream(path) as source, open(copy, "wb") as target:
            shutil.copyfileobj(source, target, COPIED_AT_ONCE)
        yield copy


def remove_unfinished(uri: str) -> None:
    """Remove what `write` leaves below a folder if its process is killed; object storage has no such things."""
    if is_local(uri):
        for place in Path(resolve(uri)[1]).glob("**/.*.unfinished"):
            place.unlink(missing_ok=True)


def write(uri: str, *parts: bytes | memoryview | pa.Buffer) -> None:
    """Write a file, its parts one after the other, so that a reader sees all of it or none; its folder is made."""
    filesystem, path = resolve(uri)
    folder = path.rpartition("/")[0]
    if not is_local(uri):  # an object appears when its stream is closed
        with filesystem.open_output_stream(path) as stream:
            for part in parts:
                stream.write(part)
        return
    os.makedirs(folder, exist_ok=True)
    temporary = f"{folder}/.{uuid.uuid4().hex}.unfinished"
    try:
        with open(temporary, "wb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)
