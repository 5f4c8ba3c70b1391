"""What a command returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mvad.options import FileOptions

MAX_LISTED_ERRORS = 1000  # in run.json and other documents
EXIT_DONE, EXIT_TOO_MANY_ERRORS, EXIT_DRIFTED = 0, 3, 4


@dataclass
class Result:
    """What a command did."""

    # 0; or 3 if more files were unreadable than ``max_errors`` allows; or 4 if a category has drifted (`nightly`).
    exit_code: int = EXIT_DONE
    summary: list[dict[str, Any]] = field(default_factory=list)  # rows of ``summary.parquet``; empty after `fit`
    errors: list[dict[str, str]] = field(default_factory=list)  # unreadable files: image_id, category, split, error
    seconds: dict[str, float] = field(default_factory=dict)  # of wall-clock time, per stage

    def document(self) -> dict[str, Any]:
        """All of it as plain values, for ``--json``."""
        return {name: getattr(self, name) for name in ("exit_code", "summary", "errors", "seconds")}


def exit_code(options: FileOptions, n_errors: int, n_images: int) -> int:
    """The exit code of a command that met so many unreadable files among its images."""
    return EXIT_TOO_MANY_ERRORS if n_errors > options.allowed_errors(n_images) else EXIT_DONE
