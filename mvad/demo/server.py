"""Runs the demo: reads the models, starts Ray, and serves until told to stop."""

from __future__ import annotations

import ipaddress
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mvad.console import Reporter
from mvad.demo.category_models import read_category_models
from mvad.demo.deployment import deployed
from mvad.demo.uploads import UploadLimits
from mvad.errors import UsageError
from mvad.memory import parse_bytes
from mvad.options import ServeOptions
from mvad.pipeline.flow import load_networks
from mvad.runtime.session import ray_session


@contextmanager
def serving(models: str, **options: Any) -> Iterator[str]:
    """Serve the demo with the models in a folder while the context lasts; yields the address of the page.

    Options and errors are those of `commands.serve.serve`.
    """
    chosen = ServeOptions(**options)
    report = Reporter(chosen.quiet)
    category_models = read_category_models(models, chosen)
    port = _free_port(chosen.host, chosen.port)
    networks = load_networks({name: model.model for name, model in category_models.items()}, chosen.weights)
    if not _is_loopback(chosen.host):
        report.warn(
            f"anyone who can reach port {port} of this machine can use the demo: it has no password and no encryption"
        )
    limits = UploadLimits(parse_bytes(chosen.max_upload), chosen.max_files, chosen.max_pixels)
    max_model_bytes = parse_bytes(chosen.memory_limit)
    n_models = len(category_models)
    report.line(f"models of {n_models:,} {'category' if n_models == 1 else 'categories'}; starting")
    with (
        ray_session(chosen.address, say=report.line),
        deployed(category_models, networks, chosen.engine, limits, max_model_bytes, chosen.host, port),
    ):
        yield f"http://{_url_host(chosen.host)}:{port}/"


def wait_for_signal() -> None:
    """Wait for Ctrl-C; on the main thread, also for SIGTERM."""
    stopped = threading.Event()
    handlers = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            handlers[number] = signal.signal(number, lambda *_: stopped.set())
    try:
        while not stopped.wait(1.0):
            pass
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _free_port(host: str, port: int) -> int:
    """The port to listen on, any free one for 0; UsageError if the address cannot be listened on."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
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


def _url_host(host: str) -> str:
    """The host in a URL that a browser on this machine can open."""
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{name}]" if ":" in name else name
