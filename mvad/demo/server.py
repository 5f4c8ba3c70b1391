"""Runs the demo: reads the models, starts Ray, and serves until told to stop."""

from __future__ import annotations

import ipaddress
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from mvad.console import Reporter, plural
from mvad.demo.category_models import read_category_models
from mvad.demo.deployment import deployed
from mvad.errors import UsageError
from mvad.model_store import load_networks
from mvad.options import ServeOptions, takes
from mvad.runtime.session import ray_session


@contextmanager
@takes(ServeOptions)
def serving(folder: str, options: ServeOptions) -> Iterator[str]:
    """Serve the demo with the models in a folder while the context lasts; yields the address of the page.

    Options and errors are those of `commands.serve.serve`.
    """
    report = Reporter(options.quiet)
    models = read_category_models(folder, options)
    port = _free_port(options.host, options.port)
    networks = load_networks([model.model for model in models.values()], options.weights)
    if not _is_loopback(options.host):
        report.warn(
            f"anyone who can reach port {port} of this machine can use the demo: it has no password and no encryption"
        )
    report.info(f"models of {plural(len(models), 'category', 'categories')}; starting")
    with ray_session(options.address, say=report.info), deployed(models, networks, options, port):
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(options.host, options.host)  # a browser can open these
        yield f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def wait_for_signal() -> None:
    """Wait for Ctrl-C; on the main thread, also for SIGTERM."""
    stopped = threading.Event()
    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    handlers = {number: signal.signal(number, lambda *_: stopped.set()) for number in numbers}
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
