"""List the images to be scored in portions, so that the first are scored while the rest are still being listed.

Listing a large dump in object storage takes minutes. Each portion is at least twice as large as the one before, up to
`MAX_PENDING_IMAGES`, because each starts new actors. Only a plain tree is listed like this: in the other layouts the
row of an image depends on other files.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mvad import storage
from mvad.data.description import Tally
from mvad.data.layouts import IGNORE_NAME, LEFT_OUT, find_images, no_images_error, plain, unread_rows
from mvad.data.manifest import read_manifest, require_categories, select_categories
from mvad.data.tables import SCHEMA, is_table
from mvad.errors import UsageError
from mvad.storage import UnreadFolder

if TYPE_CHECKING:
    from mvad.options import DataOptions

FIRST_PORTION_WAIT_S = 10.0  # a listing that ends within this time is a single portion
FIRST_PORTION_MIN_IMAGES = 2048  # unless the listing has ended
MAX_PENDING_IMAGES = 1 << 18  # listed and not yet taken; the listing pauses here, at the end of a folder


class Listing:
    """The test images under DATA, in portions: iterate once over sorted tables with the columns of ``SCHEMA``.

    ``--layout``, ``--category``, ``--categories`` and ``--limit`` are applied. UsageError when created, as from
    `manifest.read_manifest`, and while iterating if the listing fails.
    """

    def __init__(self, data: str, options: DataOptions) -> None:
        self.root = storage.to_uri(data)
        self.ended = False  # whether the portions so far hold all images
        self.n_images = self.n_test = 0  # images so far, with and without those for training
        self.tally = Tally()  # of the images so far
        self.left_out = LEFT_OUT.empty_table()  # see `Manifest`; complete once the listing has ended
        self.remarks: Mapping[str, Sequence[str]] = {}
        self.others: Mapping[str, int] = {}
        self.ignore: dict[str, str] = {}  # see `Manifest`; complete from the first portion on
        self._options = options
        self._subfolders = self._plain_subfolders()
        self._seen_categories: set[str] = set()
        self._portions = self._single_portion() if self._subfolders is None else self._plain_portions()
        self._first_portion = next(self._portions)

    def __iter__(self) -> Iterator[pa.Table]:
        return itertools.chain([self._first_portion], self._portions)

    @property
    def categories(self) -> list[str]:
        """The categories that have images or files left out, sorted; until the listing ends, all that may have."""
        if self.ended:
            return sorted(self._seen_categories)
        return sorted(self._options.categories or self._possible_categories)

    @property
    def _possible_categories(self) -> set[str]:
        if self._options.category is not None:
            return {self._options.category}
        return {folder.path for folder in self._subfolders or ()}

    def _plain_subfolders(self) -> list[storage.FileEntry] | None:
        """Return the folders in a plain tree; None if DATA must be listed completely before its rows are known."""
        options = self._options
        if is_table(self.root) or options.limit is not None or options.layout not in ("auto", "plain"):
            return None
        subfolders = storage.list_subfolders(self.root)
        if subfolders is None or (options.layout == "auto" and not plain.surely_plain(self.root, subfolders)):
            return None
        return subfolders

    def _single_portion(self) -> Iterator[pa.Table]:
        manifest = read_manifest(self.root, self._options)
        self.n_images, self.ended, self.tally = manifest.n_images, True, manifest.tally
        self.left_out, self.remarks, self.others = manifest.left_out, manifest.remarks, manifest.others
        self.ignore = dict(manifest.ignore)
        self._see(manifest.table)
        images = manifest.split("test")
        self.n_test = len(images)
        yield images

    def _plain_portions(self) -> Iterator[pa.Table]:
        names, category = self._options.categories, self._options.category
        left_out: list[pa.Table] = []
        others: Counter[str] = Counter()
        ignore = self.ignore

        def list_tables() -> Iterator[pa.Table]:
            unread: list[UnreadFolder] = []
            for page in storage.list_pages(self.root, unread):
                found = find_images(page)
                contents = plain.read(self.root, found.images, category)
                others.update(found.count_others())
                ignore.update(found.ignore)
                left_out.extend((contents.left_out, unread_rows(self.root, found.unknown, (), category)))
                yield contents.table
            left_out.append(unread_rows(self.root, (), unread, category))

        portions = in_portions(
            list_tables(),
            wait_s=FIRST_PORTION_WAIT_S,
            min_rows=FIRST_PORTION_MIN_IMAGES,
            max_pending_rows=MAX_PENDING_IMAGES,
        )
        for number, (table, ended) in enumerate(portions):
            if number == 0:
                if not len(table):
                    raise no_images_error(self.root, pa.concat_tables(left_out))
                available = pc.unique(table["category"]).to_pylist() if ended else self._possible_categories
                require_categories(names, available, self.root)
                if not ended:
                    self.ignore = self._look_for_masks()
            images = select_categories(table, names)
            self.n_images = self.n_test = self.n_test + len(images)
            self.tally.add(images)
            self.ended, self.others = ended, others
            if ended:
                self.left_out = select_categories(pa.concat_tables(left_out), names)
            self._see(images)
            yield images

    def _look_for_masks(self) -> dict[str, str]:
        """Masks of what is not looked at, by the folder that they lie in, without listing what else lies there."""
        folders = sorted({"", *(folder.path for folder in self._subfolders or ())})
        uris = [storage.join(self.root, *filter(None, [folder]), IGNORE_NAME) for folder in folders]
        found = zip(folders, uris, storage.parallel_map(_is_there, uris), strict=True)
        return {folder: uri for folder, uri, is_there in found if is_there}

    def _see(self, images: pa.Table) -> None:
        self._seen_categories.update(pc.unique(images["category"]).to_pylist())
        self._seen_categories.update(self._possible_categories.intersection(self.left_out["category"].to_pylist()))


def _is_there(uri: str) -> bool:
    try:
        return storage.exists(uri)
    except OSError:  # a folder that may not be read, which its own error row says
        return False


def require_images(images: Listing) -> Listing:
    """A listing that has test images, as far as is known; else UsageError."""
    if images.ended and not images.n_test:
        raise UsageError(f"no test images under {storage.readable(images.root)}.")
    return images


def wait_until_settled(images: pa.Table, seconds: float) -> pa.Array:
    """Which files are not being written any more: (n,) bool.

    A file that changed less than so many seconds ago is looked at again after that time; if it has changed since it was
    listed, or has gone, it is not settled.
    """
    changed = images["file_mtime"].cast(pa.int64()).fill_null(0).to_numpy()
    young = np.flatnonzero(changed > (time.time() - seconds) * 1e6)
    settled = np.ones(len(images), bool)
    if len(young):
        time.sleep(min(seconds, max(0.0, changed.max() / 1e6 + seconds - time.time())))
        files = images.select(["uri", "file_size", "file_mtime"]).take(young)
        now = storage.parallel_map(storage.file_state, files["uri"].to_pylist())
        before = zip(files["file_size"].to_pylist(), changed[young].tolist(), strict=True)
        settled[young] = [state == earlier for state, earlier in zip(now, before, strict=True)]
    return pa.array(settled)


def in_portions(
    tables: Iterable[pa.Table], *, wait_s: float, min_rows: int, max_pending_rows: int
) -> Iterator[tuple[pa.Table, bool]]:
    """Join tables that arrive slowly into fewer, larger ones; each comes with whether it is the last.

    A thread takes the tables, also while the consumer is busy. The first portion comes after ``wait_s`` seconds and has
    at least ``min_rows`` rows, unless the tables end; each further portion has at least twice the rows of the last, and
    the last may be empty. ``max_pending_rows`` that wait for the consumer are a portion at once; meanwhile no more
    tables are taken.
    """
    pending = _PendingTables(tables, max_pending_rows)
    deadline, ended = time.monotonic() + wait_s, False
    try:
        while not ended:
            table, ended = pending.take(min_rows, deadline)
            min_rows = min(2 * len(table), max_pending_rows)
            yield table, ended
    finally:
        pending.close()


class _PendingTables:
    """Tables that a thread has taken and the consumer has not."""

    def __init__(self, tables: Iterable[pa.Table], max_rows: int) -> None:
        self._max_rows = max_rows
        self._changed = threading.Condition()
        self._tables: list[pa.Table] = []
        self._n_rows = 0
        self._ended = self._closed = False
        self._error: BaseException | None = None
        threading.Thread(target=self._fill, args=(tables,), daemon=True).start()

    def _fill(self, tables: Iterable[pa.Table]) -> None:
        try:
            for table in tables:
                with self._changed:
                    self._changed.wait_for(lambda: self._n_rows < self._max_rows or self._closed)
                    if self._closed:
                        return
                    self._tables.append(table)
                    self._n_rows += len(table)
                    self._changed.notify_all()
        except BaseException as error:  # raised in the consumer's thread
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def take(self, min_rows: int, deadline: float) -> tuple[pa.Table, bool]:
        """Wait for ``min_rows`` and the deadline, or the end; return all pending rows, and whether they are the last.

        At ``max_rows`` the deadline does not matter. An exception of the thread is raised here.
        """
        with self._changed:
            seconds = max(0.0, deadline - time.monotonic())
            self._changed.wait_for(lambda: self._ended or self._n_rows >= self._max_rows, seconds)
            self._changed.wait_for(lambda: self._ended or self._n_rows >= min_rows)
            if self._error is not None:
                raise self._error
            tables, self._tables, self._n_rows = self._tables, [], 0
            self._changed.notify_all()
            return pa.concat_tables(tables) if tables else SCHEMA.empty_table(), self._ended

    def close(self) -> None:
        """Take no more tables."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
