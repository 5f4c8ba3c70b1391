"""Ground-truth masks: which pixels of an image are defective, whatever program wrote them."""

import functools
import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageFile

from mvad import storage
from mvad.data.images.ignoring import encode_ignore
from mvad.data.images.loading import read_file
from mvad.data.images.opening import decoding, open_image, upright
from mvad.data.images.samples import read_samples
from mvad.errors import ImageError, UsageError

MAX_MASK_PIXELS = 1_000_000_000
SAME_SHAPE = 0.02  # logarithm of the ratio of two aspect ratios that rounding explains
EIGHT_NEIGHBOURS = np.ones((3, 3), int)


class Mask(NamedTuple):
    """A mask in the size of its image, and what it is in its own size."""

    pixels: NDArray[np.bool_]  # (height, width) of the image, True where defective
    width: int
    height: int
    share: float  # of its own pixels that are defective


@dataclass
class MaskRemarks:
    """What to know of a category's masks before believing its pixel metrics."""

    n_masks: int = 0
    n_empty: int = 0
    n_mostly_marked: int = 0
    n_other_shapes: int = 0
    unusable: list[str] = field(default_factory=list)  # masks and reasons

    def add(self, mask: Mask, width: int, height: int) -> None:
        """Look at the mask of a defective image of this size."""
        self.n_masks += 1
        self.n_empty += mask.share == 0
        self.n_mostly_marked += mask.share > 0.5
        self.n_other_shapes += abs(math.log(mask.width * height / (mask.height * width))) > SAME_SHAPE

    def add_unusable(self, uri: str, reason: ImageError) -> None:
        """Note a mask that cannot be read."""
        self.unusable.append(f"{storage.readable(uri)}: {reason}")

    def sentences(self) -> list[str]:
        """What is odd, in sentences without a full stop."""
        texts = []
        if self.unusable:
            texts.append(
                f"pixel metrics without {_count(len(self.unusable))} that cannot be used: {min(self.unusable)}"
            )
        if self.n_mostly_marked > self.n_masks / 2:
            texts.append(
                f"{self.n_mostly_marked} of {_count(self.n_masks)} mark most of the image: are they inverted? "
                "Black must be good"
            )
        if self.n_empty:
            texts.append(f"{self.n_empty} of {_count(self.n_masks)} of defective images mark nothing")
        if self.n_other_shapes:
            texts.append(f"{self.n_other_shapes} of {_count(self.n_masks)} have another aspect ratio than their image")
        return texts


def _count(number: int) -> str:
    return f"{number} mask" if number == 1 else f"{number} masks"


def read_mask(uri: str, max_pixels: int = MAX_MASK_PIXELS) -> Image.Image:
    """Read a mask in its own size, upright: mode L, 255 where defective and 0 elsewhere; ImageError as for `decode`.

    Black is good, and so is what is transparent; anything else is defective, be it 1, a label, or a colour. Compression
    blurs the edges of a mask in a lossy file, and some programs write good as dark grey: in a lossy file, and in a mask
    without black, defective is what is brighter than the middle between its darkest and its brightest pixel.

    A URI that ends in ``/`` is that of a folder of masks, one per defect of the image: they are read as one.
    """
    if uri.endswith("/"):
        return _read_masks(uri, max_pixels)
    data = read_file(uri, max_pixels)
    with decoding(data):
        image = open_image(data, max_pixels)
        lossy = _is_lossy(image, data)
        values, visible = _values(image, data, max_pixels)
        low, high = values.min(), values.max()
        marked = values > ((float(low) + float(high)) / 2 if low < high and (lossy or low > 0) else 0)
        if visible is not None:
            # A defect may be painted in black where all else is transparent.
            marked = visible & marked if (visible & marked).any() or visible.all() else visible
    return Image.fromarray(marked.astype(np.uint8) * 255)


