"""Hostile and broken image files and file names, and the expected result of each.

``python corpus.py ROOT MAX_PIXELS`` lists and decodes the images in ROOT and prints the results as JSON. It is a
separate process, so a test can end it if it hangs and can measure how much memory it took.
"""

from __future__ import annotations

import io
import json
import os
import resource
import stat
import struct
import sys
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

OK = "ok"
ABSENT = "absent"
MAX_PIXELS = 25_000_000  # the corpus has images of exactly this size
MAX_CPU_S = 60  # for listing and decoding everything, which takes about 2
DATA, OUTSIDE = "data", "outside"  # ROOT, and a folder that only links lead to

UNKNOWN = "not an image of a known kind"
DAMAGED = "cannot be decoded: ."
UNKNOWN_TIFF = "a TIFF of a kind that cannot be read"
SEVERAL = "has 2 (pages|frames) of one size"
TOO_LARGE = r"decodes to \d+ x \d+ pixels, more than --max-pixels"


class Kind(NamedTuple):
    """One file of the corpus.

    Attributes
    ----------
    path
        Path below ROOT; bytes that are not UTF-8 are surrogate escapes.
    expected
        ``OK``, a regular expression that the reason matches, or ``ABSENT`` for files that must not be listed.
    like
        Path of a file that must have the same pixels, or empty.
    """

    name: str
    path: str
    expected: str
    like: str = ""


RANDOM = np.random.default_rng(7)
NOISE = RANDOM.integers(0, 255, (40, 56, 3), np.uint8)
RGB = Image.fromarray(NOISE)
GREY = RGB.convert("L")


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, idat: bytes, depth: int = 8, colour: int = 2, interlace: int = 0) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", idat) + chunk(b"IEND", b"")


def png_with(name: bytes, data: bytes) -> bytes:
    """Encode the usual image with an additional chunk before its pixels."""
    png_data = encoded(RGB, "PNG")
    return png_data[:33] + chunk(name, data) + png_data[33:]


def compressed_rows(row: bytes, count: int) -> bytes:
    """Compress many equal rows by zlib without holding them all in memory."""
    packer = zlib.compressobj(1)
    part = max(1, (1 << 20) // len(row))
    pieces = [packer.compress(row * min(part, count - start)) for start in range(0, count, part)]
    return b"".join([*pieces, packer.flush()])


def interlaced() -> bytes:
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    rows = [b"\0" + row.tobytes() for x, y, right, down in passes for row in NOISE[y::down, x::right]]
    return png(RGB.width, RGB.height, zlib.compress(b"".join(rows)), interlace=1)


def patched(data: bytes, offset: int, layout: str, *values: int) -> bytes:
    """Overwrite some numbers in ``data``."""
    changed = bytearray(data)
    struct.pack_into(layout, changed, offset, *values)
    return bytes(changed)


def tiff(extra: dict[int, tuple[int, int, int]] | None = None, size: int = 0, follow: int = 0) -> bytes:
    """Encode an 8 x 8 grey TIFF; ``extra`` adds or replaces tags (type, count, value)."""
    tags = {256: (4, 1, 8), 257: (4, 1, 8), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1), 277: (3, 1, 1)}
    tags |= {278: (4, 1, 8), 279: (4, 1, 64)}
    tags |= {273: (4, 1, 2000)} | (extra or {})
    entries = b"".join(struct.pack("<HHII", tag, *values) for tag, values in sorted(tags.items()))
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", follow)
    return head.ljust(2000, b"\0") + bytes(range(64)) + b"\0" * size


def exif(*entries: tuple[int, int, int, bytes]) -> bytes:
    """Encode EXIF data from raw entries: tag, type, count and four bytes."""
    packed = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in entries)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + packed + b"\0\0\0\0"


