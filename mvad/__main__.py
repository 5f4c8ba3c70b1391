"""``python -m mvad``, and the command ``mvad``."""

import os
import sys
from collections.abc import Callable, Sequence

from mvad.commands import ON_RAY, typed_name
from mvad.process import end_on_signals, ignore_signals, unfailing_output
from mvad.runtime.ray_start import forks


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line as a process of its own, and exit: `cli.main`, or 128 + the number of a signal."""
    try:
        with unfailing_output(), end_on_signals():
            if _starts_ray(sys.argv[1:] if arguments is None else arguments):
                forks.begin()
            run_command = _import_command()  # what it imports takes a second, in which a signal may come
            run_command(arguments)
    finally:
        ignore_signals()


def _starts_ray(words: Sequence[str]) -> bool:
    """Whether a command line will most likely start Ray on this machine."""
    elsewhere = any(word == "--help" or word.startswith("--address") for word in words)
    return not {*map(typed_name, ON_RAY)}.isdisjoint(words[:1]) and not elsewhere and not os.environ.get("RAY_ADDRESS")


def _import_command() -> Callable[[Sequence[str] | None], None]:
    try:
        from mvad.cli import main as run_command
    except ImportError as error:
        if (error.name or "").startswith("mvad"):
            raise
        reason = " ".join(str(error).split())
        sys.exit(f"mvad: a package that it needs cannot be imported ({reason}); install it again: pip install mvad")
    return run_command


if __name__ == "__main__":
    main()
