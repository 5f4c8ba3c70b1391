"""``python -m mvad``, and the command ``mvad``."""

from collections.abc import Sequence

from mvad.process import end_on_signals, ignore_signals, unfailing_output


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line as a process of its own, and exit: `cli.main`, or 128 + the number of a signal."""
    try:
        with unfailing_output(), end_on_signals():
            from mvad.cli import main as run_command  # what it imports takes a second, in which a signal may come

            run_command(arguments)
    finally:
        ignore_signals()


if __name__ == "__main__":
    main()
