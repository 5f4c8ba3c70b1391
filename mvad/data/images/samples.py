"""Sample values of more than 8 bits: what range they have, and how they become 8 bits.

A file says what its samples are packed in, not what the camera delivered: 10- and 12-bit cameras write 16-bit files.
The range is the one that the file states, if it does:

- TIFF: SMinSampleValue and SMaxSampleValue; or MaxSampleValue if that is 2^n - 1; or 12 bits per sample;
- PNG: the chunk sBIT, if values are not spread over all 16 bits, as the standard wants it;
- PGM and PPM: the largest value in the header; JPEG 2000: the precision.

Otherwise it is that of the bit depth which a category has been fitted to, never that of the image's own values.
"""

import math
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, TiffImagePlugin

from mvad.data.images.opening import TIFF_STARTS, decoding, has_hidden_low_bytes, open_image, tile_arguments, upright
from mvad.errors import ImageError

BIT_DEPTHS = (8, 10, 12, 14, 16)
FULL_DEPTH = 16
MAX_SAMPLE_VALUE, S_MIN_SAMPLE_VALUE, S_MAX_SAMPLE_VALUE = 281, 340, 341  # TIFF tags
WHITE_IS_ZERO = 0
UNSIGNED, SIGNED = 1, 2  # TIFF sample formats
PNG_START, PNG_DEPTH_BYTE, PNG_HEADER_BYTES = b"\x89PNG\r\n\x1a\n", 24, 33
WIDE = (";16B", ";16L", ";16N")  # ends of Pillow's words for several channels of 16 bits
SEPARABLE = ("RGB", "RGBX", "RGBA", "R", "G", "B", "A", "X")  # their beginnings, where each byte can be had
STATE_THE_RANGE = "state the range in the TIFF tags SMinSampleValue and SMaxSampleValue"

Range = tuple[float, float]  # the values of black and white


class Samples(NamedTuple):
    """The sample values of an image: (height, width) or (height, width, 3), integers or floating point."""

    values: NDArray[Any]
    stated: Range | None  # by the file
    alpha: NDArray[np.uint8] | None = None  # (height, width)
    inverted: bool = False  # whether the lowest value is white


def to_rgb(
    image: ImageFile.ImageFile, data: bytes, max_pixels: int, bit_depth: int | None, first_page: bool
) -> Image.Image:
    """Decode an image of `open_image` to 8-bit RGB, upright, on black where it is transparent; ImageError if it cannot.

    ``bit_depth`` is for samples of more than 8 bits whose range the file does not state: white is 2^bits - 1. If it is
    None, such an image is an ImageError.
    """
    samples = read_samples(image, data, max_pixels, first_page, exact=bit_depth != FULL_DEPTH)
    if samples is None:
        return on_black(upright(image))
    pixels = Image.fromarray(_to_8_bits(samples, bit_depth)).convert("RGB")
    if samples.alpha is not None:
        pixels.putalpha(Image.fromarray(samples.alpha))
    return on_black(pixels)


