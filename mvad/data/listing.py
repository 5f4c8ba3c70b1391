"""The images to be scored, as their listing comes in: the first are scored while the rest is still being listed.

A large dump in object storage takes minutes to list. It is given out in portions, each at least twice as large as the
one before, up to `MOST_IMAGES`, because actors are started anew for each. Only a plain tree can be taken like this: in
all other layouts an image's row depends on other files.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.compute as pc

from mvad import storage
from mvad.data.manifest import (
    SCHEMA,
    check_categories,
    images_among,
    is_table,
    no_category,
    no_images,
    plain_rows,
    read_manifest,
    select,
    surely_plain,
)
from mvad.options import CommonOptions

FIRST_SECONDS = 10.0  # a listing that is done by then is given out whole
FIRST_IMAGES = 2048  # at least, of a first portion that is not the whole
MOST_IMAGES = 1 << 18  # that wait in memory before the listing waits for them; a folder more can be on its way


class Listing:
    """The test images under DATA: iterating gives tables of the manifest's schema, each sorted, once.

    ``--layout``, ``--category``, ``--categories`` and ``--limit`` are applied.

    Attributes
    ----------
    root
        URI of the folder, or table.
    ended
        Whether all images are in the portions given out so far.
    n_images, n_test
        How many images there are so far, with those for training and without.
    ignored
        How many files with an image's suffix have been listed that the layout has no place for.

    Raises
    ------
    UsageError
        As for `manifest.read_manifest`, when made; while iterating, the listing broke off.
    """

    def __init__(self, data: str, options: CommonOptions) -> None:
        self.root = storage.to_uri(data)
        self.ended = False
        self.n_images = self.n_test = self.ignored = 0
        self._options = options
        self._folders = self._top_folders()
        self._found: set[str] = set()
        self._portions = self._whole() if self._folders is None else self._plain()
        self._first = next(self._portions)

    def __iter__(self) -> Iterator[pa.Table]:
        return itertools.chain([self._first], self._portions)

    @property
    def categories(self) -> list[str]:
        """Those with images; before the listing has ended, all that may have some."""
        if self.ended:
            return sorted(self._found)
        return sorted(self._options.category_names or self._possible)

    @property
    def _possible(self) -> set[str]:
        """The categories that a plain tree may have."""
        named = self._options.category
        return {folder.path for folder in self._folders or ()} if named is None else {named}

    def _top_folders(self) -> list[storage.FileEntry] | None:
        """The folders in a plain tree; None for anything that has to be listed as a whole before its rows are known."""
        options = self._options
        if is_table(self.root) or options.limit is not None or options.layout not in ("auto", "plain"):
            return None
        folders = storage.list_folders(self.root)
        if folders is None or (options.layout == "auto" and not surely_plain(self.root, folders)):
            return None
        return folders

    def _whole(self) -> Iterator[pa.Table]:
        manifest = read_manifest(self.root, self._options)
        self.n_images, self.ignored, self.ended = len(manifest.table), manifest.ignored, True
        self._found = set(manifest.categories)
        images = manifest.split("test")
        self.n_test = len(images)
        yield images

    def _plain(self) -> Iterator[pa.Table]:
        names, left_out = self._options.category_names, 0

        def rows() -> Iterator[pa.Table]:
            nonlocal left_out
            for page in storage.list_pages(self.root):
                images = images_among(page)
                placed = plain_rows(images, self._options.category)
                left_out += len(images) - len(placed)
                yield placed

        for number, (listed, ended) in enumerate(in_portions(rows())):
            seen = set(pc.unique(listed["category"]).to_pylist())
            if number == 0:
                if not len(listed):
                    raise no_category(self.root) if left_out else no_images(self.root)
                check_categories(names, seen if ended else self._possible, self.root)
            table = select(listed, names)
            self.n_test += len(table)
            self.n_images = self.n_test
            self.ended, self.ignored = ended, left_out
            self._found |= seen if names is None else seen & {*names}
            yield table


def in_portions(tables: Iterable[pa.Table]) -> Iterator[tuple[pa.Table, bool]]:
    """Join tables that come slowly to fewer and larger ones, and say of each whether it is the last.

    They are taken from ``tables`` in a thread, also while the consumer is busy with others. The first one is given out
    after `FIRST_SECONDS`; the last may be empty.
    """
    waiting = _Waiting(tables)
    least, deadline, ended = FIRST_IMAGES, time.monotonic() + FIRST_SECONDS, False
    try:
        while not ended:
            table, ended = waiting.take(least, deadline)
            least = min(2 * len(table), MOST_IMAGES)
            yield table, ended
    finally:
        waiting.close()


class _Waiting:
    """Rows that have been listed and not been taken yet."""

    def __init__(self, tables: Iterable[pa.Table]) -> None:
        self._changed = threading.Condition()
        self._tables: list[pa.Table] = []
        self._count = 0
        self._ended = self._closed = False
        self._error: BaseException | None = None
        threading.Thread(target=self._fill, args=(tables,), daemon=True).start()

    def _fill(self, tables: Iterable[pa.Table]) -> None:
        try:
            for table in tables:
                with self._changed:
                    self._changed.wait_for(lambda: self._count < MOST_IMAGES or self._closed)
                    if self._closed:
                        return
                    self._tables.append(table)
                    self._count += len(table)
                    self._changed.notify_all()
        except BaseException as error:  # belongs to whoever waits for the rows
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def take(self, least: int, deadline: float) -> tuple[pa.Table, bool]:
        """All rows that wait, once there are ``least`` and the deadline has passed, or no more come; and whether."""
        with self._changed:
            while not self._ended:
                left = deadline - time.monotonic()
                if self._count >= least and (left <= 0 or self._count >= MOST_IMAGES):
                    break
                self._changed.wait(left if left > 0 else None)
            if self._error is not None:
                raise self._error
            tables, ended = self._tables, self._ended
            self._tables, self._count = [], 0
            self._changed.notify_all()
        return pa.concat_tables(tables) if tables else SCHEMA.empty_table(), ended

    def close(self) -> None:
        """No more rows are wanted."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
