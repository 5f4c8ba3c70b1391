"""Decoding image files of every kind, and what becomes of broken ones."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from mvad.data.image_size import ImageSize
from mvad.data.images import decode, decode_batch, load_image, load_mask
from mvad.errors import ImageError
from mvad.storage import to_uri

SIZE = ImageSize(resize=32, crop=32)
GREY = np.arange(0, 240, dtype=np.uint8).reshape(12, 20)
RGB = np.stack([GREY, GREY[::-1], 255 - GREY], axis=2)


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_claiming(width, height):
    """Encode a PNG of a few bytes whose header claims a size."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("kind", "options", "tolerance"),
    [
        ("PNG", {}, 0),
        ("BMP", {}, 0),
        ("TIFF", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("JPEG", {"quality": 100, "subsampling": 0}, 6),
    ],
)
def test_every_kind_gives_the_same_pixels(kind, options, tolerance):
    pixels = np.asarray(decode(encoded(Image.fromarray(RGB), kind, **options), 1000)).astype(int)
    assert np.abs(pixels - RGB).max() <= tolerance


def test_grey_palette_and_one_bit():
    grey = np.asarray(decode(encoded(Image.fromarray(GREY), "PNG"), 1000))
    np.testing.assert_array_equal(grey, np.repeat(GREY[..., None], 3, 2))
    palette = np.asarray(decode(encoded(Image.fromarray(GREY).convert("P"), "PNG"), 1000))
    np.testing.assert_array_equal(palette, np.repeat(GREY[..., None], 3, 2))
    bits = Image.fromarray(GREY > 100)
    assert set(np.unique(np.asarray(decode(encoded(bits, "PNG"), 1000)))) == {0, 255}


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_keeps_its_full_range(kind):
    values = np.array([[0, 257, 25700, 65535]], np.uint16)
    pixels = np.asarray(decode(encoded(Image.fromarray(values), kind), 1000))
    np.testing.assert_array_equal(pixels[0, :, 0], [0, 1, 100, 255])


def test_transparent_parts_are_black_whatever_their_colour():
    pixels = np.full((4, 4, 4), 200, np.uint8)
    pixels[:2, :, 3] = 0
    pixels[2:, :, 3] = 255
    decoded = np.asarray(decode(encoded(Image.fromarray(pixels), "PNG"), 1000))
    assert (decoded[:2] == 0).all()
    assert (decoded[2:] == 200).all()


def test_cmyk():
    image = Image.fromarray(RGB).convert("CMYK")
    pixels = np.asarray(decode(encoded(image, "TIFF"), 1000)).astype(int)
    assert np.abs(pixels - RGB).max() <= 2


def test_exif_rotation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees
    path = tmp_path / "turned.png"
    Image.fromarray(RGB).save(path, exif=exif)
    pixels, width, height = load_image(to_uri(path), SIZE, 1000)
    assert (width, height) == (12, 20)
    upright, _, _ = load_image(to_uri(_saved(tmp_path, np.rot90(RGB, -1))), SIZE, 1000)
    np.testing.assert_array_equal(pixels, upright)


def _saved(folder, pixels):
    path = folder / "upright.png"
    Image.fromarray(np.ascontiguousarray(pixels)).save(path)
    return path


def test_the_first_of_several_frames():
    frames = [Image.new("RGB", (4, 4), (value, 0, 0)) for value in (10, 200)]
    data = encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:])
    assert np.asarray(decode(data, 100))[0, 0, 0] == 10


def test_crop_keeps_the_centre(tmp_path):
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[16:48, 16:48] = 255
    path = tmp_path / "square.png"
    Image.fromarray(pixels).save(path)
    cropped, width, height = load_image(to_uri(path), ImageSize(resize=64, crop=32), 10_000)
    assert (width, height) == (64, 64)
    assert cropped.shape == (32, 32, 3)
    assert (cropped == 255).all()


BROKEN = {
    "empty": (b"", "the file is empty"),
    "text": (b"not an image at all", "not an image of a known kind"),
    "bomb": (png_claiming(60_000, 60_000), r"decodes to 60000 x 60000 pixels, more than --max-pixels 1000000"),
    "truncated": (
        encoded(Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)), "PNG")[:2000],
        "truncated",
    ),
    "half a jpeg": (encoded(Image.fromarray(RGB).resize((200, 200)), "JPEG")[:900], "truncated"),
    "damaged": (png_claiming(20, 20), "cannot be decoded"),
    "floating point": (encoded(Image.fromarray(GREY.astype(np.float32)), "TIFF"), "floating-point"),
    "another kind": (encoded(Image.fromarray(RGB), "GIF"), "not an image of a known kind"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_have_a_reason(name):
    data, reason = BROKEN[name]
    with pytest.raises(ImageError, match=reason):
        decode(data, 1_000_000)


def test_every_truncation_is_an_image_or_a_reason():
    whole = encoded(Image.fromarray(np.random.default_rng(1).integers(0, 255, (40, 40, 3), np.uint8)), "PNG")
    for length in range(0, len(whole), 53):
        with pytest.raises(ImageError):
            decode(whole[:length], 10_000)
    assert decode(whole, 10_000).size == (40, 40)


def test_what_is_not_a_regular_file_has_a_reason(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "gone.png").symlink_to("nowhere")
    (tmp_path / "folder.png").mkdir()
    reasons = {"pipe.png": "not a regular file", "gone.png": "does not exist", "folder.png": "not a regular file"}
    for name, reason in reasons.items():
        with pytest.raises(ImageError, match=reason):
            load_image(to_uri(tmp_path / name), SIZE, 1000)


def test_a_batch_keeps_its_good_images(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"")
    Image.fromarray(RGB).save(tmp_path / "good.png")
    uris = np.array([to_uri(tmp_path / name) for name in ("bad.png", "good.png")], object)
    batch = decode_batch({"uri": uris, "row": np.array([5, 6])}, SIZE, 1000)
    assert batch["error"].tolist() == ["the file is empty", ""]
    assert batch["width"].tolist() == [0, 20]
    assert batch["height"].tolist() == [0, 12]
    assert batch["row"].tolist() == [5, 6]
    assert batch["pixels"][1].any()
    assert not batch["pixels"][0].any()


def test_masks_follow_the_image(tmp_path):
    truth = np.zeros((64, 64), np.uint8)
    truth[20:30, 40:50] = 1  # some data sets mark defects with small numbers
    Image.fromarray(truth).save(tmp_path / "mask.png")
    mask = load_mask(to_uri(tmp_path / "mask.png"), ImageSize(resize=32, crop=24))
    assert mask.shape == (24, 24)
    rows, columns = np.nonzero(mask)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (6, 10, 16, 20)
