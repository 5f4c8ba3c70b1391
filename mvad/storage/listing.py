"""List folders, on this machine and in object storage."""

import itertools
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple

import pyarrow.fs as pafs

from mvad.errors import UsageError, one_line
from mvad.storage.files import THREADS, FileState, has_directories, is_unfinished, resolve
from mvad.storage.uris import is_local, join, local_path, printable, readable

# Files and folders that systems and programs leave among images; so do names that start with a dot or "~$".
RUBBISH = frozenset(
    {
        *("thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "recycler", "system volume information"),
        *("__macosx", "lost+found", "@eadir", "@recycle", "@recently-snapshot", "@tmp", "#recycle", "#snapshot"),
    }
)


class FileEntry(NamedTuple):
    """A file or folder below a root: its readable relative path (POSIX slashes), its URI, and its state if known."""

    path: str
    uri: str
    size: int | None = None  # bytes
    mtime: int | None = None  # when it was last changed, in microseconds since 1970


class UnreadFolder(NamedTuple):
    """A folder below a root that cannot be listed, and why."""

    folder: FileEntry
    reason: str


def list_files(root: str) -> Iterator[FileEntry]:
    """List every file below the folder ``root`` (a URI) except hidden ones and ``RUBBISH``, in no particular order."""
    return itertools.chain.from_iterable(list_pages(root))


def list_pages(root: str, unread: list[UnreadFolder] | None = None) -> Iterator[list[FileEntry]]:
    """List every file below the folder ``root`` (a URI) except hidden ones and ``RUBBISH``, a page at a time.

    Linked folders are followed; a loop of links is left when it comes back to a folder that it is in. Object storage
    returns a thousand names per request, so folders there are listed in parallel.

    UsageError if ``root`` does not exist or cannot be read. Other folders that cannot be read are added to ``unread``;
    without that list, they are a UsageError too.
    """
    failures: list[UnreadFolder] = [] if unread is None else unread
    yield from _walk_local(local_path(root), failures) if is_local(root) else _walk_store(root, failures)
    if unread is None and failures:
        raise _listing_error(failures[0].folder.uri, failures[0].reason)


def list_subfolders(root: str) -> list[FileEntry] | None:
    """List the folders directly in the folder ``root`` (a URI) except hidden ones and ``RUBBISH``.

    Returns None where only a listing of all files could tell; see `files.has_directories`.
    UsageError if the folder does not exist or cannot be read.
    """
    if is_local(root):
        top = local_path(root)
        return [_local_entry(top, entry) for entry in _scan_root(top)[1] if _is_folder(entry)]
    filesystem, path = resolve(root)
    if not has_directories(filesystem):
        return None
    try:
        infos = filesystem.get_file_info(pafs.FileSelector(path))
    except OSError as error:
        raise _listing_error(root, error) from error
    return [FileEntry(info.base_name, join(root, info.base_name)) for info in _visible_folders(infos)]


def list_folder(uri: str) -> list[str]:
    """Return the names of the files and folders directly in ``uri``, sorted; empty if the folder does not exist.

    Files that `files.write` has not finished are left out.
    """
    filesystem, path = resolve(uri)
    selector = pafs.FileSelector(path, allow_not_found=True, recursive=not has_directories(filesystem))
    infos = filesystem.get_file_info(selector)
    names = {info.path[len(path) :].lstrip("/").split("/")[0] for info in infos}
    return sorted(name for name in names if not is_unfinished(name))


def _is_rubbish(names: list[str]) -> bool:
    return any(name.startswith((".", "~$")) or name.casefold() in RUBBISH for name in names)


def _listing_error(root: str, error: OSError | str) -> UsageError:
    return UsageError(
        f"{readable(root)} cannot be listed ({error}); check that the folder exists and that you may read it."
    )


def _visible_folders(infos: Iterable[pafs.FileInfo]) -> list[pafs.FileInfo]:
    return [info for info in infos if info.type == pafs.FileType.Directory and not _is_rubbish([info.base_name])]


def _walk_store(root: str, unread: list[UnreadFolder]) -> Iterator[list[FileEntry]]:
    """Yield the files below a folder in object storage, one answer at a time, as the answers arrive.

    While threads are idle, a folder is listed without its sub-folders, and these in parallel after it. Otherwise it is
    listed with everything below it, which takes fewer requests. At most as many answers as threads are pending.
    """
    filesystem, top = resolve(root)
    threads = ThreadPoolExecutor(THREADS)
    folders = [top]
    requests: dict[Future[list[pafs.FileInfo]], tuple[str, bool]] = {}
    try:
        while folders or requests:
            while folders and len(requests) < THREADS:
                folder = folders.pop()
                recursive = len(folders) + len(requests) >= THREADS or not has_directories(filesystem)
                # A sub-folder may have been removed in the meantime.
                selector = pafs.FileSelector(folder, recursive=recursive, allow_not_found=folder != top)
                requests[threads.submit(filesystem.get_file_info, selector)] = folder, recursive
            for request in wait(requests, return_when=FIRST_COMPLETED).done:
                folder, recursive = requests.pop(request)
                try:
                    infos = request.result()
                except OSError as error:
                    if folder == top:
                        raise _listing_error(root, error) from error
                    name = folder[len(top) :].strip("/") + "/"
                    unread.append(UnreadFolder(FileEntry(name, join(root, name)), one_line(error)))
                    continue
                if not recursive:
                    folders += [info.path for info in _visible_folders(infos)]
                files = [info for info in infos if info.type != pafs.FileType.Directory]
                entries = [_store_entry(root, info.path[len(top) :].lstrip("/"), info) for info in files]
                yield [entry for entry in entries if not _is_rubbish(entry.path.split("/"))]
    finally:
        threads.shutdown(wait=False, cancel_futures=True)


def _walk_local(top: bytes, unread: list[UnreadFolder]) -> Iterator[list[FileEntry]]:
    # Not os.walk: up to Python 3.11 it recurses, so a deeply nested tree would exceed the recursion limit.
    pending: list[tuple[bytes, frozenset[tuple[int, int]]]] = [(top, frozenset())]  # a folder and its ancestors' ids
    while pending:
        folder, ancestors = pending.pop()
        try:
            folder_id, entries = _scan_root(folder) if folder == top else _scan(folder)
        except FileNotFoundError:  # removed in the meantime
            continue
        except OSError as error:
            name = printable(os.path.relpath(folder, top).replace(os.sep.encode(), b"/")) + "/"
            uri = Path(os.fsdecode(folder)).as_uri() + "/"
            unread.append(UnreadFolder(FileEntry(name, uri), error.strerror or one_line(error)))
            continue
        if folder_id in ancestors:
            continue
        ancestors |= {folder_id}
        pending += [(entry.path, ancestors) for entry in entries if _is_folder(entry)]
        yield [_local_entry(top, entry) for entry in entries if not _is_folder(entry)]


def _store_entry(root: str, name: str, info: pafs.FileInfo) -> FileEntry:
    return FileEntry(name, join(root, name), *FileState.of_store(info))


def _local_entry(top: bytes, entry: os.DirEntry[bytes]) -> FileEntry:
    relative = os.path.relpath(entry.path, top).replace(os.sep.encode(), b"/")
    name, uri = printable(relative), Path(os.fsdecode(entry.path)).as_uri()
    try:
        status = entry.stat()
    except OSError:  # a link that leads nowhere, or a file removed since: reading it says so
        return FileEntry(name, uri)
    return FileEntry(name, uri, *FileState.of_local(status))


def _scan_root(folder: bytes) -> tuple[tuple[int, int], list[os.DirEntry[bytes]]]:
    """Scan a folder that was asked for; UsageError if there is none, or it cannot be read."""
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise UsageError(f"no such folder: {printable(folder)} is a file, not a folder.")
    try:
        return _scan(folder)
    except FileNotFoundError as error:
        raise UsageError(f"no such folder: {printable(folder)} does not exist.") from error
    except OSError as error:
        raise UsageError(f"the folder {printable(folder)} cannot be read: {error.strerror}.") from error


def _scan(folder: bytes) -> tuple[tuple[int, int], list[os.DirEntry[bytes]]]:
    """Return the device and inode of a local folder, the same through any link, and its entries but for rubbish."""
    status = os.stat(folder)
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not _is_rubbish([os.fsdecode(entry.name)])]
    return (status.st_dev, status.st_ino), visible


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # for example a link to itself: it is listed as a file, and reading it says why it is none
        return False
