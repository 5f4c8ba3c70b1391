"""The Ray session of a command that runs a backbone."""

from collections.abc import Callable
from contextlib import AbstractContextManager

from mvad.console import Reporter
from mvad.options import JobOptions
from mvad.runtime.session import ray_session


def job_session(
    options: JobOptions, report: Reporter, meanwhile: Callable[[], object] | None = None
) -> AbstractContextManager[None]:
    """Join the cluster that the options name, or start Ray on this machine: `session.ray_session`."""
    return ray_session(options.address, options.actors, report.info, meanwhile)
