"""A page to try models on: ``mvad serve``.

::

    GET  /             the page: drop images on it, see verdict, p-value and map
    GET  /categories   what images can be scored as, and what an upload may be
    POST /score        the same for programs: a form with files in, JSON out
"""

from __future__ import annotations

import ipaddress
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mvad.console import Reporter
from mvad.demo.catalogue import read_catalogue
from mvad.demo.deployment import deployed
from mvad.demo.uploads import Limits
from mvad.errors import UsageError
from mvad.memory import parse_bytes
from mvad.options import ServeOptions
from mvad.pipeline.flow import load_networks
from mvad.runtime.session import ray_session


def serve(models: str, **options: Any) -> None:
    """Serve the demo page with the models in a folder until Ctrl-C; options as in `options.ServeOptions`.

    Raises
    ------
    UsageError
        No usable models, weights that cannot be had, or an address that cannot be listened on.
    """
    chosen = ServeOptions(**options)
    report = Reporter(chosen.quiet)
    with serving(models, **options) as address:
        report.print(f"the demo is at {address} (Ctrl-C ends it)")
        _wait_for_interrupt()
    report.line("ended")


@contextmanager
def serving(models: str, **options: Any) -> Iterator[str]:
    """As `serve`, but while the context lasts; gives the page's address."""
    chosen = ServeOptions(**options)
    report = Reporter(chosen.quiet)
    catalogue = read_catalogue(models, chosen)
    port = _free_port(chosen.host, chosen.port)
    networks = load_networks({name: offer.model for name, offer in catalogue.items()}, chosen.weights)
    if not _is_loopback(chosen.host):
        report.warn(
            f"whoever can reach port {port} of this machine can use the demo: it asks for no password and encrypts "
            "nothing"
        )
    limits = Limits(parse_bytes(chosen.max_upload), chosen.max_files, chosen.max_pixels)
    report.line(f"models of {len(catalogue):,} categor{'y' if len(catalogue) == 1 else 'ies'}; starting")
    with (
        ray_session(chosen.address, say=report.line),
        deployed(catalogue, networks, chosen.engine, limits, parse_bytes(chosen.memory_limit), chosen.host, port),
    ):
        yield f"http://{_shown(chosen.host)}:{port}/"


def _free_port(host: str, port: int) -> int:
    """The port to listen on, a free one for 0; UsageError if the address cannot be listened on."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
            return int(probe.getsockname()[1])
    except OSError as error:
        raise UsageError(
            f"cannot listen on port {port} of {host!r} ({error.strerror or error}); give another --port or --host."
        ) from error


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _shown(host: str) -> str:
    """A host as a person can open it."""
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{name}]" if ":" in name else name


def _wait_for_interrupt() -> None:
    """Wait for Ctrl-C, or for SIGTERM where signals can be had."""
    ended = threading.Event()
    kept = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            kept[number] = signal.signal(number, lambda *_: ended.set())
    try:
        while not ended.wait(1.0):
            pass
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


__all__ = ["serve", "serving"]
