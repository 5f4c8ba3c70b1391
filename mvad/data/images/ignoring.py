"""Areas of an image that are not looked at: a mask that a category's images share.

What lies there is painted in one colour before anything else is done with an image, so nothing of it reaches a model:
no score depends on it.
"""

import base64
import functools
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mvad.data.image_size import ImageSize

FILL = (124, 116, 104)  # the mean colour of ImageNet's images
MAX_SIDE = 2048  # of the mask in a model
MAX_CACHED = 4
MAX_ENCODED = 8 << 20  # characters


def encode_ignore(mask: Image.Image) -> str:
    """A mask (mode L, not black where images are ignored) as `ImageSize.ignore`: a PNG of 1 bit, in base64.

    ValueError if it marks nothing, or all.
    """
    marked = mask.point(lambda value: 255 * (value > 0))
    low, high = marked.getextrema()
    if low == high:
        raise ValueError("all of it is white" if high else "nothing in it is white")
    if max(mask.size) > MAX_SIDE:
        scale = MAX_SIDE / max(mask.size)
        size = max(1, round(mask.width * scale)), max(1, round(mask.height * scale))
        marked = marked.resize(size, Image.Resampling.NEAREST)
    file = io.BytesIO()
    marked.convert("1", dither=Image.Dither.NONE).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def decode_ignore(ignore: str) -> Image.Image:
    """The mask of `encode_ignore` (mode L, 0 or 255); ValueError if it is none."""
    try:
        if len(ignore) > MAX_ENCODED:
            raise ValueError(f"it has {len(ignore):,} characters")
        image = Image.open(io.BytesIO(base64.b64decode(ignore, validate=True)), formats=["PNG"])
        if max(image.size) > MAX_SIDE:
            raise ValueError(f"it has {image.width} x {image.height} pixels")
        if image.mode != "1":
            raise ValueError("it is not black and white")
        mask = image.convert("L")
        if mask.getextrema() != (0, 255):
            raise ValueError("it marks nothing, or all")
        return mask
    except Exception as error:  # decoders raise nearly anything on damaged data
        raise ValueError(f"the mask of what is ignored is damaged ({error})") from error


def is_same_mask(first: str | None, second: str | None) -> bool:
    """Whether two of `ImageSize.ignore` mark the same pixels, however their PNG is compressed."""
    if first is None or second is None or first == second:
        return first == second
    masks = decode_ignore(first), decode_ignore(second)
    return masks[0].size == masks[1].size and masks[0].tobytes() == masks[1].tobytes()


@functools.lru_cache(MAX_CACHED)
def _ignored_on(ignore: str, width: int, height: int) -> Image.Image:
    return decode_ignore(ignore).resize((width, height), Image.Resampling.NEAREST)


def blank(image: Image.Image, size: ImageSize) -> Image.Image:
    """An upright image without what is ignored, in its place one colour."""
    if size.ignore is None:
        return image
    blanked = image.copy()
    blanked.paste(FILL, (0, 0), _ignored_on(size.ignore, *image.size))
    return blanked


@functools.lru_cache(MAX_CACHED)
def ignored_pixels(size: ImageSize) -> NDArray[np.bool_] | None:
    """Which pixels of the model's input are ignored, (height, width); None if none are."""
    if size.ignore is None:
        return None
    height, width = size.resize
    (top, left), mask = size.margins, np.asarray(_ignored_on(size.ignore, width, height)) > 0
    return mask[top : top + size.height, left : left + size.width]


def ignored_on_image(size: ImageSize, width: int, height: int) -> NDArray[np.bool_] | None:
    """Which pixels of an upright image of ``width`` x ``height`` pixels are ignored; None if none are."""
    return None if size.ignore is None else np.asarray(_ignored_on(size.ignore, width, height)) > 0


def ignored_share(size: ImageSize) -> float:
    """The share of an image that is ignored."""
    return 0.0 if size.ignore is None else float(np.asarray(decode_ignore(size.ignore)).mean() / 255)