TURNED = (0x0112, 3, 1, b"\x06\0\0\0")  # orientation 6
STORED = {  # what an upright image undergoes before it is stored with this orientation
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


class _Corpus:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.kinds: list[Kind] = []

    def reserve(self, name: str, path: str, expected: str, like: str = "") -> Path:
        """Record a kind and return the path where the caller creates its file."""
        self.kinds.append(Kind(name, path, expected, like))
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        return file

    def add(self, name: str, path: str, data: bytes, expected: str = OK, like: str = "") -> None:
        self.reserve(name, path, expected, like).write_bytes(data)


def make(folder: Path) -> list[Kind]:
    """Write the corpus below ``folder``; its ROOT is ``folder / DATA``."""
    corpus = _Corpus(folder / DATA)
    outside = folder / OUTSIDE
    outside.mkdir(parents=True)
    (outside / "secret.png").write_bytes(encoded(Image.new("RGB", (9, 9), (200, 10, 10)), "PNG"))
    _truncated(corpus)
    _damaged(corpus)
    _bombs(corpus)
    _unusual(corpus)
    _metadata(corpus)
    _names(corpus)
    _special(corpus, outside)
    return corpus.kinds


WHOLE = {
    "png": encoded(RGB, "PNG"),
    "jpg": encoded(RGB, "JPEG", quality=90),
    "bmp": encoded(RGB, "BMP"),
    "tif": encoded(RGB, "TIFF"),
    "webp": encoded(RGB, "WEBP", lossless=True),
}
SIGNATURE = {"png": 8, "jpg": 3, "bmp": 2, "tif": 4, "webp": 12}
HEADER = {"png": 33, "jpg": 20, "bmp": 54, "tif": 8, "webp": 20}


def _truncated(corpus: _Corpus) -> None:
    for suffix, data in WHOLE.items():
        corpus.add(f"whole {suffix}", f"whole/whole.{suffix}", data, like="" if suffix == "jpg" else "whole/whole.png")
        cuts = {
            "nothing": (0, "the file is empty"),
            "one byte": (1, UNKNOWN),
            "the signature": (SIGNATURE[suffix], UNKNOWN),
            "the header": (HEADER[suffix], f"{UNKNOWN}|{DAMAGED}"),
            "a quarter": (len(data) // 4, DAMAGED),
            "half": (len(data) // 2, DAMAGED),
            "all but 100 bytes": (len(data) - 100, DAMAGED),
        }
        for cut, (length, expected) in cuts.items():
            corpus.add(f"{cut} of {suffix}", f"truncated/{suffix}-{length}.{suffix}", data[:length], expected)
        # The end of a PNG does not belong to its pixels.
        ends = (OK, "whole/whole.png") if suffix == "png" else (DAMAGED, "")
        corpus.add(f"all but a byte of {suffix}", f"truncated/{suffix}-end.{suffix}", data[:-1], *ends)


def _damaged(corpus: _Corpus) -> None:
    png_data, jpeg, bmp = WHOLE["png"], WHOLE["jpg"], WHOLE["bmp"]
    inside = png_data.index(b"IDAT")
    frame = jpeg.index(b"\xff\xc0")
    few = zlib.compress(b"\0" * 1000)
    add = corpus.add
    add("zeros", "damaged/zeros.png", b"\0" * 4096, UNKNOWN)
    add("text", "damaged/text.png", b"This is no image.\n" * 20, UNKNOWN)
    add("HTML of a failed download", "damaged/page.jpg", b"<!DOCTYPE html><title>404</title>", UNKNOWN)
    add("random bytes", "damaged/random.jpg", RANDOM.bytes(5000), UNKNOWN)
    add("GIF", "damaged/gif.png", encoded(RGB.convert("P"), "GIF", save_all=True, append_images=[GREY]), UNKNOWN)
    add("JPEG called PNG", "damaged/jpeg.png", jpeg, like="whole/whole.jpg")
    add("CRC of the header", "damaged/header-crc.png", patched(png_data, 29, ">I", 1), UNKNOWN)
    add(
        "CRC of the pixels",
        "damaged/pixel-crc.png",
        patched(png_data, len(png_data) - 16, ">I", 1),
        OK,
        "whole/whole.png",
    )
    add("pixels", "damaged/idat.png", patched(png_data, inside + 2000, ">QQ", 1, 2), DAMAGED)
    add("zlib header", "damaged/zlib.png", patched(png_data, inside + 4, ">H", 0xFFFF), DAMAGED)
    add("no IDAT", "damaged/no-idat.png", png_data[:33] + chunk(b"IEND", b""), DAMAGED)
    add("PNG larger by its header", "damaged/large.png", png(4000, 4000, few), DAMAGED)
    add("PNG of no width", "damaged/no-width.png", png(0, 40, few), UNKNOWN)
    add("JPEG larger by its header", "damaged/large.jpg", patched(jpeg, frame + 5, ">HH", 4000, 4000), OK)
    add("JPEG of no height", "damaged/no-height.jpg", patched(jpeg, frame + 5, ">H", 0), UNKNOWN)
    add("JPEG without tables", "damaged/tables.jpg", jpeg.replace(b"\xff\xdb", b"\xff\xfe"), DAMAGED)
    add("BMP larger by its header", "damaged/large.bmp", patched(bmp, 18, "<II", 4000, 4000), DAMAGED)
    add("BMP of 7 bits", "damaged/depth.bmp", patched(bmp, 28, "<H", 7), DAMAGED)
    add("BMP upside down", "damaged/down.bmp", patched(bmp, 22, "<i", -RGB.height), OK)
    add("TIFF that follows itself", "damaged/cycle.tif", tiff(follow=8), OK)
    add("TIFF with pixels beyond its end", "damaged/beyond.tif", tiff({273: (4, 1, 1 << 30)}), DAMAGED)
    add("TIFF of no height", "damaged/no-height.tif", tiff({257: (4, 1, 0)}), UNKNOWN_TIFF)
    add("TIFF without a width", "damaged/no-width.tif", tiff({256: (2, 1, 0)}), DAMAGED)
    add("TIFF of unknown compression", "damaged/compression.tif", tiff({259: (3, 1, 999)}), UNKNOWN_TIFF)
    tiles = {322: (4, 1, 1 << 20), 323: (4, 1, 1 << 20), 324: (4, 1, 2000), 325: (4, 1, 64), 259: (3, 1, 8)}
    add("TIFF of vast tiles", "damaged/tiles.tif", tiff(tiles), DAMAGED)
    add("WebP of a wrong length", "damaged/length.webp", patched(WHOLE["webp"], 4, "<I", 1 << 31), DAMAGED)


def _bombs(corpus: _Corpus) -> None:
    add = corpus.add
    add(
        "bomb",
        "bombs/bits.png",
        png(30_000, 30_000, compressed_rows(b"\0" * 3751, 30_000), depth=1, colour=0),
        TOO_LARGE,
    )
    jpeg = WHOLE["jpg"]
    frame = jpeg.index(b"\xff\xc0")
    add("JPEG bomb", "bombs/large.jpg", patched(jpeg, frame + 5, ">HH", 65_000, 65_000), TOO_LARGE)
    add("BMP bomb", "bombs/large.bmp", patched(WHOLE["bmp"], 18, "<II", 1 << 20, 1 << 20), TOO_LARGE)
    add("TIFF bomb", "bombs/large.tif", tiff({256: (4, 1, 1 << 20), 257: (4, 1, 1 << 20)}), TOO_LARGE)
    moving = encoded(RGB, "WEBP", save_all=True, append_images=[GREY.convert("RGB")])
    canvas = moving.index(b"VP8X") + 12
    add("WebP bomb", "bombs/large.webp", patched(moving, canvas, "<HBHB", 0x3FFE, 0, 0x3FFE, 0), TOO_LARGE)
    add("PNG with more than its pixels", "bombs/more.png", png(64, 64, compressed_rows(b"\0" * 193, 200_000)), OK)
    bits = zlib.compress(b"\0" * 30_000_000, 1)
    add("zTXt bomb", "bombs/ztxt.png", png_with(b"zTXt", b"Comment\0\0" + bits), "too large")
    add("iTXt bomb", "bombs/itxt.png", png_with(b"iTXt", b"Comment\0\1\0\0\0" + bits), "too large")
    add("colour profile bomb", "bombs/iccp.png", png_with(b"iCCP", b"icc\0\0" + bits), "too large")
    add("long tEXt", "bombs/text.png", png_with(b"tEXt", b"Comment\0" + b"x" * 5_000_000), OK, "whole/whole.png")
    add("many chunks", "bombs/chunks.png", WHOLE["png"][:33] + chunk(b"tEXt", b"a\0b") * 20_000 + WHOLE["png"][33:])
    shared = {1000 + number: (7, 1_000_000, 8) for number in range(500)}
    add("TIFF whose tags share its bytes", "bombs/tags.tif", tiff(shared, size=1_000_000), OK)
    progressive = encoded(Image.new("RGB", (5000, 5000)), "JPEG", progressive=True)
    scan = progressive[progressive.rindex(b"\xff\xda") : -2]
    add(
        "JPEG of many scans",
        "bombs/scans.jpg",
        progressive[:-2] + scan * 20_000 + progressive[-2:],
        "more than 500 scans",
    )
    add("16 bits at the limit", "bombs/grey16.png", png(5000, 5000, compressed_rows(b"\0" * 10_001, 5000), 16, 0), OK)
    add("RGBA at the limit", "bombs/rgba.png", png(5000, 5000, compressed_rows(b"\0" * 20_001, 5000), 8, 6), OK)
    add("above the limit by a column", "bombs/above.png", png(5001, 5000, b"", 8, 2), TOO_LARGE)
    add("wide", "bombs/wide.png", encoded(Image.new("RGB", (30_000, 3), (9, 9, 9)), "PNG"))
    add("tall", "bombs/tall.png", encoded(Image.new("RGB", (3, 30_000), (9, 9, 9)), "PNG"))
    add("one pixel", "bombs/pixel.png", encoded(Image.new("RGB", (1, 1), (9, 9, 9)), "PNG"))


def _unusual(corpus: _Corpus) -> None:
    add = corpus.add
    frames = {"save_all": True, "append_images": [Image.new("RGB", RGB.size)]}
    whole = "whole/whole.png"
    add("animated PNG", "unusual/animated.png", encoded(RGB, "PNG", **frames), SEVERAL)
    add("animated WebP", "unusual/animated.webp", encoded(RGB, "WEBP", lossless=True, **frames), SEVERAL)
    add("TIFF of two pages", "unusual/pages.tif", encoded(RGB, "TIFF", **frames), SEVERAL)
    add("interlaced PNG", "unusual/interlaced.png", interlaced(), like=whole)
    add("progressive JPEG", "unusual/progressive.jpg", encoded(RGB, "JPEG", progressive=True))
    add("CMYK JPEG", "unusual/cmyk.jpg", encoded(RGB.convert("CMYK"), "JPEG"))
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits"):
        data = encoded(RGB, "TIFF", compression=compression)
        add(f"TIFF of {compression}", f"unusual/{compression}.tif", data, like=whole)
    add("fax TIFF", "unusual/fax.tif", encoded(GREY.convert("1"), "TIFF", compression="group4"), like="unusual/one.png")
    add("one bit", "unusual/one.png", encoded(GREY.convert("1"), "PNG"))
    grey = "unusual/grey.png"
    wide = Image.fromarray(np.asarray(GREY).astype(np.uint16) * 257)
    add("grey", grey, encoded(GREY, "PNG"))
    add("16 bit grey PNG", "unusual/grey16.png", encoded(wide, "PNG"), like=grey)
    add("16 bit grey TIFF", "unusual/grey16.tif", encoded(wide, "TIFF"), like=grey)
    add("32 bit grey TIFF", "unusual/grey32.tif", encoded(wide.convert("I"), "TIFF"), like=grey)
    floats = Image.fromarray(np.asarray(GREY).astype(np.float32))
    add("float TIFF", "unusual/float.tif", encoded(floats, "TIFF"), "floating-point")
    opaque = RGB.copy()
    opaque.putalpha(255)
    add("RGBA", "unusual/rgba.png", encoded(opaque, "PNG"), like=whole)
    add("LA", "unusual/la.png", encoded(GREY.convert("LA"), "PNG"), like=grey)
    palette = RGB.quantize(16)
    add("palette", "unusual/palette.png", encoded(palette, "PNG"))
    add("palette with a transparent colour", "unusual/transparent.png", encoded(palette, "PNG", transparency=3))
    add("palette of transparencies", "unusual/alphas.png", encoded(palette, "PNG", transparency=bytes(range(16))))
    add("colour beyond the palette", "unusual/beyond.png", _beyond_palette())
    add("YCbCr TIFF", "unusual/ycbcr.tif", encoded(RGB.convert("YCbCr"), "TIFF"))
    add("Lab TIFF", "unusual/lab.tif", encoded(RGB.convert("LAB"), "TIFF"))
    add("palette BMP", "unusual/palette.bmp", encoded(palette, "BMP"), like="unusual/palette.png")


def _beyond_palette() -> bytes:
    data = png(4, 4, zlib.compress((b"\0" + b"\xff" * 4) * 4), colour=3)
    return data[:33] + chunk(b"PLTE", b"\1\2\3") + data[33:]


def _metadata(corpus: _Corpus) -> None:
    add = corpus.add
    whole = "whole/whole.png"
    for orientation, turn in STORED.items():
        stored = RGB if turn is None else RGB.transpose(turn)
        tag = Image.Exif()
        tag[0x0112] = orientation
        for suffix, kind, options in (("png", "PNG", {}), ("tif", "TIFF", {}), ("webp", "WEBP", {"lossless": True})):
            data = encoded(stored, kind, exif=tag, **options)
            add(f"{kind} of orientation {orientation}", f"metadata/turned{orientation}.{suffix}", data, like=whole)
        data = encoded(stored, "JPEG", exif=tag)
        add(f"JPEG of orientation {orientation}", f"metadata/turned{orientation}.jpg", data)
    sideways = RGB.transpose(Image.Transpose.ROTATE_90)
    broken = {
        "orientation 99": (RGB, exif((0x0112, 3, 1, b"\x63\0\0\0")), OK),
        "orientation in words": (RGB, exif((0x0112, 2, 4, b"abc\0")), OK),
        "a width that is no number": (sideways, exif((0x0100, 2, 4, b"wide"), TURNED), OK),
        "an endless entry": (sideways, exif(TURNED, (0x9000, 2, 0xFFFFFFFF, b"1234")), OK),
        "an entry of unknown type": (sideways, exif(TURNED, (0x9000, 99, 1, b"1234")), OK),
        "itself inside": (sideways, exif(TURNED, (0x8769, 4, 1, b"\x08\0\0\0")), OK),
        "no end": (RGB, exif(TURNED)[:-8], OK),
        "junk": (RGB, b"Exif\0\0" + b"junk" * 20, DAMAGED),
    }
    for number, (name, (image, block, expected)) in enumerate(broken.items()):
        data = encoded(image, "PNG", exif=block)
        add(f"EXIF with {name}", f"metadata/exif{number}.png", data, expected, whole if expected == OK else "")
        add(f"EXIF with {name}, JPEG", f"metadata/exif{number}.jpg", encoded(image, "JPEG", exif=block))
    for suffix, kind, options in (("png", "PNG", {}), ("webp", "WEBP", {"lossless": True}), ("tif", "TIFF", {})):
        data = encoded(RGB, kind, icc_profile=b"no profile" * 9, **options)
        add(f"broken colour profile of {kind}", f"metadata/profile.{suffix}", data, like=whole)
    add("broken colour profile of JPEG", "metadata/profile.jpg", encoded(RGB, "JPEG", icc_profile=b"no profile"))
    add("colour profile that is no zlib", "metadata/iccp.png", png_with(b"iCCP", b"icc\0\0junk"), OK, "whole/whole.png")
    add(
        "broken XMP",
        "metadata/xmp.png",
        png_with(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<x:\xff\xfe"),
        OK,
        "whole/whole.png",
    )


def _names(corpus: _Corpus) -> None:
    data = encoded(RGB, "PNG")
    usual = {
        "newline": "two\nlines.png",
        "tab and return": "a\tb\rc.png",
        "escape sequence": "\x1b[31mred\x07.png",
        "single quote": "it's.png",
        "double quotes": '"quoted".png',
        "backslash": "a\\b.png",
        "spaces": "  a  b .png",
        "only a space": " .png",
        "leading dash": "--help.png",
        "percent sign": "100%.png",
        "encoded zero": "%00.png",
        "encoded way out": "%2e%2e%2f%2e%2e%2foutside%2fsecret.png",
        "hash": "a#b.png",
        "question mark": "a?versionId=1.png",
        "semicolon": "a;rm -rf x.png",
        "glob": "[ab]*.png",
        "dollar": "$(HOME)`id`.png",
        "formula and comma": '=1+1,"a".png',
        "colon": "s3:a.png",
        "ampersand": "a&amp;b.png",
        "HTML": "<script>alert(1)<%2fscript>.png",
        "very long": "n" * 246 + ".png",
        "composed": "caf\u00e9.png",
        "decomposed": "cafe\u0301.png",
        "emoji": "\U0001f600\u200d\U0001f4a5.png",
        "right to left": "\u202egpj.\u05d0\u05d1.png",
        "line separator": "a\u2028b\u0085c.png",
        "byte order mark": "\ufeffa.png",
        "unassigned and private": "\ufffe\ue000\U0010ffff.png",
        "reserved on Windows": "CON.png",
        "two suffixes": "a.tar.png.PNG",
        "not UTF-8": "\udcff\udcfe.png",
        "what such bytes are shown as": "\\xff\\xfe.png",
        "and that one again": "\\\\xff\\\\xfe.png",
        "half UTF-8": "\udcc3.png",
        "without a suffix": "png",
        "suffix of another kind": "image.gif",
        "blank at the end": "image.png ",
        "line break at the end": "image.png\n",
    }
    for name, path in usual.items():
        corpus.add(f"name: {name}", f"names/{path}", data, like="whole/whole.png")
    for path in ("<b>category</b>", "two\nlines", "s3:", "\udcff", "%2e%2e", " ", "-", "folder.png"):
        corpus.add(f"folder {path!a}", f"{path}/image.png", data, like="whole/whole.png")
    unlisted = (
        "..png",
        ".hidden.png",
        ".png",
        "...png",
        "image.png.part",
    )
    for path in unlisted:
        corpus.add(f"unlisted {path!r}", f"names/{path}", data, ABSENT)
    corpus.add("in a hidden folder", "names/.cache/image.png", data, ABSENT)
    corpus.add("in a folder of macOS", "__MACOSX/names/image.png", data, ABSENT)
    corpus.add("not in a category", "image.png", data, ABSENT)


def _special(corpus: _Corpus, outside: Path) -> None:
    reserve = corpus.reserve
    reserve("folder called as a file", "special/folder.png", ABSENT).mkdir()
    corpus.add("file in such a folder", "special/folder.png/image.png", encoded(RGB, "PNG"), like="whole/whole.png")
    reserve("empty folder", "special/empty", ABSENT).mkdir()
    reserve("link to itself", "special/self.png", "cannot be read: .*symbolic links").symlink_to("self.png")
    reserve("link to one that links back", "special/ping.png", "symbolic links").symlink_to("pong.png")
    reserve("and that one", "special/pong.png", "symbolic links").symlink_to("ping.png")
    reserve("link to the folder it is in", "special/loop", ABSENT).symlink_to(".")
    reserve("link to ROOT", "special/root.png", ABSENT).symlink_to("..")
    reserve("link to nowhere", "special/dangling.png", "does not exist").symlink_to("nowhere")
    reserve("link through a file", "special/through.png", "cannot be read").symlink_to("inside.png/x")
    reserve("link inside ROOT", "special/inside.png", OK, "whole/whole.png").symlink_to("../whole/whole.png")
    reserve("link out of ROOT", "special/outside.png", OK).symlink_to(outside / "secret.png")
    reserve("linked folder", "linked", ABSENT).symlink_to(outside)
    corpus.kinds.append(Kind("file of a linked folder", "linked/secret.png", OK, "special/outside.png"))
    reserve("link to a device", "special/zero.png", "not a regular file").symlink_to("/dev/zero")
    os.mkfifo(reserve("named pipe", "special/pipe.png", "not a regular file"))
    os.mknod(reserve("socket", "special/socket.png", "cannot be read|not a regular file"), stat.S_IFSOCK | 0o600)
    if os.geteuid() != 0:  # root may read anything
        corpus.add("forbidden", "special/forbidden.png", encoded(RGB, "PNG"), "permission")
        (corpus.root / "special/forbidden.png").chmod(0)


def examine(root: str, max_pixels: int) -> dict[str, object]:
    """List and decode ROOT; return the result of every row, the files opened, and the growth of the memory peak."""
    from mvad.data.image_size import ImageSize
    from mvad.data.images import decode_batch
    from mvad.data.manifest import read_manifest
    from mvad.options import DataOptions

    def peak_bytes() -> int:
        # Not `resource.getrusage`: its peak starts at that of the parent process.
        return 1024 * int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])

    opened: list[str] = []
    images = read_manifest(root, DataOptions(layout="plain")).table.to_pylist()
    Image.init()  # loads the decoders now, so that their modules are not among the opened files
    peak_before = peak_bytes()

    def record_opened(event: str, values: tuple[object, ...]) -> None:
        if event == "open" and not isinstance(values[0], int):  # a number is a file that is already open
            opened.append(os.fsdecode(values[0]))

    sys.addaudithook(record_opened)
    rows = []
    for row in images:
        batch = decode_batch({"uri": np.array([row["uri"]], object)}, ImageSize.square(64), max_pixels)
        size = {name: batch[name][0].item() for name in ("width", "height")}
        rows.append({**row, **size, "error": batch["error"][0], "pixels": zlib.crc32(batch["pixels"].tobytes())})
    return {"rows": rows, "opened": opened[:], "memory": peak_bytes() - peak_before}


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_CPU_S, MAX_CPU_S))
    json.dump(examine(sys.argv[1], int(sys.argv[2])), sys.stdout, default=str)
