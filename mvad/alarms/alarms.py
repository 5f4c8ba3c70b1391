"""The alarms of one night: who is told, when, and once."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mvad.alarms.channel import AlarmError, Channel, within
from mvad.alarms.document import Night
from mvad.alarms.mail import Mail, Server
from mvad.alarms.prometheus import checked_file, write_metrics
from mvad.alarms.record import entry, read_record, write_record
from mvad.alarms.webhook import Webhook
from mvad.console import Reporter
from mvad.errors import UsageError, failure_reason, outside_trouble
from mvad.options import AlarmOptions
from mvad.results.result import Result
from mvad.results.store import read_run
from mvad.storage.text import one_printable_line

if TYPE_CHECKING:
    from mvad.results.run_record import Run

EXIT_FAILED, EXIT_USAGE = 1, 2  # of a night that an error ended
MAX_REASON = 1000  # characters of what is said of the error


class Alarms:
    """Whom to tell of the night of ``date``, whose results are in ``out`` (a URI); made before the work.

    UsageError, which shows no secret, if an option or the environment says too little. After that nothing is raised:
    an alarm that fails becomes a warning.
    """

    def __init__(self, options: AlarmOptions, date: datetime.date, out: str, report: Reporter) -> None:
        self._date, self._out, self._report = date, out, report
        self._channels: list[Channel] = [Webhook(url, insecure=options.notify_insecure) for url in options.notify or ()]
        if options.email:
            server = Server.of_environment()
            self._channels += [Mail(address, server) for address in options.email]
        self._file = None if options.prometheus is None else checked_file(options.prometheus, out)
        self._run: Run | None = None

    def begun(self, run: Run) -> None:
        """Note that the night has begun: from now on its failure is told."""
        self._run = run

    @contextmanager
    def on_failure(self) -> Iterator[None]:
        """Tell of an error that ends the block, if the night was begun, and let it pass. Signals are not told."""
        try:
            yield
        except Exception as error:
            if self._run is not None:
                code, reason = _failure(error)
                self._tell(Night(self._date, self._run.run_id, code, self._out, failure=reason), self._run.folder)
            raise

    def send(self, result: Result) -> None:
        """Tell of a night that has its verdicts, those who have not been told yet."""
        if not self._channels and self._file is None:
            return
        try:
            content = read_run(self._out)
        except UsageError as error:
            self._report.warn(f"no alarm was sent: {error}")
            return
        night = Night(
            date=self._date,
            run_id=content.get("run_id", ""),
            exit_code=result.exit_code,
            out=self._out,
            rows=result.summary[:-1],
            facts=content.get("categories", {}),
            missing=content.get("missing_categories", ()),
            errors=result.errors,
        )
        self._tell(night, self._out)

    def _tell(self, night: Night, folder: str) -> None:
        try:
            if self._file is not None:
                write_metrics(self._file, night)
        except Exception as error:  # whatever it is, it must not cost the night
            self._report.warn(f"the file of --prometheus could not be written: {failure_reason(error)}")
        if self._channels:
            deliver(self._channels, night, folder, self._report)


def _failure(error: Exception) -> tuple[int, str]:
    """The exit code that an error will have, and what is said of it."""
    reason, is_usage = outside_trouble(error) or (failure_reason(error), False)
    if isinstance(error, UsageError):
        reason, is_usage = str(error), True
    return EXIT_USAGE if is_usage else EXIT_FAILED, one_printable_line(reason)[:MAX_REASON]


def deliver(channels: Sequence[Channel], night: Night, folder: str, report: Reporter) -> None:
    """Tell of a night through each channel that has not delivered it, and note in ``folder`` (a URI) how that went.

    Nothing is raised. The note is written after each attempt: a process that is killed meanwhile may tell one channel
    twice.
    """
    record, counts = read_record(folder, night.run_id), Counter[str]()
    for channel in channels:
        counts[channel.name] += 1  # two URLs may differ only in what must not be written down
        number = counts[channel.name]
        name = channel.name if number == 1 else f"{channel.name} ({number})"
        if record.get(name, {}).get("delivered"):
            continue
        reason = None
        try:
            within(channel.limit_s, channel.send, night)
            report.info(f"sent to {name}")
        except AlarmError as error:
            reason = one_printable_line(str(error))
        except Exception as error:  # its text may hold what must not be shown
            reason = type(error).__name__
        if reason is not None:
            report.warn(f"{name} was not told of the night ({reason}); repeat the command to try again")
        record[name] = entry(reason)
        try:
            write_record(folder, night.run_id, record)
        except Exception as error:
            report.warn(f"a repeated command may tell {name} again: {failure_reason(error)}")
