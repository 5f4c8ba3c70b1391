"""What it takes to rebuild a backbone in another process."""

from __future__ import annotations

from dataclasses import dataclass

from mvad.data.image_size import ImageSize
from mvad.errors import UsageError

EMBEDDED = "efficientnet_lite0"
NO_BACKBONE = "none"  # of methods that look at pixels


@dataclass(frozen=True)
class BackboneSpec:
    """A backbone by name, with what is known of it; `backbones.describe` looks it up.

    Attributes
    ----------
    name
        As given to ``--backbone``.
    stages
        Three stages, shallow to deep: module names (torchvision) or numbers (timm). Of a convolutional network those at
        strides 8, 16 and 32, of a transformer those after a half, three quarters and all of its blocks.
    mean, std
        Normalisation of RGB in [0, 1], a channel.
    patch
        Side of a transformer's patches in pixels, of which the side of an image must be a multiple; 1: none.
    """

    name: str
    stages: tuple[str | int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    patch: int = 1

    def check_size(self, size: ImageSize) -> None:
        """UsageError if the network cannot take images of this size."""
        if size.crop % self.patch:
            raise UsageError(
                f"{self.name} takes images whose side is a multiple of {self.patch}, not {size.crop}; "
                "set --image-size or --crop."
            )
