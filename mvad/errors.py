"""Errors that a user can correct."""

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UsageError(Exception):
    """Wrong arguments or unusable input: one sentence that says what, where, and what to do (exit code 2)."""


class NoImagesError(UsageError):
    """A folder in which there is no image yet, nor a file that may be one."""


class ModelError(UsageError):
    """A model that cannot be used. It costs the images of its category, not those of others.

    ``model`` names the model and its folder; ``reason`` says what is wrong, and what to do.
    """

    def __init__(self, model: str, reason: str) -> None:
        super().__init__(model, reason)
        self.reason = reason

    def __str__(self) -> str:
        return "{} cannot be used: {}.".format(*self.args)


class ResultsError(UsageError):
    """A file of score rows that is damaged. It costs its category, not others."""


class ImageError(ValueError):
    """An image file that cannot be used; it becomes the ``error`` of the image's row and never ends a run."""


EXTRAS = {"serve": ("fastapi", "starlette", "uvicorn", "python_multipart")}  # by extra: modules that may be missing


@contextmanager
def extra(name: str) -> Iterator[None]:
    """While the context lasts, a missing module of an extra is a UsageError that says what to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in EXTRAS[name]:
            raise
        raise UsageError(f'this needs {module}, which is not installed: pip install "mvad[{name}]"') from error


def one_line(text: object) -> str:
    """Join the lines of a text or an error with single spaces; messages of decoders and object stores have several."""
    return " ".join(str(text).split())


def failure_reason(error: BaseException) -> str:
    """Say in one line what went wrong, and of what kind the error is; for an error of a Ray task, the task's own."""
    cause = getattr(error, "cause", None) or error
    return one_line(f"{type(cause).__name__}: {cause}")


UNUSABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG}


def outside_trouble(error: BaseException) -> tuple[str, bool] | None:
    """Say in one line what a disk, an object store or the cluster refused; None if the program itself is at fault.

    Looks for the first cause, also of an error that a Ray task raised. True with the line if the place that was named
    cannot be used at all, as one that is read-only; False if it may work another time, as when a disk is full.
    """
    ray = sys.modules.get("ray.exceptions")
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError):
            place = f"{cause.filename}: " if cause.filename else ""
            return one_line(f"{place}{cause.strerror or cause}"), cause.errno in UNUSABLE
        if ray and isinstance(cause, ray.RayError) and not isinstance(cause, ray.RayTaskError):
            return one_line(f"Ray: {cause}")[:500], False
        cause = getattr(cause, "cause", None) or cause.__cause__
    return None
