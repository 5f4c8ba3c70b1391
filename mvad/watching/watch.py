"""Look at a folder again and again, and score what has arrived into the night of the day."""

from __future__ import annotations

import datetime
import threading
import time
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mvad import pipeline, storage
from mvad.console import Reporter, plural
from mvad.data.listing import Listing, wait_until_settled
from mvad.data.manifest import Manifest, select_categories
from mvad.data.tables import SCHEMA
from mvad.errors import NoImagesError, UsageError
from mvad.options import WatchOptions
from mvad.results.result import Result
from mvad.watching.night import Night
from mvad.watching.nights import earlier_nights, scored_before
from mvad.watching.seen import SeenFiles

MAX_BATCH_IMAGES = 256  # that are scored before their rows are written


def local_now() -> datetime.datetime:
    """The time in the time zone of this machine."""
    return datetime.datetime.now().astimezone()


class Watch:
    """Scores what arrives in a folder until it is asked to stop; each day has its night in OUT.

    Parameters
    ----------
    folder, models, out
        Paths or URIs, as for `mvad nightly`.
    stop
        Ends it in good order once it is set, after the batch that is being scored.
    now
        The time, in the time zone whose midnight ends a night.
    """

    def __init__(
        self,
        folder: str,
        models: str,
        out: str,
        options: WatchOptions,
        *,
        stop: threading.Event | None = None,
        now: Callable[[], datetime.datetime] = local_now,
    ) -> None:
        self._root, self._models, self._out = storage.to_uri(folder), storage.to_uri(models), storage.to_uri(out)
        self._options, self._report = options, Reporter(options.quiet)
        self._stop, self._now = stop or threading.Event(), now
        self._night: Night | None = None
        self._resumed: Night | None = None  # the night whose rows of earlier runs are among those that were seen
        self._seen = SeenFiles()
        self._images = self._list()  # as they were listed last
        self._looked_at = time.time()  # when they were
        self._trouble = ""  # what could not be read, as was said last

    def run(self) -> Result:
        """Score until `stop` is set: the result of the last night, with the exit code of `mvad nightly`.

        UsageError as from `mvad score`. What cannot be read later on, as the folder, or the models at midnight, is
        warned of and tried again. A KeyboardInterrupt, which signals become, is raised once the night is finished.
        """
        self._finish_earlier_night()
        night = self._open_night()
        with pipeline.job_session(self._options, self._report, night.prepare):
            try:
                self._night = night
                night.warm_up()
                place, interval = storage.readable(self._root), self._options.interval
                self._report.result(f"watching {place} every {interval:g} s; night of {night.day} ({self._now():%Z})")
                while not self._stop.is_set():
                    self._look()
                    self._stop.wait(self._options.interval)
                return self._finish()
            except KeyboardInterrupt:
                self._finish()
                raise
            finally:
                if self._night is not None:
                    self._night.close()

    def _finish_earlier_night(self) -> None:
        """Finish the last night before today, if its run was killed."""
        night = next(earlier_nights(self._out, self._root, self._now().date()), None)
        if night is None or not night.is_running:
            return
        self._report.result(f"night of {night.day}, which had not ended")
        try:
            Night(night.day, self._root, self._models, self._out, self._options, self._report).finish()
        except UsageError as error:
            self._report.warn(f"{storage.readable(night.folder)} has not ended, and cannot be finished: {error}")

    def _open_night(self) -> Night:
        day = self._now().date()
        return Night(day, self._root, self._models, self._out, self._options, self._report)

    def _finish(self) -> Result:
        return Result() if self._night is None else self._night.finish()

    def _look(self) -> None:
        """Score what is new; at first, if it is past midnight, end one night and begin another."""
        began = time.time()
        try:
            night = self._tonight()
            images = self._list()
        except (UsageError, OSError) as error:
            if str(error) != self._trouble:
                self._trouble = str(error)
                self._report.warn(f"{error} It is tried again every {self._options.interval:g} s.")
            return
        self._trouble, self._images = "", images
        night.relist(images)
        new = self._new(night)
        new = new.filter(wait_until_settled(new, self._options.settle))
        for start in range(0, len(new), MAX_BATCH_IMAGES):
            if self._stop.is_set() or self._now().date() != night.day:
                return
            self._score(night, new.slice(start, MAX_BATCH_IMAGES), began)
        self._looked_at = began

    def _tonight(self) -> Night:
        """The night of today, with the models as they are now if it is another than before."""
        if self._night is not None and self._night.day != self._now().date():
            self._night.finish()
            self._night.close()
            self._night = None
            self._seen.keep_only(self._images.table)
        if self._night is None:
            night = self._open_night()
            night.warm_up()
            self._night = night
            self._report.result(f"night of {night.day} ({self._now():%Z})")
        return self._night

    def _list(self) -> Manifest:
        """What lies in the folder, which may be nothing; UsageError if it cannot be told."""
        try:
            listing = Listing(self._root, self._options.listing)
            table = pa.concat_tables(listing)
        except NoImagesError:
            return Manifest(self._root, SCHEMA.empty_table())
        names = self._options.categories
        left_out = select_categories(listing.left_out, names)
        return Manifest(self._root, select_categories(table, names), left_out, ignore=listing.ignore)

    def _new(self, night: Night) -> pa.Table:
        """The images that are to be scored: those without a row, and those whose file has changed since.

        An image belongs to the night in which it was scored: the next does not score it again.
        """
        images = self._images.table
        if self._resumed is night or not len(images):
            return self._seen.unseen(images, by_name=self._options.recheck == "name")
        if self._resumed is None:
            self._seen.add(scored_before(images, self._out, self._root, self._now()))
        left = night.resume(self._seen.unseen(images))
        rows = night.run.rows
        self._seen.add(rows, set(rows.filter(pc.equal(rows["status"], "error"))["image_id"].to_pylist()))
        self._resumed = night
        return left

    def _score(self, night: Night, images: pa.Table, listed_at: float) -> None:
        """Score a batch, and say how long its slowest image has waited since it arrived, as far as that is known."""
        outcome = night.score(images, again=any(name in self._seen for name in images["image_id"].to_pylist()))
        self._seen.add(images, outcome.failed)
        changed = images["file_mtime"].cast(pa.int64()).fill_null(0).to_numpy() / 1e6
        slowest = time.time() - np.clip(changed, self._looked_at, listed_at).min()
        self._report.result(
            f"{self._now():%H:%M:%S}  {plural(outcome.n_images, 'image')}, {outcome.n_flagged:,} flagged, "
            f"{plural(len(outcome.failed), 'error')}, slowest {slowest:.1f} s"
        )
