"""The ``serve`` command: a page and an API to try models on."""

from __future__ import annotations

from typing import Any

from mvad.console import Reporter
from mvad.demo.server import serving, wait_for_signal
from mvad.options import ServeOptions


def serve(models: str, **options: Any) -> None:
    """Serve the demo page with the models in a folder until Ctrl-C; options as in `options.ServeOptions`.

    Raises
    ------
    UsageError
        There are no usable models, weights are not available, or the address cannot be listened on.
    """
    report = Reporter(ServeOptions(**options).quiet)
    with serving(models, **options) as address:
        report.print(f"the demo is at {address} (press Ctrl-C to stop)")
        wait_for_signal()
    report.line("stopped")
