"""Memory of images that are decoded at the same time: one limit for the whole process."""

import ctypes
import io
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from PIL import Image

from mvad.data.images import FORMATS
from mvad.errors import ImageError
from mvad.html.thumbnails import fit_within
from mvad.process import without_warnings

# Peaks of `data.images.decode` with all its copies, in bytes per pixel; tests measure them.
PLAIN_FORMATS, PLAIN_MODES, PLAIN_BYTES = ("PNG", "JPEG", "BMP", "TIFF"), ("1", "L", "P", "RGB", "CMYK", "YCbCr"), 12
MAX_BYTES = 24  # 16-bit, transparent and WebP images
DECODED_BYTES, PICTURE_BYTES = 4, 40  # an RGB image in memory; the peak of drawing a picture or a map
FILE_COPIES = 3
MAX_SIDE_PIXELS = 2048  # larger images, and their maps, are shown smaller
M_MMAP_THRESHOLD, MAPPED_BYTES = -3, 1 << 20  # a parameter of glibc's malloc, and its value


class ImageMemory:
    """Lets images be decoded as long as they need at most ``limit`` bytes together; the others wait in their order.

    It is for threads.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def reserve(self, n_bytes: int) -> Iterator[None]:
        """Wait until there are ``n_bytes`` bytes, and keep them; ImageError if there are never so many."""
        if n_bytes > self.limit:
            needed, limit = (f"{size / 2**20:,.0f} MiB" for size in (n_bytes, self.limit))
            raise ImageError(f"decoding it takes {needed} of memory, more than --image-memory allows ({limit})")
        ticket = object()
        with self._changed:
            self._waiting.append(ticket)
            self._changed.wait_for(lambda: self._waiting[0] is ticket and self.used + n_bytes <= self.limit)
            self._waiting.popleft()
            self.used += n_bytes
            self._changed.notify_all()  # there may be enough for the next one, too
        try:
            yield
        finally:
            with self._changed:
                self.used -= n_bytes
                self._changed.notify_all()


def image_bytes(data: bytes, max_pixels: int, is_shown: bool) -> int:
    """Bytes of memory that decoding a file, and drawing a picture of it if it is shown, take at most, by its header.

    0 if `decode` will not decode it.
    """
    try:
        Image.MAX_IMAGE_PIXELS = None  # the limit is the parameter's
        with without_warnings(), Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            plain = image.format in PLAIN_FORMATS and image.mode in PLAIN_MODES and not image.has_transparency_data
    except Exception:  # decoders raise nearly anything on damaged data
        return 0
    if width * height > max_pixels:
        return 0
    decoding = width * height * (PLAIN_BYTES if plain else MAX_BYTES)
    drawing = width * height * DECODED_BYTES + picture_bytes(width, height) if is_shown else 0
    return max(decoding, drawing) + FILE_COPIES * len(data)


def picture_bytes(width: int, height: int) -> int:
    """Bytes of memory that drawing a picture or a map of an image of this size takes at most."""
    shown_width, shown_height = fit_within(width, height, MAX_SIDE_PIXELS)
    return shown_width * shown_height * PICTURE_BYTES


def give_back_freed_memory() -> None:
    """From now on, let this process give the memory of images back to the system as soon as they are dropped.

    The C library of Linux would keep it, in each thread, for the next image.
    """
    with suppress(OSError, TypeError, AttributeError):  # other systems have no such function
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES)
