"""The generated data set of large images."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

import mvad
from mvad.data import large_samples
from mvad.data.large_samples import CATEGORIES, Surface, paint_image, write_large_sample
from mvad.data.manifest import read_manifest
from mvad.errors import UsageError
from mvad.options import DataOptions

SIZES = {"plate": (4096, 3072), "board": (4096, 3072), "strip": (8192, 1024)}
DEFECTS = [(category, defect) for category in CATEGORIES for defect in CATEGORIES[category].defects]
BLOCK = 8  # a JPEG file with 4:4:4 colours encodes blocks of this side on their own


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    root = tmp_path_factory.mktemp("large") / "sample"
    assert write_large_sample(str(root), n_train=0, n_test_good=0, n_test_per_defect=1) == 6
    return root


def open_pixels(path):
    return np.asarray(Image.open(path))


def decoded(image):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=92, subsampling="4:4:4")
    return np.asarray(Image.open(buffer))


def touched_blocks(mask):
    rows, columns = (side // BLOCK for side in mask.shape)
    return mask.reshape(rows, BLOCK, columns, BLOCK).any(axis=(1, 3)).repeat(BLOCK, 0).repeat(BLOCK, 1)


def test_layout_and_sizes(large):
    manifest = read_manifest(str(large), DataOptions(layout="mvtec"))
    rows = [row for row in manifest.table.to_pylist() if row["label"] == 1]
    assert {(row["category"], row["defect"]) for row in rows} == set(DEFECTS)
    assert all(row["mask_uri"] for row in rows)
    for category, size in SIZES.items():
        paths = [*large.glob(f"{category}/*/*/*.jpg"), *large.glob(f"{category}/*/*/*.png")]
        assert len(paths) == 4
        assert {Image.open(path).size for path in paths} == {size}


@pytest.mark.parametrize(("category", "defect"), DEFECTS)
def test_a_mask_marks_one_defect_of_10_to_40_pixels_away_from_the_border(large, category, defect):
    mask = open_pixels(large / category / "ground_truth" / defect / "000_mask.png")
    assert set(np.unique(mask)) == {0, 255}
    rows, columns = np.nonzero(mask)
    assert 10 <= max(np.ptp(rows), np.ptp(columns)) + 1 <= 40
    assert 60 <= rows.min() <= rows.max() < mask.shape[0] - 60
    assert 60 <= columns.min() <= columns.max() < mask.shape[1] - 60


@pytest.mark.parametrize(("category", "defect"), [("plate", "scratch"), ("board", "missing_pad"), ("strip", "speck")])
def test_a_defect_changes_its_mask_clearly_and_nothing_else(large, category, defect):
    good, nothing = paint_image(category, f"test/{defect}", 0, with_defect=False)
    assert nothing is None
    good = decoded(good)
    image = open_pixels(large / category / "test" / defect / "000.jpg")
    mask = open_pixels(large / category / "ground_truth" / defect / "000_mask.png") > 0
    np.testing.assert_array_equal(image[~touched_blocks(mask)], good[~touched_blocks(mask)])
    change = np.abs(image[mask].astype(float) - good[mask])
    assert change.mean() > 0.2 * good[mask].mean()


def test_the_serial_number_of_a_plate_is_under_the_white_of_the_ignored_part(large, monkeypatch):
    file = Image.open(large / "plate" / "ignore.png")
    assert (file.mode, file.size) == ("L", SIZES["plate"])
    ignored = np.asarray(file)
    assert set(np.unique(ignored)) == {0, 255}
    ignored = ignored > 0
    rows, columns = np.nonzero(ignored)
    field = (slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1))
    assert ignored[field].all()
    printed = np.asarray(paint_image("plate", "test/good", 0)[0])
    monkeypatch.setitem(CATEGORIES, "plate", dataclasses.replace(CATEGORIES["plate"], print_label=None))
    bare = np.asarray(paint_image("plate", "test/good", 0)[0])
    np.testing.assert_array_equal(printed[~ignored], bare[~ignored])
    changed_rows, changed_columns = np.nonzero((printed != bare).any(axis=2))
    assert rows.min() + 9 <= changed_rows.min() <= changed_rows.max() <= rows.max() - 9
    assert columns.min() + 9 <= changed_columns.min() <= changed_columns.max() <= columns.max() - 9
    assert not (open_pixels(large / "plate" / "ground_truth" / "pit" / "000_mask.png") > 0)[ignored].any()


@pytest.fixture
def printed_modules(monkeypatch):
    """The modules of the code on a blank plate, exactly in its place, as a function of split and index."""
    monkeypatch.setattr(large_samples, "FIELD_JITTER", 0)
    blank = dataclasses.replace(
        CATEGORIES["plate"],
        paint=lambda _: Surface(*[np.full((3072, 4096), large_samples.METAL_SHADE, np.float32)] * 2),
    )
    monkeypatch.setitem(CATEGORIES, "plate", blank)
    side, module = large_samples.CODE_MODULES, large_samples.MODULE
    left, top = (corner + 24 for corner in large_samples.FIELD[:2])

    def modules(split, index):
        image = np.asarray(paint_image("plate", split, index)[0].convert("L"))
        code = image[top : top + side * module, left : left + side * module] < 128
        return code.reshape(side, module, side, module)[:, module // 2, :, module // 2]

    return modules


def test_plates_of_a_lot_differ_in_their_numbers_and_those_to_test_are_of_another_lot(printed_modules):
    lot, number = slice(1, large_samples.LOT_MODULES), slice(large_samples.LOT_MODULES, -1)
    first, second = (printed_modules("train/good", index) for index in (0, 1))
    tested, defective = printed_modules("test/good", 0), printed_modules("test/pit", 0)
    np.testing.assert_array_equal(first[lot], second[lot])
    np.testing.assert_array_equal(tested[lot], defective[lot])
    differing = [
        (one[part, 1:-1] != other[part, 1:-1]).mean()
        for one, other, part in ((first, second, number), (tested, defective, number), (first, tested, lot))
    ]
    assert min(differing) > 0.3  # half of the modules of two random codes differ


@pytest.fixture
def small_strip(monkeypatch):
    """A strip of few pixels, and no other category."""

    def paint(random):
        grey = random.uniform(0.4, 0.6, (256, 256)).astype(np.float32)
        return Surface(grey, bare=grey)

    strip = dataclasses.replace(CATEGORIES["strip"], paint=paint)
    monkeypatch.setattr(large_samples, "CATEGORIES", {"strip": strip})


def test_seed_split_and_index_alone_give_the_pixels(small_strip):
    keys = [
        (split, index, seed)
        for split in ("train/good", "test/good", "test/speck")
        for index in (0, 1)
        for seed in (0, 1)
    ]
    painted = {key: paint_image("strip", *key)[0].tobytes() for key in keys}
    assert len(set(painted.values())) == len(keys)
    for key in reversed(keys):
        assert paint_image("strip", *key)[0].tobytes() == painted[key]


def test_as_many_images_are_written_as_asked_for(small_strip, tmp_path):
    assert write_large_sample(str(tmp_path), seed=5, n_train=3, n_test_good=2, n_test_per_defect=1) == 7
    images = sorted(path.relative_to(tmp_path / "strip").as_posix() for path in tmp_path.glob("strip/t*/*/*"))
    assert images == [
        "test/broken_thread/000.jpg",
        "test/good/000.jpg",
        "test/good/001.jpg",
        "test/speck/000.jpg",
        "train/good/000.jpg",
        "train/good/001.jpg",
        "train/good/002.jpg",
    ]
    expected = paint_image("strip", "train/good", 2, 5)[0]
    np.testing.assert_array_equal(open_pixels(tmp_path / "strip" / "train" / "good" / "002.jpg"), decoded(expected))


def test_the_command_writes_64_images_per_category(small_strip, tmp_path):
    assert mvad.sample(str(tmp_path / "sample"), large=True, quiet=True) == 64


def test_a_folder_with_files_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not empty; give a new folder"):
        write_large_sample(str(tmp_path), n_train=0, n_test_good=0, n_test_per_defect=0)
