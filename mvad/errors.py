"""The errors a user can put right."""


class UsageError(Exception):
    """Wrong arguments or unusable input: one sentence that says what, where, and what to do (exit code 2)."""


class ImageError(ValueError):
    """One image file cannot be used; becomes the ``error`` of its row, never the end of a run."""
