"""Listing and decoding any folder of files ends, for every image, in pixels or in a reason on one line."""

import io
import json
import os
import re
import subprocess
import sys
import tempfile
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from helpers import corpus
from helpers.corpus import ABSENT, MAX_PIXELS, OK, WHOLE
from helpers.wide_samples import pgm, png16, tiff
from mvad.data.image_size import ImageSize
from mvad.data.images import FORMATS, FULL_DEPTH, decode, decode_batch
from mvad.data.layouts import SUFFIXES
from mvad.data.manifest import read_manifest
from mvad.errors import ImageError, UsageError
from mvad.options import DataOptions
from mvad.storage import local_path
from mvad.storage.listing import RUBBISH

SIZE = ImageSize.square(32)
MAX_MEMORY_BYTES = 1_500_000_000
TIMEOUT_S = 300  # for a process that waits; one in an endless loop hits `corpus.MAX_CPU_S`


class Examined(NamedTuple):
    root: Path
    kinds: list[corpus.Kind]
    rows: dict[str, dict]  # by URI
    opened: list[str]  # paths of files
    memory: int  # bytes by which the peak grew


@pytest.fixture(scope="module")
def examined(tmp_path_factory):
    """The corpus, listed and decoded in a separate process."""
    folder = tmp_path_factory.mktemp("corpus")
    kinds = corpus.make(folder)
    root = folder / corpus.DATA
    command = [sys.executable, corpus.__file__, str(root), str(MAX_PIXELS)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert process.returncode == 0, process.stderr
    report = json.loads(process.stdout)
    return Examined(root, kinds, {row["uri"]: row for row in report["rows"]}, report["opened"], report["memory"])


def test_the_listing_has_every_image_and_nothing_else(examined):
    root, kinds, rows, *_ = examined
    assert len(kinds) == len({kind.name for kind in kinds}) > 150
    assert set(rows) == {(root / kind.path).as_uri() for kind in kinds if kind.expected != ABSENT}
    assert len({row["image_id"] for row in rows.values()}) == len(rows)


def test_every_kind_is_pixels_or_the_expected_reason(examined):
    root, kinds, rows, *_ = examined
    row_of = {kind.path: rows.get((root / kind.path).as_uri()) for kind in kinds}
    wrong = []
    for kind in kinds:
        if kind.expected == ABSENT:
            continue
        row = row_of[kind.path]
        if kind.expected == OK:
            is_right = not row["error"] and row["width"] > 0 and row["height"] > 0
        else:
            is_right = re.search(kind.expected, row["error"]) and row["width"] == row["height"] == 0
        if kind.like:
            is_right = is_right and row["pixels"] == row_of[kind.like]["pixels"]
        if not is_right:
            wrong.append((kind.name, kind.expected, row["error"]))
    assert not wrong


def test_reasons_are_one_line(examined):
    for row in examined.rows.values():
        assert row["error"].isprintable()
        assert row["error"] == row["error"].strip()


def test_no_image_takes_more_memory_than_its_pixels_explain(examined):
    assert examined.memory < MAX_MEMORY_BYTES


def test_only_listed_files_are_read_and_only_links_lead_outside(examined):
    read = {path for path in examined.opened if not path.endswith((".py", ".pyc"))}  # a decoder's own modules
    assert read == {os.fsdecode(local_path(uri)) for uri in examined.rows}
    root = examined.root
    inside = os.path.realpath(root) + os.sep
    outside = {os.path.relpath(path, root) for path in read if not os.path.realpath(path).startswith(inside)}
    assert outside == {"special/outside.png", "special/zero.png", "linked/secret.png"}


@pytest.mark.parametrize("suffix", WHOLE)
def test_a_truncated_file_never_gives_other_pixels(suffix):
    data = WHOLE[suffix]
    complete = np.asarray(decode(data, MAX_PIXELS))
    for length in [*range(0, len(data), 41), *range(len(data) - 40, len(data))]:
        try:
            pixels = np.asarray(decode(data[:length], MAX_PIXELS))
        except ImageError as error:
            assert str(error)  # noqa: PT017
        else:
            np.testing.assert_array_equal(pixels, complete)


@pytest.mark.parametrize(
    "uri",
    [
        "file:///a%00b.png",
        "file:///" + "a" * 5000,
        "file:///proc/self/mem",
        "file:///",
        "s3://[x/a.png",
        "ftp://host/a.png",
        "nothing",
        "",
    ],
)
def test_a_uri_without_a_file_has_a_reason(uri):
    (reason,) = decode_batch({"uri": np.array([uri], object)}, SIZE, MAX_PIXELS)["error"]
    assert reason
    assert reason.isprintable()


def test_a_reason_of_several_lines_becomes_one(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(WHOLE["png"])

    def fail(*_, **__):
        raise ValueError("first line\n  and\r\nsecond\n")

    monkeypatch.setattr(Image, "open", fail)
    batch = decode_batch({"uri": np.array([(tmp_path / "a.png").as_uri()], object)}, SIZE, MAX_PIXELS)
    assert batch["error"].tolist() == ["cannot be decoded: first line and second"]


def write(root, *paths):
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def listed(root, **options):
    manifest = read_manifest(os.fspath(root), DataOptions(**options))
    return [row["image_id"] for row in manifest.table.to_pylist()], manifest


def test_folders_may_be_nested_deeper_than_python_recurses(tmp_path):
    root = tmp_path / "deep"
    folder = root
    try:
        for _ in range(1200):
            folder.mkdir()
            folder = folder / "d"
        (folder.parent / "a.png").touch()
        assert listed(root)[0] == ["d/" * 1199 + "a.png"]
    finally:
        subprocess.run(["rm", "-rf", root], check=True)  # pytest's own way recurses


def test_a_category_as_root_may_have_any_name(tmp_path):
    root = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\n")
    write(Path(root), "test/good/a.png")
    _, manifest = listed(root)
    assert manifest.categories == ["\\xff\n"]


def test_odd_masks(tmp_path):
    write(
        tmp_path,
        "c/test/cut/a.png",
        "c/test/cut/a.jpg",
        "c/ground_truth/cut/a_mask.png",
        "c/ground_truth/cut/_mask.png",
    )
    ids, manifest = listed(tmp_path)
    assert ids == ["c/test/cut/a.jpg", "c/test/cut/a.png"]
    assert not manifest.errors
    assert manifest.remarks == {"c": ["1 mask belongs to no image"]}  # the other belongs to two
    assert all(uri.endswith("/a_mask.png") for uri in manifest.table["mask_uri"].to_pylist())


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("candle,train,normal,", "row 2: object or image is empty"),
        (",train,normal,a.png", "row 2: object or image is empty"),
        ("01,train,normal,0.png", "more than once"),
    ],
)
def test_wrong_rows_of_a_visa_split(tmp_path, row, message):
    write(tmp_path, "0.png", "split_csv/1cls.csv")
    lines = ["object,split,label,image", "01,train,normal,0.png"]
    (tmp_path / "split_csv/1cls.csv").write_text("\n".join(lines))
    assert listed(tmp_path)[1].categories == ["01"]
    (tmp_path / "split_csv/1cls.csv").write_text("\n".join([*lines, row]))
    with pytest.raises(UsageError, match=message):
        listed(tmp_path)


