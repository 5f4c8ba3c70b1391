"""Decoding image files of every kind, and what becomes of broken ones."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from helpers.wide_samples import pgm, png16, tiff
from mvad.data.image_size import ImageSize
from mvad.data.images import MaskRemarks, decode, decode_batch, largest_value, load_image, load_mask, read_mask
from mvad.data.images.masks import Mask
from mvad.errors import ImageError
from mvad.storage import to_uri

SIZE = ImageSize.square(32)
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


def test_crop_keeps_the_centre(tmp_path):
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[16:48, 16:48] = 255
    path = tmp_path / "square.png"
    Image.fromarray(pixels).save(path)
    cropped, width, height = load_image(to_uri(path), ImageSize.square(64, 32), 10_000)
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
    mask = load_mask(to_uri(tmp_path / "mask.png"), 128, 32)
    assert mask.pixels.shape == (32, 128)
    rows, columns = np.nonzero(mask.pixels)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (10, 14, 80, 99)


RANDOM = np.random.default_rng(5)
LEVELS = RANDOM.integers(0, 4096, (9, 13)).astype(np.uint16)  # of a 12-bit camera
LEVELS[0, :2] = 0, 4095
CHANNELS = np.dstack([LEVELS, LEVELS[::-1], 4095 - LEVELS])
TRUE_GREY = LEVELS / 4095 * 255


def assert_pixels(data, levels, **options):
    """Check that a file decodes to levels, (height, width[, 3]) from 0 to 255, but for rounding."""
    pixels = np.asarray(decode(data, 10_000, **options)).astype(float)
    levels = levels if levels.ndim == 3 else levels[..., None]
    assert np.abs(pixels - levels).max() <= 0.51


WIDE = {
    "PNG": png16(LEVELS),
    "PNG RGB": png16(CHANNELS),
    "PNG RGBA": png16(np.dstack([CHANNELS, np.full_like(LEVELS, 65535)])),
    "TIFF": tiff(LEVELS),
    "TIFF big-endian": tiff(LEVELS, order=">"),
    "TIFF compressed": tiff(LEVELS, deflate=True),
    "TIFF signed": tiff(LEVELS.astype(np.int16)),
    "TIFF signed big-endian": tiff(LEVELS.astype(np.int16), order=">"),
    "TIFF 32 bits": tiff(LEVELS.astype(np.int32)),
    "TIFF 32 bits unsigned": tiff(LEVELS.astype(np.uint32), deflate=True),
    "TIFF white is zero": tiff(4095 - LEVELS, photometric=0),
    **{
        f"TIFF RGB {order}{' planar' * planar}{' compressed' * deflate}": tiff(
            CHANNELS, order=order, planar=planar, deflate=deflate
        )
        for order, planar, deflate in [("<", 0, 0), (">", 0, 0), ("<", 0, 1), (">", 0, 1), ("<", 1, 0), (">", 1, 0)]
    },
}


@pytest.mark.parametrize("name", WIDE)
def test_twelve_bits_in_sixteen_keep_their_grey_levels(name):
    expected = CHANNELS / 4095 * 255 if "RGB" in name else TRUE_GREY
    assert_pixels(WIDE[name], expected, bit_depth=12)
    assert largest_value(WIDE[name], 10_000) == 4095


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_all_sixteen_bits_of_rgb(order, deflate, planar):
    values = RANDOM.integers(0, 65536, (9, 13, 3)).astype(np.uint16)
    data = tiff(values, order=order, planar=planar, deflate=deflate)
    np.testing.assert_array_equal(np.asarray(decode(data, 10_000)), values >> 8)


SIGNED = LEVELS.astype(np.int16) - 2000
UNIT = (LEVELS / 4095).astype(np.float32)
STATED = {
    "SMaxSampleValue of signed": tiff(SIGNED, tags={340: ("h", [-2000]), 341: ("h", [2095])}),
    "SMaxSampleValue of floats": tiff(UNIT, tags={340: ("f", [0]), 341: ("f", [1])}),
    "SMaxSampleValue of 32 bits": tiff(
        LEVELS.astype(np.uint32) << 20, tags={340: ("I", [0]), 341: ("I", [4095 << 20])}
    ),
    "MaxSampleValue": tiff(LEVELS, tags={281: ("H", [4095])}),
    "sBIT of values as they are": png16(LEVELS, significant_bits=12),
    "sBIT of values spread over 16 bits": png16(LEVELS << 4 | LEVELS >> 8, significant_bits=12),
    "sBIT of values shifted": png16(LEVELS << 4, significant_bits=12),
    "PGM": pgm(LEVELS, 4095),
    "JPEG 2000": encoded(Image.fromarray(LEVELS << 4), "JPEG2000", irreversible=False),
}


@pytest.mark.parametrize("bit_depth", [16, 14])
@pytest.mark.parametrize("name", STATED)
def test_the_range_that_a_file_states_is_its_own(name, bit_depth):
    """The depth of the category does not matter, and it is not measured on such files."""
    pixels = np.asarray(decode(STATED[name], 10_000, bit_depth=bit_depth))[..., 0]
    assert np.abs(pixels - TRUE_GREY).max() <= 1
    assert largest_value(STATED[name], 10_000) == 0


def test_stated_ranges_of_colours():
    expected = CHANNELS / 4095 * 255
    assert_pixels(pgm(CHANNELS, 4095), expected)
    assert_pixels(pgm((CHANNELS >> 5).astype(np.uint8), 127), (CHANNELS >> 5) / 127 * 255)
    assert_pixels(png16(CHANNELS, significant_bits=12), expected)
    assert_pixels(tiff(CHANNELS, tags={281: ("H", [4095] * 3)}), expected)


def test_the_largest_value_of_an_image_is_no_range():
    """Some programs write an image's own maximum; it must not scale that image."""
    assert_pixels(tiff(LEVELS // 2, tags={281: ("H", [int(LEVELS.max() // 2) - 1])}), LEVELS // 2 / 257)
    assert_pixels(tiff(LEVELS), LEVELS / 257)  # models of earlier versions were fitted to this


REFUSED = {
    "values above the bit depth": (png16(LEVELS << 4), r"up to 65,520, but its category was fitted to 12-bit images"),
    "RGB above the bit depth": (png16(CHANNELS << 2), r"up to 16,380, but its category was fitted to 12-bit"),
    "negative values": (tiff(SIGNED), r"from -2,000 to 2,095, which 16 bits do not hold.*SMaxSampleValue"),
    "large values": (tiff(LEVELS.astype(np.uint32) << 20), r"to 4,293,918,720, which 16 bits do not hold"),
    "large signed values": (tiff(LEVELS.astype(np.int32) << 12), r"which 16 bits do not hold"),
    "floats": (tiff(UNIT), r"floating-point pixels.*SMaxSampleValue"),
    "floats outside": (tiff(2 * UNIT, tags={340: ("f", [0]), 341: ("f", [1])}), "from 0 to 2, but the file states"),
    "not a number": (tiff(UNIT * np.nan, tags={340: ("f", [0]), 341: ("f", [1])}), "nan"),
    "doubles": (tiff(UNIT.astype(float)), "TIFF of a kind that cannot be read; save it"),
    "half floats": (tiff(UNIT.astype(np.float16)), "TIFF of a kind that cannot be read"),
    "float RGB": (tiff(np.dstack([UNIT] * 3)), "TIFF of a kind that cannot be read"),
    "64 bits": (tiff(LEVELS.astype(np.uint64)), "TIFF of a kind that cannot be read"),
    "signed bytes": (tiff((LEVELS >> 5).astype(np.int8)), "signed 8-bit pixels"),
    "compressed planes": (tiff(CHANNELS, planar=True, deflate=True), "save it as 16-bit RGB"),
    "grey with transparency": (png16(np.dstack([LEVELS, LEVELS])), "save it as 16-bit RGB"),
    "PGM above its header": (pgm(LEVELS, 4000), "to 4,095, but the file states a range from 0 to 4,000"),
    "half a PGM": (pgm(LEVELS, 4095)[:-20], "truncated"),
    "a long PGM of text": (b"P2\n3000 3000\n255\n" + b"1 " * 100, "written as text"),
    "a JPEG 2000 bomb": (encoded(Image.new("L", (200, 200)), "JPEG2000"), "more than --max-pixels"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_decoded_right_has_a_reason(name):
    data, reason = REFUSED[name]
    with pytest.raises(ImageError, match=reason):
        decode(data, 10_000 if "text" not in name else 10_000_000, bit_depth=12)


def test_a_depth_that_is_not_known_is_asked_for():
    with pytest.raises(ImageError, match="depends on its category"):
        decode(png16(LEVELS), 10_000, bit_depth=None)
    assert_pixels(encoded(Image.fromarray(GREY), "PNG"), GREY.astype(float), bit_depth=None)


def test_a_batch_is_decoded_by_the_depth_of_its_categories(tmp_path):
    uris = []
    for name, depth in (("a", 12), ("b", 10), ("c", 16)):
        (tmp_path / f"{name}.png").write_bytes(png16(np.full((4, 4), (1 << depth) - 1, np.uint16)))
        uris.append(to_uri(tmp_path / f"{name}.png"))
    batch = {"uri": np.array(uris * 2, object), "category": np.array(["a", "b", "c", "c", "a", "b"], object)}
    decoded = decode_batch(batch, SIZE, 1000, bit_depths={"a": 12, "b": 10})
    assert decoded["pixels"][:, 0, 0, 0].tolist() == [255, 255, 255, 16, 64, 0]
    assert [bool(error) for error in decoded["error"]] == [False] * 5 + [True]


SMALL = GREY[::2, ::2]
PAGES = {
    "two pages": ([GREY, GREY[::-1]], (), 2),
    "three pages and a thumbnail": ([GREY, GREY, SMALL, GREY], (0, 0, 1, 0), 3),
    "a thumbnail behind": ([GREY, SMALL], (0, 1), 1),
    "a thumbnail in front": ([SMALL, GREY], (1, 0), 1),
    "a pyramid": ([GREY, SMALL, SMALL[::2, ::2]], (), 1),
    "a transparency mask": ([GREY, GREY], (0, 4), 1),
}


@pytest.mark.parametrize("name", PAGES)
def test_pages_of_one_size_are_refused_and_thumbnails_are_not(name):
    pages, subfile_types, count = PAGES[name]
    data = tiff(pages, subfile_types=subfile_types)
    if count == 1:
        assert_pixels(data, GREY.astype(float))
    else:
        with pytest.raises(ImageError, match=rf"has {count} pages of one size.*--pages first"):
            decode(data, 1000)
    assert_pixels(data, GREY.astype(float), first_page=True)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_several_frames_are_refused_unless_the_first_is_asked_for(kind):
    frames = [Image.new("RGB", (4, 4), (value, 0, 0)) for value in (10, 200)]
    data = encoded(
        frames[0], kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {})
    )
    with pytest.raises(ImageError, match=r"has 2 (pages|frames) of one size"):
        decode(data, 100)
    assert np.asarray(decode(data, 100, first_page=True))[0, 0, 0] == 10


def test_the_preview_of_a_jpeg_is_no_page():
    image = Image.fromarray(RGB)
    data = encoded(image, "MPO", save_all=True, append_images=[image.resize((10, 6))])
    assert decode(data, 1000).size == image.size


def test_many_pages_end():
    data = tiff([GREY] * 150)
    assert_pixels(data, GREY.astype(float), first_page=True)
    with pytest.raises(ImageError, match="more than 100 pages"):
        decode(data, 1000)


TRUTH = np.zeros((64, 64), bool)
TRUTH[20:30, 40:50] = TRUTH[50:60, 5:25] = True
INK = TRUTH.astype(np.uint8)


def rgba(colour, alpha):
    return Image.fromarray(np.dstack([colour] * 3 + [alpha]).astype(np.uint8))


def palette(values, *colours):
    image = Image.fromarray(values).convert("P")
    image.putpalette([channel for colour in colours for channel in colour] + [0] * (768 - 3 * len(colours)))
    return image


def png(image):
    return encoded(image if isinstance(image, Image.Image) else Image.fromarray(image), "PNG")


MASKS = {
    "0 and 255": png(INK * 255),
    "0 and 1": png(INK),
    "0 and 247": png(INK * 247),
    "labels": png(INK * np.arange(1, 65, dtype=np.uint8)),
    "16-bit labels": png16(TRUTH * np.arange(1, 65).astype(np.uint16) * 5),
    "16-bit ones": png16(TRUTH.astype(np.uint16)),
    "16-bit labels in a TIFF": tiff(TRUTH.astype(np.uint16) * 3),
    "one bit": png(Image.fromarray(TRUTH)),
    "one bit, TIFF": encoded(Image.fromarray(TRUTH), "TIFF"),
    "dark grey as good": png(np.where(TRUTH, 255, 4).astype(np.uint8)),
    "noisy grey as good": png(np.where(TRUTH, 250, 1 + np.arange(64) % 9).astype(np.uint8)),
    "floats": tiff(TRUTH.astype(np.float32)),
    "signed": tiff(TRUTH.astype(np.int32)),
    "a dark colour": png(np.dstack([INK * 0, INK * 0, INK * 2])),
    "white on transparent": png(rgba(INK * 255, INK * 255)),
    "black on transparent": png(rgba(INK * 0, INK * 255)),
    "white on black, opaque": png(rgba(INK * 255, INK * 0 + 255)),
    "white on half transparent": png(rgba(INK * 255, INK * 100)),
    "palette": png(palette(INK, (0, 0, 0), (128, 0, 0))),
    "palette without colours": png(palette(INK, (0, 0, 0), (0, 0, 0))),
    "palette whose first colour is the defect's": png(palette(1 - INK, (255, 255, 255), (0, 0, 0))),
    "BMP": encoded(Image.fromarray(INK * 255), "BMP"),
    "PGM": pgm(INK, 1),
    "lossless WebP": encoded(Image.fromarray(INK * 255).convert("RGB"), "WEBP", lossless=True),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_mean_the_same_whoever_wrote_them(name, tmp_path):
    (tmp_path / "mask").write_bytes(MASKS[name])
    mask = read_mask(to_uri(tmp_path / "mask"))
    assert mask.mode == "L"
    np.testing.assert_array_equal(np.asarray(mask), INK * 255)


@pytest.mark.parametrize(("kind", "quality"), [("JPEG", 75), ("JPEG", 30), ("WEBP", 50), ("TIFF", 50)])
@pytest.mark.parametrize("white", [255, 160])
def test_lossy_masks_mark_what_they_should(kind, quality, white, tmp_path):
    options = {"quality": quality} | ({"compression": "jpeg"} if kind == "TIFF" else {})
    (tmp_path / "mask").write_bytes(encoded(Image.fromarray(INK * np.uint8(white)), kind, **options))
    marked = np.asarray(read_mask(to_uri(tmp_path / "mask"))) > 0
    assert (marked != TRUTH).sum() <= 0.05 * TRUTH.sum()


def test_an_empty_mask_is_empty_and_a_full_one_full(tmp_path):
    for value, images in {
        0: [Image.new("L", (8, 8)), Image.new("RGBA", (8, 8), (0, 0, 0, 255)), Image.new("RGBA", (8, 8), (9, 9, 9, 0))],
        255: [Image.new("L", (8, 8), 7), Image.new("RGBA", (8, 8), (9, 9, 9, 255))],
    }.items():
        for image in images:
            image.save(tmp_path / "mask.png")
            assert set(read_mask(to_uri(tmp_path / "mask.png")).tobytes()) == {value}


def test_a_mask_of_several_pages_has_a_reason(tmp_path):
    (tmp_path / "mask.tif").write_bytes(tiff([INK, INK * 0]))
    with pytest.raises(ImageError, match="2 pages"):
        load_mask(to_uri(tmp_path / "mask.tif"), 20, 12)


@pytest.mark.parametrize("shape", [(64, 64), (128, 128), (300, 500), (20, 20)])
def test_masks_of_ordinary_defects_are_the_nearest_pixels(shape, tmp_path):
    mask = Image.fromarray(INK * 255).resize(shape[::-1], Image.Resampling.NEAREST)
    mask.save(tmp_path / "mask.png")
    loaded = load_mask(to_uri(tmp_path / "mask.png"), 40, 32)
    nearest = np.asarray(mask.resize((40, 32), Image.Resampling.NEAREST)) > 0
    np.testing.assert_array_equal(loaded.pixels, nearest)
    assert (loaded.width, loaded.height) == shape[::-1]
    assert loaded.share == pytest.approx(TRUTH.mean(), rel=0.2)


def test_small_defects_do_not_vanish(tmp_path):
    """Each speck and thin scratch keeps a pixel at its place, and a large defect stays as it is."""
    from scipy.ndimage import label

    truth = np.zeros((1500, 1000), np.uint8)
    specks = [(20, 30), (701, 333), (1499, 999), (0, 500), (911, 77)]
    for y, x in specks:
        truth[y : y + 6, x : x + 6] = 255
    truth[300, 100:900] = 255  # a scratch of one row, between the rows that are sampled
    truth[1100:1300, 600:800] = 255
    Image.fromarray(truth).save(tmp_path / "mask.png")
    pixels = load_mask(to_uri(tmp_path / "mask.png"), 64, 64).pixels
    for y, x in specks:
        assert pixels[int((y + 0.5) * 64 / 1500), int((x + 0.5) * 64 / 1000)]
    assert pixels[int(300.5 * 64 / 1500), 7:57].all()
    assert label(pixels, np.ones((3, 3)))[1] == label(truth, np.ones((3, 3)))[1] == 7
    nearest = np.asarray(Image.fromarray(truth).resize((64, 64), Image.Resampling.NEAREST)) > 0
    np.testing.assert_array_equal(pixels[46:56, 38:52], nearest[46:56, 38:52])


def test_remarks_about_the_masks_of_a_category():
    remarks = MaskRemarks()
    assert remarks.sentences() == []
    for share in (0.9, 0.8, 0.1, 0.0):
        remarks.add(Mask(np.zeros((4, 4), bool), 20, 10, share), 40, 20)
    assert remarks.sentences() == ["1 of 4 masks of defective images mark nothing"]
    remarks.add(Mask(np.zeros((4, 4), bool), 10, 10, 0.99), 40, 20)
    remarks.add_unusable("file:///masks/a.png", ImageError("the file is empty"))
    without, inverted, empty, shape = remarks.sentences()
    assert without == "pixel metrics without 1 mask that cannot be used: /masks/a.png: the file is empty"
    assert inverted == "3 of 5 masks mark most of the image: are they inverted? Black must be good"
    assert empty.startswith("1 of 5")
    assert shape == "1 of 5 masks have another aspect ratio than their image"
