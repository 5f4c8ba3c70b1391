"""Read, write, copy and remove files, on this machine and in object storage."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs

from mvad.errors import ImageError, UsageError
from mvad.storage.filesystems import has_directories, resolve
from mvad.storage.uris import is_local, local_path

COPY_CHUNK_BYTES = 1 << 24


def read_bytes(uri: str, limit: int) -> bytes:
    """Read an image file of at most ``limit`` bytes.

    Raises
    ------
    ImageError
        The file is missing, unreadable, not a regular file or larger than ``limit``, or ``uri`` is not a URI.
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
    """Write a file, one part after the other, and create its folder; a reader sees all of the file or none of it."""
    filesystem, path = resolve(uri)
    if not is_local(uri):  # an object appears when its stream is closed
        with filesystem.open_output_stream(path) as stream:
            for part in parts:
                stream.write(part)
        return
    folder = os.path.dirname(path)
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


def remove_unfinished(uri: str) -> None:
    """Remove the temporary files that a killed `write` left below a local folder; object storage keeps none."""
    if is_local(uri):
        for path in Path(resolve(uri)[1]).glob("**/.*.unfinished"):
            path.unlink(missing_ok=True)


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
