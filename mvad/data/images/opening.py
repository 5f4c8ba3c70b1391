"""Open an image file: its format, its size, and which of its pages are pixels of the product."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from PIL import ExifTags, Image, ImageFile, TiffImagePlugin

from mvad.errors import ImageError
from mvad.process import without_warnings

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "JPEG2000", "PPM")
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
TIFF_HEADER_BYTES = 8
MAX_JPEG_SCANS = 500  # far more than encoders write; a scan has few bytes, but decoding it takes a pass over the image
JPEG_SCAN = re.compile(rb"\xff\xda\x00[\x08\x0a\x0c\x0e]")  # marker and header length of a scan of 1 to 4 components
MAX_PAGES = 100
MAX_TEXT_PIXELS = 4_000_000  # of a PPM whose values are written as text, which take long to read
NEW_SUBFILE_TYPE, SUBFILE_TYPE = 254, 255
REDUCED_OR_MASK = 0b101  # bits of NewSubfileType: a smaller version of another page, or its transparency
OLD_REDUCED = 2  # the value of SubfileType for a smaller version of another page
UPRIGHT = {  # what turns an image upright, by its EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = (5, 6, 7, 8)  # orientations that exchange width and height


@contextmanager
def decoding(data: bytes) -> Iterator[None]:
    """Turn whatever decoders raise on an image file into an ImageError that says what is wrong with it."""
    try:
        # The size is checked against the user's limit; Pillow's warnings about odd metadata help nobody.
        with without_warnings():
            yield
    except ImageError:
        raise
    except Image.UnidentifiedImageError:
        if data.startswith(TIFF_STARTS) and len(data) > TIFF_HEADER_BYTES:
            raise ImageError("a TIFF of a kind that cannot be read; save it as 8- or 16-bit grey or RGB") from None
        raise ImageError(f"not an image of a known kind ({', '.join(FORMATS)})") from None
    except Exception as error:  # decoders raise nearly anything on damaged data
        raise ImageError(f"cannot be decoded: {error or type(error).__name__}") from error


def open_image(data: bytes, max_pixels: int, *, first_page: bool = False) -> ImageFile.ImageFile:
    """Open an image file without decoding its pixels.

    Of a TIFF with thumbnails or a pyramid the largest page is taken. A file with several pages of that size, or with
    several frames, is an ImageError unless ``first_page``; so is one that is empty, not an image of a known format, or
    of more than ``max_pixels`` pixels. Call it, and load the image, within `decoding`.
    """
    if not data:
        raise ImageError("the file is empty")
    Image.MAX_IMAGE_PIXELS = None
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        _choose_page(image, first_page)
        _read_planes(image)
    if image.width * image.height > max_pixels:
        raise ImageError(f"decodes to {image.width} x {image.height} pixels, more than --max-pixels {max_pixels}")
    if image.format in ("PNG", "WEBP") and not first_page:
        _ensure_single(getattr(image, "n_frames", 1), "frames")
    if image.format in ("JPEG", "MPO") and len(JPEG_SCAN.findall(data)) > MAX_JPEG_SCANS:
        raise ImageError(f"has more than {MAX_JPEG_SCANS} scans, which would take very long to decode")
    if (
        image.format == "PPM"
        and image.tile[0].codec_name == "ppm_plain"
        and image.width * image.height > MAX_TEXT_PIXELS
    ):
        raise ImageError(f"has more than {MAX_TEXT_PIXELS:,} pixels written as text; save it as a binary PGM or PPM")
    return image


def _ensure_single(count: int, kind: str) -> None:
    if count > 1:
        raise ImageError(
            f"has {count} {kind} of one size, of which a model sees one; save each as a file, or add --pages first"
        )


def _choose_page(image: TiffImagePlugin.TiffImageFile, first_page: bool) -> None:
    """Seek the first of the largest pages that are no smaller version of another one."""
    if not getattr(image, "is_animated", False):
        return
    pages = []
    for number in range(MAX_PAGES + 1):
        try:
            image.seek(number)
        except EOFError:
            break
        except Exception:
            if len(image.tag_v2):
                raise
            break  # the address of a next page that is none
        tags = image.tag_v2
        if not tags.get(NEW_SUBFILE_TYPE, 0) & REDUCED_OR_MASK and tags.get(SUBFILE_TYPE) != OLD_REDUCED:
            pages.append((image.width * image.height, number))
    else:
        if not first_page:
            raise ImageError(f"has more than {MAX_PAGES} pages; save each as a file, or add --pages first")
    largest = max((area for area, _ in pages), default=0)
    numbers = [number for area, number in pages if area == largest]
    if not first_page:
        _ensure_single(len(numbers), "pages")
    image.seek(numbers[0] if numbers else 0)


def _read_planes(image: TiffImagePlugin.TiffImageFile) -> None:
    """Let Pillow read 16-bit channels that are stored one after the other; by itself it takes them for 8-bit ones."""
    order = "L" if image.tag_v2.prefix == b"II" else "B"
    if _is_planar(image) and set(image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, ())) == {16}:
        tiles = ((tile, tile_arguments(tile)) for tile in image.tile)
        image.tile = [
            tile._replace(args=(f"{mode};16{order}", *others)) if len(mode) == 1 else tile
            for tile, (mode, *others) in tiles
        ]


def _is_planar(image: TiffImagePlugin.TiffImageFile) -> bool:
    return image.tag_v2.get(TiffImagePlugin.PLANAR_CONFIGURATION) == 2


def has_hidden_low_bytes(image: Image.Image) -> bool:
    """Whether only the high bytes of 16-bit channels can be had: compressed planes are decoded by libtiff alone."""
    return (
        isinstance(image, TiffImagePlugin.TiffImageFile)
        and _is_planar(image)
        and any(tile.codec_name == "libtiff" for tile in image.tile)
    )


def tile_arguments(tile: ImageFile._Tile) -> tuple[Any, ...]:
    """How a decoder reads a part of an image: first how its pixels are packed, in Pillow's words."""
    return tile.args if isinstance(tile.args, tuple) else (tile.args or "",)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of an image once it is upright."""
    is_turned = image.getexif().get(ExifTags.Base.Orientation, 1) in SIDEWAYS
    return (image.height, image.width) if is_turned else image.size


def reduce_jpeg(image: ImageFile.ImageFile, width: int, height: int) -> None:
    """Let a JPEG be decoded at a half, a quarter or an eighth of its size, but upright no smaller than asked for.

    That takes a part of the time, since its blocks of 8 x 8 pixels are computed at the reduced size. Images of other
    kinds stay as they are.
    """
    if image.format in ("JPEG", "MPO"):
        is_turned = upright_size(image) != image.size
        image.draft(image.mode, (height, width) if is_turned else (width, height))


def upright(image: Image.Image) -> Image.Image:
    """Load an image and turn it as its EXIF orientation says."""
    # Not ImageOps.exif_transpose: it also rewrites the EXIF data, which fails if an unrelated entry is odd.
    image.load()
    transpose = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return image if transpose is None else image.transpose(transpose)