def check_decoding(data, bit_depth=FULL_DEPTH):
    """Check that ``data`` is an image of the size in its header, or an error."""
    limit = 100_000
    try:
        image = decode(data, limit, bit_depth=bit_depth, first_page=bit_depth != FULL_DEPTH)
    except ImageError as error:
        assert str(error)  # noqa: PT017
        return
    with Image.open(io.BytesIO(data), formats=FORMATS) as header:
        assert sorted(image.size) == sorted(header.size)  # it may have been rotated
    assert image.mode == "RGB"
    assert 0 < image.width * image.height <= limit
    assert np.asarray(image).shape == (image.height, image.width, 3)


PICTURE = Image.fromarray(np.random.default_rng(3).integers(0, 255, (9, 13, 4), np.uint8))
WIDE_PICTURE = np.asarray(PICTURE).astype(np.uint16) * 4
SEEDS = [
    *(corpus.encoded(PICTURE, kind) for kind in ("PNG", "WEBP", "TIFF", "BMP")),
    *(corpus.encoded(PICTURE.convert("CMYK"), kind) for kind in ("JPEG", "TIFF")),
    *(corpus.encoded(PICTURE.quantize(9), kind) for kind in ("PNG", "BMP", "TIFF")),
    corpus.encoded(PICTURE.convert("RGB"), "JPEG", progressive=True, exif=corpus.exif(corpus.TURNED)),
    corpus.encoded(PICTURE.convert("RGB"), "TIFF", compression="tiff_lzw"),
    corpus.encoded(PICTURE.convert("I;16"), "PNG"),
    corpus.encoded(PICTURE.convert("L"), "JPEG2000"),
    corpus.encoded(PICTURE, "JPEG2000"),
    pgm(WIDE_PICTURE[..., 0], 1023),
    pgm(WIDE_PICTURE[..., :3], 1023),
    png16(WIDE_PICTURE[..., :3], significant_bits=10),
    png16(WIDE_PICTURE),
    *(tiff(WIDE_PICTURE, planar=planar, deflate=deflate) for planar in (0, 1) for deflate in (0, 1)),
    tiff([WIDE_PICTURE[..., 0].astype(np.int16)] * 2, tags={340: ("h", [0]), 341: ("h", [1023])}),
    corpus.encoded(PICTURE, "PNG", save_all=True, append_images=[PICTURE.rotate(180)]),
    corpus.encoded(PICTURE, "WEBP", save_all=True, append_images=[PICTURE.rotate(180)]),
]
BOUNDED = settings(max_examples=200, deadline=timedelta(seconds=10))  # for a busy machine, not for an endless loop


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@BOUNDED
@given(data=st.binary(max_size=300), start=st.sampled_from([b"", *(seed[:20] for seed in SEEDS)]))
def test_arbitrary_bytes_are_an_image_or_an_error(data, start):
    check_decoding(start + data)


