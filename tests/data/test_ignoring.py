"""What is ignored of an image never reaches a model."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from mvad.data.image_size import ImageSize
from mvad.data.images import ignored_on_image, ignored_pixels, ignored_share, read_ignore, resize_and_crop
from mvad.data.images.ignoring import FILL, MAX_SIDE, decode_ignore, encode_ignore
from mvad.data.listing import Listing
from mvad.data.manifest import read_manifest
from mvad.errors import UsageError
from mvad.options import DataOptions
from mvad.scoring import ignore_remarks
from mvad.storage import to_uri


@pytest.fixture
def mask():
    image = Image.new("L", (200, 100))
    image.paste(255, (40, 10, 120, 50))
    return image


def test_pixels_under_the_mask_change_nothing(mask):
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (100, 200, 3), np.uint8)
    other = pixels.copy()
    other[10:50, 40:120] = random.integers(0, 256, (40, 80, 3), np.uint8)
    for size in (
        ImageSize.square(64),
        ImageSize(resize=(50, 100), crop=(40, 80)),
        ImageSize(resize=(100, 200), crop=(100, 200)),
    ):
        plain = [resize_and_crop(Image.fromarray(one), size) for one in (pixels, other)]
        assert (plain[0] != plain[1]).any()
        ignoring = replace(size, ignore=encode_ignore(mask))
        blanked = [resize_and_crop(Image.fromarray(one), ignoring) for one in (pixels, other)]
        np.testing.assert_array_equal(*blanked)
    assert (blanked[0][10:50, 40:120] == FILL).all()
    outside = np.ones((100, 200), bool)
    outside[10:50, 40:120] = False
    np.testing.assert_array_equal(blanked[0][outside], pixels[outside])


def test_the_mask_is_stretched_to_images_and_inputs(mask):
    size = ImageSize(resize=(50, 100), crop=(40, 80), ignore=encode_ignore(mask))
    expected = np.zeros((50, 100), bool)
    expected[5:25, 20:60] = True
    np.testing.assert_array_equal(ignored_pixels(size), expected[5:45, 10:90])
    np.testing.assert_array_equal(ignored_on_image(size, 100, 50), expected)
    assert ignored_share(size) == pytest.approx(80 * 40 / (200 * 100))
    assert ignored_pixels(ImageSize.square(8)) is None


def test_large_masks_are_kept_small():
    large = Image.new("L", (4 * MAX_SIDE, MAX_SIDE))
    large.paste(255, (0, 0, MAX_SIDE, MAX_SIDE))
    kept = decode_ignore(encode_ignore(large))
    assert kept.size == (MAX_SIDE, MAX_SIDE // 4)
    assert np.asarray(kept).mean() / 255 == pytest.approx(0.25)


def test_masks_that_cannot_be_used_are_refused(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "black.png")
    Image.new("L", (8, 8), 255).save(tmp_path / "white.png")
    (tmp_path / "broken.png").write_bytes(b"x")
    reasons = {"black": "nothing in it is white", "white": "all of it is white", "broken": "not an image"}
    for name, reason in reasons.items():
        with pytest.raises(UsageError, match=rf"{name}\.png, which says what to ignore, cannot be used: {reason}"):
            read_ignore(to_uri(tmp_path / f"{name}.png"))
    for text in ("", "AAAA", "no base64!"):
        with pytest.raises(ValueError, match="is damaged"):
            decode_ignore(text)


@pytest.mark.parametrize("layout", ["auto", "mvtec", "plain"])
def test_a_mask_beside_a_category_is_no_image(tmp_path, mask, layout):
    for name in ("cap/train/good/0.png", "cap/train/good/1.png", "cap/test/good/0.png", "cap/test/spot/ignore.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (9, 9)).save(path)
    mask.save(tmp_path / "cap/ignore.png")
    mask.save(tmp_path / "ignore.png")
    manifest = read_manifest(str(tmp_path), DataOptions(layout=layout))
    assert manifest.ignore == {"": to_uri(tmp_path / "ignore.png"), "cap": to_uri(tmp_path / "cap/ignore.png")}
    assert manifest.n_images == 4  # ignore.png in a folder of images is an image
    assert not len(manifest.left_out)


def test_a_table_names_the_mask_of_a_category(tmp_path):
    lines = ["uri;category;ignore_uri", "a/1.png;a;masks/a.png", "a/2.png;a;", "a/3.png;a;masks/a.png", "b/1.png;b;"]
    (tmp_path / "images.csv").write_text("\n".join(lines))
    manifest = read_manifest(str(tmp_path / "images.csv"), DataOptions())
    assert manifest.ignore == {"a": to_uri(tmp_path / "masks/a.png")}
    assert "ignore_uri" not in manifest.table.column_names
    (tmp_path / "images.csv").write_text("\n".join([*lines, "a/4.png;a;other.png"]))
    with pytest.raises(UsageError, match=r"row 5: ignore_uri of category 'a' is '.*other\.png', and .*masks/a\.png"):
        read_manifest(str(tmp_path / "images.csv"), DataOptions())


@pytest.mark.parametrize("layout", ["plain", "auto"])
def test_a_listing_knows_the_masks(tmp_path, mask, layout):
    for name in ("cap/0.png", "cap/new/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (9, 9)).save(tmp_path / name)
    mask.save(tmp_path / "cap/ignore.png")
    listing = Listing(str(tmp_path), DataOptions(layout=layout))
    assert (listing.n_images, listing.ignore) == (2, {"cap": to_uri(tmp_path / "cap/ignore.png")})


def test_masks_beside_images_that_are_not_the_models_are_pointed_out(tmp_path, mask):
    mask.save(tmp_path / "mask.png")
    (tmp_path / "broken.png").write_bytes(b"x")
    uri, broken = to_uri(tmp_path / "mask.png"), to_uri(tmp_path / "broken.png")
    plain = SimpleNamespace(size=ImageSize.square(64))
    ignoring = SimpleNamespace(size=replace(ImageSize.square(64), ignore=read_ignore(uri)))
    models = {"plain": plain, "ignoring": ignoring, "broken": ignoring, "none": plain}
    assert ignore_remarks(models, {}) == []
    plain_remark, broken_remark = ignore_remarks(models, {"plain": uri, "ignoring": uri, "broken": broken})
    assert plain_remark.startswith("plain: ")
    assert "nothing is ignored; fit it again" in plain_remark
    assert broken_remark.startswith("broken: ")
    assert "cannot be used" in broken_remark
    assert [text.split(":")[0] for text in ignore_remarks(models, {"": uri})] == ["plain", "none"]
