"""Nights in a folder of results: one folder each, named by its date."""

from __future__ import annotations

import datetime
import re

from mvad import storage
from mvad.errors import UsageError

PREFIX = "date="
NIGHT = re.compile(rf"{PREFIX}(\d{{4}}-\d\d-\d\d)")  # name of a night's folder


def night_folder(out: str, day: datetime.date) -> str:
    """The folder of a night in OUT; both are URIs."""
    return storage.join(out, PREFIX + day.isoformat())


def list_nights(
    root: str, since: datetime.date | None = None, until: datetime.date | None = None
) -> dict[str, datetime.date]:
    """The folders (URIs) of nights below the folder ``root`` (a URI), from the first to the last, with their dates."""
    nights = {}
    for name in storage.list_folder(root):
        match = NIGHT.fullmatch(name)
        try:
            date = datetime.date.fromisoformat(match[1]) if match else None
        except ValueError:  # no day of the calendar
            continue
        if date is not None and (since is None or since <= date) and (until is None or date <= until):
            nights[storage.join(root, name)] = date
    return nights


def read_day(option: str, text: str | None) -> datetime.date | None:
    """The date that an option names; UsageError if it is none."""
    try:
        return None if text is None else datetime.date.fromisoformat(text)
    except ValueError:
        raise UsageError(f"--{option} {text!r} is not a date such as 2026-11-23.") from None
