"""Large JPEG files can be decoded at a part of their size; fit and score then see the same pixels."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import ExifTags, Image, JpegImagePlugin
from scipy.ndimage import gaussian_filter

from mvad.data.image_size import ImageSize, fitting_size
from mvad.data.images import decode_batch, load_pixels
from mvad.errors import ImageError
from mvad.storage import to_uri

EXACT = ImageSize.square(64)
FAST = replace(EXACT, decode="fast")
MAX_PIXELS = 10**7


@pytest.fixture
def drafts(monkeypatch):
    """The sizes that JPEG files are decoded at."""
    sizes, draft = [], JpegImagePlugin.JpegImageFile.draft

    def record(image, mode, size):
        found = draft(image, mode, size)
        sizes.append(image.size)
        return found

    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "draft", record)
    return sizes


def file_of(width, height, *, kind="JPEG", orientation=None, mode="RGB"):
    """A picture that is smooth at the size of the input, as a file."""
    random = np.random.default_rng(width)
    noise = gaussian_filter(random.normal(size=(height, width, 3)), (width / 20, width / 20, 0))
    image = Image.fromarray((128 + 40 * noise / noise.std()).clip(0, 255).astype(np.uint8)).convert(mode)
    exif = image.getexif()
    if orientation:
        exif[ExifTags.Base.Orientation] = orientation
    target = io.BytesIO()
    image.save(target, kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {}))
    return target.getvalue()


@pytest.mark.parametrize(
    ("width", "height", "size", "decoded"),
    [
        (1024, 1024, FAST, (128, 128)),  # an eighth is just twice the input
        (1023, 1023, FAST, (256, 256)),  # it would be less
        (600, 1000, FAST, (150, 250)),
        (255, 1000, FAST, (255, 1000)),
        (2000, 500, replace(fitting_size(64, 4.0), decode="fast"), (500, 125)),
    ],
)
def test_the_sides_are_at_least_twice_those_of_the_input(drafts, width, height, size, decoded):
    pixels, *original = load_pixels(file_of(width, height), size, MAX_PIXELS)
    assert drafts == [decoded]
    assert original == [width, height]
    assert pixels.shape == (size.height, size.width, 3)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_pixels_differ_little_from_those_of_exact_decoding(mode):
    data = file_of(1500, 1100, mode=mode)
    fast, exact = (load_pixels(data, size, MAX_PIXELS)[0].astype(int) for size in (FAST, EXACT))
    difference = np.abs(fast - exact)
    assert 0 < difference.mean() < 1.5
    assert difference.max() < 16


@pytest.mark.parametrize("orientation", range(2, 9))
def test_images_are_turned_upright(drafts, orientation):
    data = file_of(1600, 600, orientation=orientation)
    size = replace(ImageSize(resize=(64, 128), crop=(64, 128)), decode="fast")
    fast, *sides = load_pixels(data, size, MAX_PIXELS)
    exact, *expected = load_pixels(data, replace(size, decode="exact"), MAX_PIXELS)
    assert sides == expected == ([600, 1600] if orientation >= 5 else [1600, 600])
    assert drafts == [(800, 300) if orientation >= 5 else (400, 150)]
    assert np.abs(fast.astype(int) - exact).mean() < 1.5


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "BMP"])
def test_other_kinds_are_decoded_exactly(kind):
    data = file_of(1024, 1024, kind=kind)
    np.testing.assert_array_equal(load_pixels(data, FAST, MAX_PIXELS)[0], load_pixels(data, EXACT, MAX_PIXELS)[0])


def test_a_batch_is_decoded_as_its_images_are(tmp_path):
    (tmp_path / "a.jpg").write_bytes(file_of(1024, 768))
    uri = to_uri(str(tmp_path / "a.jpg"))
    batch = decode_batch({"uri": np.array([uri, uri]), "variant": np.array([0, 7])}, FAST, MAX_PIXELS)
    np.testing.assert_array_equal(
        batch["pixels"][0], load_pixels((tmp_path / "a.jpg").read_bytes(), FAST, MAX_PIXELS)[0]
    )
    assert batch["width"].tolist() == [1024, 1024]
    assert batch["height"].tolist() == [768, 768]


def test_the_limit_of_pixels_is_of_the_image_in_the_file():
    with pytest.raises(ImageError, match=r"decodes to 1024 x 1024 pixels, more than --max-pixels 1000000"):
        load_pixels(file_of(1024, 1024), FAST, 10**6)
