"""Where files are: local paths and ``pyarrow.fs`` URIs (``file://``, ``s3://``, ``gs://``), behind a few functions.

A URI is percent-encoded, so that any file name, even one that is not UTF-8, survives the trip through a table.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, unquote, unquote_to_bytes, urlsplit, urlunsplit

import pyarrow as pa
import pyarrow.fs as pafs

from mvad.errors import ImageError, UsageError


class FileEntry(NamedTuple):
    """One file below a root: its readable relative path (POSIX slashes) and its URI."""

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


def folder_name(name: str) -> str:
    """A name made safe as the name of one folder: percent-encoded, and never ``.`` or ``..``."""
    return quote(name, safe=" ") if name.strip(".") else name.replace(".", "%2E")


def display(uri: str) -> str:
    """A URI as a person would write it: local files as plain paths, others without keys and connection options."""
    if is_local(uri):
        return os.fsdecode(local_path(uri))
    parts = urlsplit(uri)
    return f"{parts.scheme}://{_bucket(parts.netloc)}{unquote(parts.path)}"


def _bucket(netloc: str) -> str:
    return netloc.rpartition("@")[2]


def is_local(uri: str) -> bool:
    return urlsplit(uri).scheme == "file"


def local_path(uri: str) -> bytes:
    """The path of a ``file://`` URI, as the bytes the file system knows."""
    return unquote_to_bytes(urlsplit(uri).path)


@functools.lru_cache(maxsize=32)
def _filesystem(scheme: str, netloc: str, query: str) -> pafs.FileSystem:
    try:
        return pafs.FileSystem.from_uri(urlunsplit((scheme, netloc, "", query, "")))[0]
    except (pa.ArrowInvalid, OSError, ValueError) as error:
        place = f"{scheme}://{_bucket(netloc)}"
        raise UsageError(f"{place} cannot be reached ({error}); use a path, file://, s3:// or gs://.") from error


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
    """Every file below the folder ``root`` (a URI), except hidden ones, in no particular order.

    Linked folders are followed, but never into themselves, so a loop of links ends.

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
        infos = filesystem.get_file_info(pafs.FileSelector(path, recursive=True))
    except OSError as error:
        raise UsageError(f"no such folder: {display(root)} ({error}).") from error
    for info in infos:
        relative = info.path[len(path) :].lstrip("/")
        if info.type != pafs.FileType.Directory and not _hidden(relative.split("/")):
            yield FileEntry(relative, join(root, relative))


def _hidden(names: list[str]) -> bool:
    return any(name.startswith(".") or name == "__MACOSX" for name in names)


def _list_local(root: str) -> Iterator[FileEntry]:
    top = local_path(root)
    if not os.path.isdir(top):
        problem = "is a file, not a folder" if os.path.exists(top) else "does not exist"
        raise UsageError(f"no such folder: {display(root)} {problem}.")

    def walk(folder: bytes, above: frozenset[tuple[int, int]]) -> Iterator[bytes]:
        try:
            status = os.stat(folder)
            here = (status.st_dev, status.st_ino)
            if here in above:
                return
            with os.scandir(folder) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            raise UsageError(f"the folder {os.fsdecode(folder)} cannot be read: {error.strerror}.") from error
        for entry in found:
            if _hidden([os.fsdecode(entry.name)]):
                continue
            if entry.is_dir():
                yield from walk(entry.path, above | {here})
            else:
                yield entry.path

    for path in walk(top, frozenset()):
        relative = os.path.relpath(path, top).replace(os.sep.encode(), b"/")
        yield FileEntry(relative.decode("utf-8", "backslashreplace"), Path(os.fsdecode(path)).as_uri())


def read_bytes(uri: str, limit: int) -> bytes:
    """The content of an image file, of at most ``limit`` bytes.

    Raises
    ------
    ImageError
        The file is missing, cannot be read, is not a regular file or is larger than ``limit``.
    """
    try:
        if is_local(uri):
            data = _read_local(local_path(uri), limit)
        else:
            filesystem, path = resolve(uri)
            with filesystem.open_input_stream(path) as stream:
                data = stream.read(limit + 1)
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
    infos = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    return sorted(info.base_name for info in infos)


def remove(uri: str) -> None:
    """Remove a file or a folder with all it holds; nothing happens if it is not there."""
    filesystem, path = resolve(uri)
    kind = filesystem.get_file_info(path).type
    if kind == pafs.FileType.Directory:
        if is_local(uri):
            shutil.rmtree(path)
        else:
            filesystem.delete_dir(path)
    elif kind != pafs.FileType.NotFound:
        filesystem.delete_file(path)


def read(uri: str) -> bytes:
    """The whole content of a file of ours."""
    filesystem, path = resolve(uri)
    with filesystem.open_input_stream(path) as stream:
        return stream.read()


def write(uri: str, data: bytes | pa.Buffer) -> None:
    """Write a file so that a reader sees all of it or none, making its folder if need be."""
    filesystem, path = resolve(uri)
    folder, _, name = path.rpartition("/")
    if not is_local(uri):  # an object appears when its stream is closed
        with filesystem.open_output_stream(path) as stream:
            stream.write(data)
        return
    os.makedirs(folder, exist_ok=True)
    temporary = f"{folder}/.{name}.{uuid.uuid4().hex}"
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)
