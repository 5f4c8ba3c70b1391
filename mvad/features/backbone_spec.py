"""What another process needs to rebuild a backbone."""

from dataclasses import dataclass

from mvad.data.image_size import CELL, ImageSize
from mvad.errors import UsageError

EMBEDDED = "efficientnet_lite0"
NO_BACKBONE = "none"  # the backbone's name for methods that look at pixels


@dataclass(frozen=True)
class BackboneSpec:
    """A backbone's name and properties, as `backbones.describe` looks them up.

    ``stages`` are the layers of the three feature levels, shallow to deep: in a convolutional network those at strides
    8, 16 and 32, in a transformer the blocks at a half, three quarters and the end of its depth.
    """

    name: str  # as given to --backbone
    stages: tuple[str | int, ...]  # module names (torchvision) or indices (timm)
    mean: tuple[float, ...]  # normalisation of RGB in [0, 1], per channel, with `std`
    std: tuple[float, ...]
    patch: int = 1  # side of a transformer's patches in pixels, of which an image's sides are multiples; 1: no patches

    @property
    def cell(self) -> int:
        """Pixels that the sides of an input that is not square are multiples of."""
        return CELL if self.patch == 1 else self.patch

    def check_size(self, size: ImageSize) -> None:
        """Raise UsageError if the network cannot take images of this size."""
        if size.height % self.patch or size.width % self.patch:
            raise UsageError(
                f"{self.name} takes images whose sides are multiples of {self.patch}, not {size}; "
                "set --image-size or --crop."
            )
