"""The geometry of the model's input."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ImageSize:
    """How an image becomes the model's input: resized to ``resize`` x ``resize``, centre ``crop`` kept."""

    resize: int
    crop: int