def on_black(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    black = Image.new("RGBA", image.size, (0, 0, 0, 255))
    return Image.alpha_composite(black, image.convert("RGBA")).convert("RGB")


def may_be_deep(head: bytes) -> bool:
    """Whether a file that begins like this may have samples of more than 8 bits whose range it does not state."""
    if head.startswith(PNG_START):
        return head[PNG_DEPTH_BYTE : PNG_DEPTH_BYTE + 1] == bytes([FULL_DEPTH])
    return head.startswith(TIFF_STARTS)


def largest_value(data: bytes, max_pixels: int, *, first_page: bool = False) -> int:
    """The largest sample value of an image of more than 8 bits whose range the file does not state; otherwise 0.

    ImageError as for `loading.decode`.
    """
    with decoding(data):
        image = open_image(data, max_pixels, first_page=first_page)
        samples = read_samples(image, data, max_pixels, first_page, exact=True)
    if samples is None or samples.stated is not None or samples.values.dtype.kind == "f":
        return 0
    return int(samples.values.max())


def read_samples(
    image: ImageFile.ImageFile, data: bytes, max_pixels: int, first_page: bool, *, exact: bool
) -> Samples | None:
    """The samples of an image, upright; None if they have 8 bits.

    Without ``exact``, channels of 16 bits that may take the whole range are None as well: Pillow keeps their high
    bytes. ImageError if samples have a sign that Pillow would overlook.
    """
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    if image.mode == "L" and _first(tags.get(TiffImagePlugin.SAMPLEFORMAT, 1)) == SIGNED:
        raise ImageError("has signed 8-bit pixels; save it with unsigned ones")
    if image.format == "PPM" and image.tile[0].codec_name == "ppm":
        return _portable(image, data)
    if image.mode[0] in "IF":
        values = np.asarray(upright(image))
        if image.mode == "I" and tags and _first(tags.get(TiffImagePlugin.SAMPLEFORMAT, 1)) == UNSIGNED:
            values = values.view(np.uint32)  # which Pillow takes for signed ones
        inverted = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == WHITE_IS_ZERO
        return Samples(values, _stated_range(image, data, values), inverted=inverted)
    if not image.tile or not all(tile_arguments(tile)[0].endswith(WIDE) for tile in image.tile):
        return None
    states_a_range = _tiff_range(tags) is not None or (image.format == "PNG" and _significant_bits(data) > 0)
    return _wide_channels(image, data, max_pixels, first_page) if exact or states_a_range else None


def _portable(image: ImageFile.ImageFile, data: bytes) -> Samples | None:
    """Binary PGM and PPM files with a largest value of their own, which Pillow reads a value at a time."""
    _, largest = tile_arguments(image.tile[0])
    channels = {"L": 1, "I": 1, "RGB": 3}.get(image.mode)
    if channels is None:
        return None
    kind, count = ("u1" if largest < 256 else ">u2"), image.width * image.height * channels
    if len(data) - image.tile[0].offset < count * np.dtype(kind).itemsize:
        raise ImageError("is truncated: it has fewer pixels than its header says")
    values = np.frombuffer(data, kind, count, image.tile[0].offset)
    shape = (image.height, image.width) if channels == 1 else (image.height, image.width, channels)
    return Samples(values.reshape(shape), (0, largest))


def _wide_channels(image: ImageFile.ImageFile, data: bytes, max_pixels: int, first_page: bool) -> Samples:
    """Channels of 16 bits. Pillow keeps one byte of each, so they are read once in each byte order."""
    if has_hidden_low_bytes(image) or any(
        tile_arguments(tile)[0].split(";")[0] not in SEPARABLE for tile in image.tile
    ):
        raise ImageError("has 16-bit channels packed in a way that cannot be read; save it as 16-bit RGB")
    swapped = open_image(data, max_pixels, first_page=first_page)
    swapped.tile = [tile._replace(args=_other_byte(*tile_arguments(tile))) for tile in swapped.tile]
    high, low = np.asarray(upright(image)), np.asarray(upright(swapped))
    values = high[..., :3].astype(np.uint16) << 8 | low[..., :3]
    alpha = high[..., 3] if high.shape[2] > 3 else None
    return Samples(values, _stated_range(image, data, values), alpha)


def _other_byte(mode: str, *others: object) -> tuple[object, ...]:
    is_little = mode[-1] == "L" or (mode[-1] == "N" and sys.byteorder == "little")
    return (mode[:-1] + ("B" if is_little else "L"), *others)


def _stated_range(image: ImageFile.ImageFile, data: bytes, values: NDArray[Any]) -> Range | None:
    """The values of black and white that a file with these values states."""
    if image.format == "PNG":
        return _png_range(_significant_bits(data), values)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return _tiff_range(image.tag_v2)
    return 0, (1 << FULL_DEPTH) - 1  # Pillow has spread what PGM and JPEG 2000 files hold over 16 bits


def _png_range(bits: int, values: NDArray[Any]) -> Range | None:
    """The range of a PNG with so many significant bits; 0 if it states none."""
    if not bits:
        return None
    unused = (1 << (FULL_DEPTH - bits)) - 1
    is_spread = values.max() >= 1 << bits or not np.bitwise_and(values, unused).any()
    return 0, (1 << (FULL_DEPTH if is_spread else bits)) - 1


def _tiff_range(tags: Mapping[int, Any]) -> Range | None:
    low, high = (_numbers(tags.get(tag)) for tag in (S_MIN_SAMPLE_VALUE, S_MAX_SAMPLE_VALUE))
    if low and high and -math.inf < min(low) < max(high) < math.inf:
        return min(low), max(high)
    largest = int(max(_numbers(tags.get(MAX_SAMPLE_VALUE)), default=0))
    if (1 << 8) - 1 <= largest < 1 << FULL_DEPTH and largest & (largest + 1) == 0:
        return 0, largest
    bits = _first(tags.get(TiffImagePlugin.BITSPERSAMPLE, 0))
    return (0, (1 << bits) - 1) if 8 < bits < FULL_DEPTH else None


def _numbers(value: object) -> list[float]:
    """The numbers of a TIFF tag that may be missing, one or several."""
    parts = value if isinstance(value, tuple) else (value,)
    return [float(part) for part in parts if isinstance(part, int | float)]


def _first(value: int | tuple[int, ...]) -> int:
    return value[0] if isinstance(value, tuple) else value


def _significant_bits(data: bytes) -> int:
    """The significant bits per sample that a 16-bit PNG states, from 9 to 15; 0 if it states none."""
    position = PNG_HEADER_BYTES
    while (name := data[position + 4 : position + 8]) not in (b"IDAT", b""):
        length = int.from_bytes(data[position : position + 4], "big")
        if name == b"sBIT":
            bits = max(data[position + 8 : position + 8 + min(length, 3)], default=0)
            return bits if 8 < bits < FULL_DEPTH else 0
        position += 12 + length
    return 0


def _to_8_bits(samples: Samples, bit_depth: int | None) -> NDArray[np.uint8]:
    """Spread the range of samples over 0 to 255; ImageError if a value lies outside of it."""
    values = samples.values
    if samples.stated is not None:
        black, white = samples.stated
    elif values.dtype.kind == "f":
        raise ImageError(
            f"has floating-point pixels, whose range is unknown; convert it to 8 or 16 bits, or {STATE_THE_RANGE}"
        )
    elif bit_depth is None:
        raise ImageError("has more than 8 bits per value, and how many depends on its category; choose one")
    else:
        black, white = 0, (1 << bit_depth) - 1
    if not (black <= values.min() and values.max() <= white):  # also false for NaN
        raise ImageError(_outside(samples, white))
    step = (white - black) / 255
    if values.dtype.kind == "f" or white - black >= 1 << FULL_DEPTH or black != int(black):
        pixels = ((values - black) / step).round().astype(np.uint8)
    else:
        table = (np.arange(int(white - black) + 1) / step).round().astype(np.uint8)
        pixels = table[values if black == 0 else values.astype(np.int64) - int(black)]
    return 255 - pixels if samples.inverted else pixels


def _outside(samples: Samples, white: float) -> str:
    """Say that values lie outside of a range, which ends at ``white`` and begins at 0 if the file states none."""
    lowest, highest = (f"{value:,g}" if isinstance(value, float) else f"{value:,}" for value in _extremes(samples))
    if samples.stated is not None:
        return "has values from {} to {}, but the file states a range from {:,g} to {:,g}".format(
            lowest, highest, *samples.stated
        )
    if samples.values.min() < 0 or samples.values.max() >= 1 << FULL_DEPTH:
        return f"has values from {lowest} to {highest}, which 16 bits do not hold; convert it, or {STATE_THE_RANGE}"
    return (
        f"has values up to {highest}, but its category was fitted to {int(white).bit_length()}-bit images, which end "
        f"at {white:,}; fit it again with a larger --bit-depth"
    )


def _extremes(samples: Samples) -> tuple[float, float]:
    return samples.values.min().item(), samples.values.max().item()
