"""Errors that a user can correct."""


class UsageError(Exception):
    """Wrong arguments or unusable input: one sentence that says what, where, and what to do (exit code 2)."""


class ImageError(ValueError):
    """An image file that cannot be used; it becomes the ``error`` of the image's row and never ends a run."""


def one_line(text: object) -> str:
    """Join the lines of a text or an error with single spaces; messages of decoders and object stores have several."""
    return " ".join(str(text).split())
