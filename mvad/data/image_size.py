"""The size of the model's input."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ImageSize:
    """How an image becomes the model's input: resize to ``resize`` x ``resize`` pixels, crop the centre ``crop``."""

    resize: int
    crop: int
