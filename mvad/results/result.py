"""What a command returns."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mvad.options import FileOptions

MAX_LISTED_ERRORS = 1000  # in run.json and other documents
EXIT_DONE, EXIT_TOO_MANY_ERRORS, EXIT_DRIFTED = 0, 3, 4  # 4 also if a category is missing


@dataclass
class Result:
    """What a command did."""

    # 0; or 3 if more files were unreadable than ``max_errors`` allows, or all of a category; or 4 if a category has
    # drifted or has no images (`nightly`).
    exit_code: int = EXIT_DONE
    summary: list[dict[str, Any]] = field(default_factory=list)  # rows of ``summary.parquet``; empty after `fit`
    errors: list[dict[str, str]] = field(default_factory=list)  # unreadable files: image_id, category, split, error
    seconds: dict[str, float] = field(default_factory=dict)  # of wall-clock time, per stage

    def document(self) -> dict[str, Any]:
        """All of it as plain values, for ``--json``."""
        return {name: getattr(self, name) for name in ("exit_code", "summary", "errors", "seconds")}


def exit_code(
    options: FileOptions,
    n_errors: int,
    n_images: int,
    *,
    failed_categories: Collection[str] = (),
    drifted: Collection[str] = (),
    missing: Collection[str] = (),
) -> int:
    """The exit code of a command: of its process, and in its ``run.json``.

    Parameters
    ----------
    n_errors, n_images
        Files that could not be used, of all those that were asked for.
    failed_categories
        Categories without a model, or of which no image could be scored. One is too many, unless ``max_errors`` allows
        all images to fail.
    drifted, missing
        Categories that have drifted, and those that were expected and had no image; for commands where that matters.
    """
    allowed = options.allowed_errors(n_images)
    if n_errors > allowed or (failed_categories and allowed < n_images):
        return EXIT_TOO_MANY_ERRORS
    return EXIT_DRIFTED if drifted or missing else EXIT_DONE
