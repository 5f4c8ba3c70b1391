"""Local paths and object stores, addressed by URIs."""

from mvad.storage.files import exists, local_copy, read, read_bytes, remove, remove_unfinished, write
from mvad.storage.filesystems import THREADS, parallel_map, resolve
from mvad.storage.listing import FileEntry, list_files, list_folder, list_pages, list_subfolders
from mvad.storage.uris import folder_name, is_local, join, local_path, readable, safe_name, sibling, to_uri

__all__ = [
    "THREADS",
    "FileEntry",
    "exists",
    "folder_name",
    "is_local",
    "join",
    "list_files",
    "list_folder",
    "list_pages",
    "list_subfolders",
    "local_copy",
    "local_path",
    "parallel_map",
    "read",
    "read_bytes",
    "readable",
    "remove",
    "remove_unfinished",
    "resolve",
    "safe_name",
    "sibling",
    "to_uri",
    "write",
]