@st.composite
def mutated(draw):
    """Change, leave out, repeat or cut off some bytes of an image."""
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 5))):
        start = draw(st.integers(0, 60) | st.integers(0, len(data)))  # most goes wrong in headers
        length = draw(st.integers(0, 4))
        data[start : start + length] = draw(st.binary(max_size=4) | st.just(bytes(data[:length])))
    return bytes(data[: draw(st.just(len(data)) | st.integers(0, len(data)))])


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # where the test itself reads the header
@BOUNDED
@given(data=mutated(), bit_depth=st.sampled_from([FULL_DEPTH, 10]))
def test_a_mutated_image_is_an_image_or_an_error(data, bit_depth):
    check_decoding(data, bit_depth)


NAMES = st.sampled_from(["train", "test", "ground_truth", "good", "ok", "cut", "a", "b", ".b", "__MACOSX", "a.png"]) | (
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=6)
)
STEMS = NAMES | st.sampled_from(["\udcff", "\\xff", "\\\\xff", "\\\udcff", "_mask", "a_mask", "-", "%2e"])
FILES = st.tuples(STEMS, st.sampled_from([*SUFFIXES, ".PNG", ".Tiff", ".txt", "", ".png.gz"])).map("".join)
PATHS = st.lists(NAMES, max_size=4).flatmap(lambda folders: FILES.map(lambda name: "/".join([*folders, name])))
PLACES = {  # of the paths of images that certainly have one, as documented
    "plain": r"[^/]+/.+",
    "mvtec": r"(?:[ab]/)?(?:test/(?!ground_truth)[^/]+|train/(?:good|ok))/(?!.*mask).+",
}


@settings(max_examples=60, deadline=None)
@given(paths=st.lists(PATHS, min_size=1, max_size=8), layout=st.sampled_from(list(PLACES)))
def test_every_image_of_a_tree_is_accounted_for_once(paths, layout):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "root"
        written = set()
        for path in paths:
            names = path.split("/")
            try:
                if not {".", ".."} & set(names):
                    write(root, path)
                    written.add(path)
            except (FileExistsError, NotADirectoryError):
                continue  # one path has a file where another has a folder
        images = {
            (root / path).as_uri(): path
            for path in written
            if path.lower().endswith(SUFFIXES)
            and not any(name.startswith((".", "~$")) or name.casefold() in RUBBISH for name in path.split("/"))
        }
        placed = {uri for uri, path in images.items() if re.fullmatch(PLACES[layout], path, re.DOTALL)}
        try:
            ids, manifest = listed(root, layout=layout)
        except UsageError:
            assert not placed
            return
        table = manifest.table.to_pylist()
        uris = [row["uri"] for row in table]
        seen = uris + manifest.left_out["uri"].to_pylist()
        assert len(set(seen)) == len(seen)
        assert placed <= set(uris) <= set(seen) <= set(images)
        assert all("mask" in images[uri] or "ground_truth/" in images[uri] for uri in set(images) - set(seen))
        assert len(set(ids)) == len(ids)
        assert not any(PurePosixPath(name).is_absolute() or ".." in name.split("/") for name in ids)
        order = [(row["category"], row["split"], row["image_id"]) for row in table]
        assert order == sorted(order)
        for name, uri in zip(ids, uris, strict=True):
            path = os.fsdecode(os.path.relpath(local_path(uri), os.fsencode(root)))
            assert name.count("/") == path.count("/")
            if path.isprintable() and "\\" not in path:
                assert name == path