def _read_masks(folder: str, max_pixels: int) -> Image.Image:
    try:
        uris = sorted(file.uri for file in storage.list_files(folder))
    except UsageError as error:
        raise ImageError(f"the masks cannot be listed: {error}") from error
    if not uris:
        raise ImageError("the folder of masks is empty")
    return functools.reduce(ImageChops.lighter, (read_mask(uri, max_pixels) for uri in uris))


def read_ignore(uri: str) -> str:
    """Read a mask that is white where images of a category are not to be looked at, as `ImageSize.ignore`.

    UsageError if it cannot be read, or marks nothing or all.
    """
    try:
        return encode_ignore(read_mask(uri))
    except (ImageError, ValueError) as error:
        raise UsageError(f"{storage.readable(uri)}, which says what to ignore, cannot be used: {error}.") from error


def load_mask(uri: str, width: int, height: int) -> Mask:
    """Read a mask in the size of its upright image, ``width`` x ``height`` pixels; ImageError as for `read_mask`.

    A mask of another size is stretched. Its pixels are the nearest ones, and all that belong to a defect (a region of
    pixels that touch) of which the nearest ones have none: a small defect does not vanish.
    """
    mask = read_mask(uri)
    marked = pixels = np.asarray(mask) > 0
    if mask.size != (width, height):
        pixels = np.asarray(mask.resize((width, height), Image.Resampling.NEAREST)) > 0
        if mask.width > width or mask.height > height:
            pixels = pixels | _vanished_regions(marked, width, height)
    return Mask(pixels, mask.width, mask.height, float(marked.mean()))


def _is_lossy(image: ImageFile.ImageFile, data: bytes) -> bool:
    if image.format == "TIFF":
        return image.info.get("compression") in ("jpeg", "tiff_jpeg")
    return image.format in ("JPEG", "MPO", "JPEG2000") or (image.format == "WEBP" and b"VP8L" not in data)


def _values(image: ImageFile.ImageFile, data: bytes, max_pixels: int) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """Values of pixels, of the brightest channel, and which are visible if some are not: (height, width) each."""
    samples = read_samples(image, data, max_pixels, False, exact=True)
    if samples is not None:
        values = samples.values if samples.values.ndim == 2 else samples.values.max(axis=2)
        if samples.inverted:
            values = values.max() - values
        return values, None if samples.alpha is None else samples.alpha > 0
    pixels, visible = upright(image), None
    if pixels.has_transparency_data:
        visible = np.asarray(pixels.convert("RGBA").getchannel("A")) > 0
    if pixels.mode in ("1", "L"):
        return np.asarray(pixels.convert("L")), visible
    colours = np.asarray(pixels.convert("RGB")).max(axis=2)
    if pixels.mode == "P" and colours.min() == colours.max():
        return np.asarray(pixels), visible  # labels with a palette that shows all of them in one colour
    return colours, visible


def _vanished_regions(marked: NDArray[np.bool_], width: int, height: int) -> NDArray[np.bool_]:
    """Where the defects lie that have no pixel in a mask's nearest pixels: (height, width)."""
    from scipy.ndimage import label

    vanished = np.zeros((height, width), bool)
    rows, columns = (np.flatnonzero(marked.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return vanished
    top, left = rows[0], columns[0]
    regions, count = label(marked[top : rows[-1] + 1, left : columns[-1] + 1], EIGHT_NEIGHBOURS)
    y, x = np.nonzero(regions)
    numbers = regions[y, x]
    y, x = y + top, x + left
    scale_y, scale_x = height / marked.shape[0], width / marked.shape[1]
    sampled_y, sampled_x = (
        np.isin(places, ((np.arange(side) + 0.5) / scale).astype(int))
        for places, side, scale in ((y, height, scale_y), (x, width, scale_x))
    )
    kept = np.zeros(count + 1, bool)
    kept[numbers[sampled_y & sampled_x]] = True
    lost = ~kept[numbers]
    vanished[((y[lost] + 0.5) * scale_y).astype(int), ((x[lost] + 0.5) * scale_x).astype(int)] = True
    return vanished
