"""Masks beside images: known before a listing ends, compared by their pixels, and their keys are not shown."""

import base64
import io

import pytest
from PIL import Image

from helpers.tiles import tree
from mvad.data import images as pictures
from mvad.data import listing
from mvad.data.images import decode_ignore
from mvad.data.images.ignoring import encode_ignore
from mvad.data.listing import Listing
from mvad.data.manifest import read_manifest
from mvad.data.tables import SCHEMA
from mvad.errors import UsageError
from mvad.options import DataOptions


def mask(columns, side=64):
    image = Image.new("L", (side, side))
    image.paste(255, (0, 0, columns, side))
    return image


def in_base64(image, **options):
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return base64.b64encode(file.getvalue()).decode()


def test_masks_are_known_before_the_listing_ends(tmp_path, monkeypatch):
    def one_by_one(tables, **_):
        yield from ((table, False) for table in tables if len(table))
        yield SCHEMA.empty_table(), True

    monkeypatch.setattr(listing, "in_portions", one_by_one)
    tree(tmp_path, "cap/0.png", "lid/a/0.png", "nut/0.png")
    for name in ("ignore.png", "lid/ignore.png", "nut/ignore.png"):
        mask(4).save(tmp_path / name)
    images = Listing(str(tmp_path), DataOptions(layout="plain"))
    assert not images.ended
    assert images.ignore == read_manifest(str(tmp_path), DataOptions(layout="plain")).ignore
    assert sorted(images.ignore) == ["", "lid", "nut"]


def test_masks_are_compared_by_their_pixels():
    first = encode_ignore(mask(4))
    stored = in_base64(decode_ignore(first).convert("1", dither=Image.Dither.NONE), compress_level=0)
    assert stored != first
    assert pictures.is_same_mask(first, stored)
    assert not pictures.is_same_mask(first, encode_ignore(mask(5)))
    assert not pictures.is_same_mask(first, encode_ignore(mask(2, 32)))  # half the side, the same share
    assert not pictures.is_same_mask(first, None)
    assert pictures.is_same_mask(None, None)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (mask(4), "not black and white"),
        (mask(4).convert("RGB"), "not black and white"),
        (Image.new("1", (8, 8)), "marks nothing, or all"),
        (Image.new("1", (8, 8), 1), "marks nothing, or all"),
    ],
)
def test_a_mask_in_a_model_is_one_that_fitting_writes(image, reason):
    with pytest.raises(ValueError, match=reason):
        decode_ignore(in_base64(image))


def test_keys_in_the_uri_of_a_mask_are_not_shown(tmp_path):
    rows = "x/a,s3://KEY:SECRET@b/m.png\nx/b,s3://KEY:SECRET@b/n.png\n"
    (tmp_path / "t.csv").write_text("uri,ignore_uri\n" + rows)
    with pytest.raises(UsageError, match=r"row 2: ignore_uri of category 'x' is 's3://b/n\.png'") as caught:
        read_manifest(str(tmp_path / "t.csv"), DataOptions())
    assert "SECRET" not in str(caught.value)
