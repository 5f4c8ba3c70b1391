from mvad.console import Reporter
from mvad.options import Models, ServeOptions, takes


@takes(ServeOptions)
def serve(models: Models, options: ServeOptions) -> None:
    """Serve a page on this machine that scores images dropped on it, and an API that does the same; until Ctrl-C.

    Raises
    ------
    UsageError
        There are no usable models, weights are not available, or the address cannot be listened on.
    """
    from mvad.demo.server import serving, wait_for_signal

    report = Reporter(options.quiet)
    with serving(models, options=options) as address:
        report.result(f"the demo is at {address} (press Ctrl-C to stop)")
        wait_for_signal()
    report.info("stopped")
