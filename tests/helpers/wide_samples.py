"""Image files with samples of more than 8 bits, as cameras and programs write them; Pillow writes few of these."""

import struct
import zlib

import numpy as np


def tiff(
    pages,
    *,
    order="<",
    planar=False,
    deflate=False,
    photometric=None,
    tags=None,
    subfile_types=(),
):
    """Encode a TIFF of one strip per plane; ``tags`` are (type, values) by number, of all pages.

    ``pages`` are arrays (height, width) or (height, width, channels) of any integer or floating-point type.
    """
    pages = [np.asarray(page) for page in (pages if isinstance(pages, list) else [pages])]
    data = bytearray((b"II*\0" if order == "<" else b"MM\0*") + b"\0" * 4)
    link = 4
    for number, page in enumerate(pages):
        height, width = page.shape[:2]
        channels = page.shape[2] if page.ndim == 3 else 1
        kind = {"u": 1, "i": 2, "f": 3}[page.dtype.kind]
        stored = page.astype(page.dtype.newbyteorder(order))
        planes = [stored[..., channel] for channel in range(channels)] if planar else [stored]
        strips = [np.ascontiguousarray(plane).tobytes() for plane in planes]
        strips = [zlib.compress(strip) for strip in strips] if deflate else strips
        offsets = []
        for strip in strips:
            offsets.append(len(data))
            data += strip + b"\0" * (len(strip) % 2)
        entries = {
            254: ("I", [dict(enumerate(subfile_types)).get(number, 0)]),
            256: ("I", [width]),
            257: ("I", [height]),
            258: ("H", [8 * page.dtype.itemsize] * channels),
            259: ("H", [8 if deflate else 1]),
            262: ("H", [photometric if photometric is not None else 1 if channels < 3 else 2]),
            273: ("I", offsets),
            277: ("H", [channels]),
            278: ("I", [height]),
            279: ("I", [len(strip) for strip in strips]),
            284: ("H", [2 if planar else 1]),
            339: ("H", [kind] * channels),
            **({338: ("H", [2])} if channels == 4 else {}),
            **(tags or {}),
        }
        packed = []
        for tag, (type_, values) in sorted(entries.items()):
            values_data = struct.pack(f"{order}{len(values)}{type_}", *values)
            if len(values_data) > 4:
                place = len(data)
                data += values_data
                values_data = struct.pack(f"{order}I", place)
            code = {"H": 3, "I": 4, "f": 11, "d": 12, "h": 8, "i": 9}[type_]
            packed.append(struct.pack(f"{order}HHI", tag, code, len(values)) + values_data.ljust(4, b"\0"))
        struct.pack_into(f"{order}I", data, link, len(data))
        data += struct.pack(f"{order}H", len(packed)) + b"".join(packed)
        link = len(data)
        data += b"\0" * 4
    return bytes(data)


def png16(values, *, significant_bits=None):
    """Encode a 16-bit PNG of (height, width) grey, or of 2 to 4 channels; the chunk sBIT is optional."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = values.shape[:2]
    channels = values.shape[2] if values.ndim == 3 else 1
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0))]
    if significant_bits:
        parts.append(chunk(b"sBIT", bytes([significant_bits] * channels)))
    parts += [chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def pgm(values, largest):
    """Encode a binary PGM or PPM with this largest value."""
    height, width = values.shape[:2]
    kind = "u1" if largest < 256 else ">u2"
    return (
        f"P{5 if values.ndim == 2 else 6}\n# camera\n{width} {height}\n{largest}\n".encode()
        + values.astype(kind).tobytes()
    )
