from mvad.console import Reporter
from mvad.errors import extra
from mvad.options import Models, ServeOptions, takes


@takes(ServeOptions)
def serve(models: Models, options: ServeOptions) -> None:
    """Serve a page on this machine that scores images dropped on it, and an API that does the same; until Ctrl-C.

    Raises
    ------
    UsageError
        The extra ``serve`` is not installed, there are no usable models, weights are not available, or the address
        cannot be listened on.
    """
    with extra("serve"):
        import python_multipart  # noqa: F401  FastAPI looks for it late, and raises another error

        from mvad.demo.server import serving, wait_for_signal

    report = Reporter(options.quiet)
    with serving(models, options=options) as address:
        report.result(f"the demo is at {address} (press Ctrl-C to stop)")
        wait_for_signal()
    report.info("stopped")
