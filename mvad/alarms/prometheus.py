"""Write a night as a file for the textfile collector of node_exporter, in Prometheus's exposition format."""

from __future__ import annotations

import datetime

from mvad import storage
from mvad.alarms.document import Night, verdicts
from mvad.errors import UsageError
from mvad.results.printed import STATES

SUFFIX = ".prom"  # node_exporter reads no other files


def checked_file(file: str, out: str) -> str:
    """The URI of the file; UsageError if it cannot be written, nobody would read it, or it lies in the results OUT."""
    uri = storage.to_uri(file)
    if not uri.endswith(SUFFIX):
        raise UsageError(f"--prometheus {storage.readable(uri)} must end in {SUFFIX}: node_exporter reads no others.")
    if storage.lies_in(uri, out):
        raise UsageError(f"--prometheus {storage.readable(uri)} lies in the folder of the results; name another place.")
    storage.ensure_writable_folder(storage.parent(uri))
    return uri


def write_metrics(uri: str, night: Night) -> None:
    """Write the file; a reader sees all of it or none. OSError if it cannot be written."""
    storage.write(uri, metrics(night))


def metrics(night: Night) -> bytes:
    """The content of the file: a gauge has no sample where there is no number, and of a night that failed few have."""
    from prometheus_client import CollectorRegistry, Gauge, generate_latest

    registry = CollectorRegistry()
    date = datetime.datetime.combine(night.date, datetime.time(), datetime.timezone.utc)
    of_night = {
        "date_timestamp_seconds": ("The night's date, at 00:00 UTC.", date.timestamp()),
        "exit_code": ("Exit code of mvad nightly.", night.exit_code),
        "errors": ("Files that could not be used.", None if night.failure else len(night.errors)),
    }
    for name, (help, value) in of_night.items():
        if value is not None:
            Gauge(f"mvad_night_{name}", help, registry=registry).set(value)
    of_category = {
        "images": "Images, with those that could not be used.",
        "flagged": "Images that are anomalous.",
        "uncertain": "Images that are uncertain.",
        "errors": "Images that could not be used.",
        "drifted": "1 if the whole batch scores differently.",
    }
    gauges = {
        name: Gauge(f"mvad_category_{name}", help, ["category"], registry=registry)
        for name, help in of_category.items()
    }
    states = Gauge("mvad_category_state", "1 for the state that is printed.", ["category", "state"], registry=registry)
    for verdict in verdicts(night):
        values = verdict | {"drifted": (verdict["drift"] or {}).get("drifted")}
        for name, gauge in gauges.items():
            if values[name] is not None:
                gauge.labels(verdict["category"]).set(values[name])
        for state in STATES:
            states.labels(verdict["category"], state).set(state == verdict["state"])
    return generate_latest(registry)
