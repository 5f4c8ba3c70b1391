"""Local paths and object stores, addressed by URIs; every name imported here is public."""
# ruff: noqa: F401

from mvad.storage.files import (
    THREADS,
    FileState,
    ensure_writable_folder,
    exists,
    file_state,
    lies_in,
    local_copy,
    move,
    open_regular,
    parallel_map,
    read,
    read_bytes,
    remove,
    remove_unfinished,
    resolve,
    write,
    write_stream,
)
from mvad.storage.keys import Keys, WithKeys, hide_keys, split_keys
from mvad.storage.listing import FileEntry, UnreadFolder, list_files, list_folder, list_pages, list_subfolders
from mvad.storage.uris import (
    folder_name,
    is_local,
    is_relative,
    join,
    local_path,
    name_of,
    parent,
    readable,
    safe_name,
    sibling,
    to_uri,
    uri_in_table,
)
