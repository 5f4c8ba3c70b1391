"""What another process needs to rebuild a backbone."""

from __future__ import annotations

from dataclasses import dataclass

from mvad.data.image_size import ImageSize
from mvad.errors import UsageError

EMBEDDED = "efficientnet_lite0"
NO_BACKBONE = "none"  # the backbone's name for methods that look at pixels


@dataclass(frozen=True)
class BackboneSpec:
    """A backbone's name and properties, as `backbones.describe` looks them up.

    Attributes
    ----------
    name
        As given to ``--backbone``.
    stages
        The layers of the three feature levels, shallow to deep: module names (torchvision) or indices (timm). In a
        convolutional network these are the layers at strides 8, 16 and 32, in a transformer the blocks at a half, three
        quarters and the end of its depth.
    mean, std
        Normalisation of RGB in [0, 1], per channel.
    patch
        Side of a transformer's patches in pixels; the side of an image must be a multiple of it. 1 if there are none.
    """

    name: str
    stages: tuple[str | int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    patch: int = 1

    def check_size(self, size: ImageSize) -> None:
        """Raise UsageError if the network cannot take images of this size."""
        if size.crop % self.patch:
            raise UsageError(
                f"{self.name} takes images whose side is a multiple of {self.patch}, not {size.crop}; "
                "set --image-size or --crop."
            )
