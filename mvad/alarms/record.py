"""Who has been told of a run: ``notified.json`` in the folder of its results."""

from __future__ import annotations

import datetime
import json
from typing import Any

from mvad import storage
from mvad.results.store import NOTIFIED, write_json


def read_record(out: str, run_id: str) -> dict[str, Any]:
    """What ``notified.json`` in OUT (a URI) says of a run, by name of the channel; empty if it is of another run."""
    try:
        content = json.loads(storage.read(storage.join(out, NOTIFIED)))
        channels = content["channels"] if content["run_id"] == run_id else {}
        return {name: channels[name] for name in channels if isinstance(channels[name], dict)}
    except (OSError, ValueError, KeyError, TypeError):  # there is none, or it is damaged: telling twice does less harm
        return {}


def write_record(out: str, run_id: str, channels: dict[str, Any]) -> None:
    """Write ``notified.json``; OSError if it cannot be written."""
    write_json(storage.join(out, NOTIFIED), {"run_id": run_id, "channels": channels})


def entry(error: str | None) -> dict[str, Any]:
    """What the record says of one attempt, which failed if there is an error: delivered, tried (UTC), error."""
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return {"delivered": error is None, "tried": now, "error": error}
