"""Trees as people and published data sets have them: each image has its place, or a reason why it has none."""

import errno
import json
import os
from typing import get_args

import numpy as np
import pytest
from PIL import Image

import mvad
from helpers.tiles import paint, tree
from mvad import results, storage
from mvad.data import layouts
from mvad.data.description import MAX_LINES, Tally, describe_left_out, describe_others
from mvad.data.images import read_mask
from mvad.data.layouts import LABELLED, files, kolektor
from mvad.data.layouts.contents import seeded_split
from mvad.data.listing import Listing
from mvad.data.manifest import read_manifest
from mvad.data.names import meaning
from mvad.errors import ImageError, UsageError
from mvad.options import DataOptions, FitOptions, Layout, NightlyOptions, RunOptions, ScoreOptions
from mvad.results.run_record import Run
from mvad.results.store import read_errors, read_status
from mvad.storage import to_uri
from mvad.storage.listing import RUBBISH


def read(root, *, to_learn=True, **options):
    return read_manifest(str(root), DataOptions(**options), to_learn=to_learn)


def described(root, **options):
    manifest = read(root, **options)
    return list(manifest.tally.lines(manifest.remarks))


def columns(manifest):
    return {row["image_id"]: (row["split"], row["label"], row["defect"]) for row in manifest.table.to_pylist()}


def masks_of(manifest):
    rows = [row for row in manifest.table.to_pylist() if row["mask_uri"]]
    return {row["image_id"]: row["mask_uri"].removeprefix(manifest.root + "/") for row in rows}


def numbered(folder, count):
    return [f"{folder}/{number:03}.png" for number in range(count)]


def write_image(path, *, marked=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("L", (8, 8))
    if marked:
        image.putpixel((2, 3), 255)
    image.save(path)


@pytest.mark.parametrize("name", ["good", "Good", "OK", "ok", "Normal", "PASS", "passed", "non-defective", "i.O."])
@pytest.mark.parametrize("train", ["train", "Train", "TRAINING"])
def test_good_images_have_the_names_people_give_them(tmp_path, name, train):
    tree(tmp_path, *numbered(f"cap/{train}/{name}", 3), *numbered(f"cap/Test/{name}", 2), *numbered("cap/Test/dent", 1))
    assert described(tmp_path) == ["cap: 3 good to learn from; test 2 good, 1 defective (dent 1)"]


@pytest.mark.parametrize("name", ["NG", "bad", "Defective", "anomaly", "FAIL", "nok", "n.i.O.", "abnormal", "not-ok"])
def test_good_and_defective_images_side_by_side_are_split_by_a_seed(tmp_path, name):
    tree(tmp_path, *numbered("cap/OK", 10), *numbered(f"cap/{name}", 3))
    manifest = read(tmp_path)
    (line,) = manifest.tally.lines(manifest.remarks)
    start = f"cap: 8 good to learn from; test 2 good, 3 defective ({name} 3)"
    assert line == f"{start}; a seeded split: 80 % of the good images to learn from"
    # The category as ROOT, and its images copied elsewhere, are split alike.
    as_root = {f"cap/{name}": row for name, row in columns(read(tmp_path / "cap")).items()}
    assert as_root == columns(manifest)


def test_a_seeded_split_keeps_groups_together_and_leaves_some_for_the_test():
    names = [f"{group}/{number}" for group in "abcde" for number in range(4)]
    chosen = seeded_split(names, lambda name: name[0])
    assert len(chosen) == 16
    assert {name[0] for name in chosen}.isdisjoint(name[0] for name in names if name not in chosen)
    assert seeded_split(reversed(names), lambda name: name[0]) == chosen
    assert [len(seeded_split(map(str, range(n)))) for n in (0, 1, 2, 3, 10)] == [0, 1, 1, 2, 8]


@pytest.mark.parametrize(
    ("folders", "train", "test"),
    [
        (("OK", "OK_test", "NG"), {"OK"}, {"OK_test"}),
        (("OK_train", "OK", "NG"), {"OK_train"}, {"OK"}),
        (("train-good", "test-good", "test-bad"), {"train-good"}, {"test-good"}),
        (("OK/train", "OK/test", "NG"), {"OK/train"}, {"OK/test"}),
        (("train/ok", "test_ok", "test_ng"), {"train/ok"}, {"test_ok"}),
    ],
)
def test_folders_that_say_split_and_label_at_once_need_no_seed(tmp_path, folders, train, test):
    tree(tmp_path, *(path for folder in folders for path in numbered(f"cap/{folder}", 5)))
    manifest = read(tmp_path)
    assert not manifest.remarks
    assert not manifest.errors
    found = {"train": set(), "test": set()}
    for image_id, (split, label, _) in columns(manifest).items():
        if label == 0:
            found[split].add(image_id.removeprefix("cap/").rpartition("/")[0])
    assert found == {"train": train, "test": test}


def test_the_label_of_images_directly_in_the_test_folder_is_unknown(tmp_path):
    tree(tmp_path, *numbered("cap/train", 3), *numbered("cap/test", 4), *numbered("cap/test/NG", 2))
    assert described(tmp_path) == ["cap: 3 good to learn from; test 2 defective (NG 2), 4 unlabelled"]


def test_the_kind_of_a_defect_is_the_first_folder_that_names_one(tmp_path):
    paths = ("crack/a.png", "crack/big/b.png", "NG/dent/c.png", "NG/d.png", "good/shift 1/e.png")
    tree(tmp_path, "cap/train/good/0.png", *(f"cap/test/{path}" for path in paths))
    tree(tmp_path, "cap/ground_truth/crack/big/b_mask.png", "cap/ground_truth/NG/dent/c.png")
    manifest = read(tmp_path)
    defects = {image_id.removeprefix("cap/test/"): row[2] for image_id, row in columns(manifest).items()}
    assert {name: defects[name] for name in paths} == dict(
        zip(paths, ("crack", "crack", "dent", "NG", "good"), strict=True)
    )
    assert masks_of(manifest) == {
        "cap/test/crack/big/b.png": "cap/ground_truth/crack/big/b_mask.png",
        "cap/test/NG/dent/c.png": "cap/ground_truth/NG/dent/c.png",
    }


def test_nothing_is_learnt_from_defective_images_wherever_they_lie(tmp_path):
    tree(tmp_path, "c/train/good/0.png", "c/train/NG/1.png", "c/train/dent/2.png", "c/test/dent/3.png", "c/NG/4.png")
    assert columns(read(tmp_path)) == {
        "c/train/good/0.png": ("train", 0, "good"),
        "c/train/NG/1.png": ("test", 1, "NG"),
        "c/train/dent/2.png": ("test", 1, "dent"),
        "c/test/dent/3.png": ("test", 1, "dent"),
        "c/NG/4.png": ("test", 1, "NG"),
    }


def test_validation_images_are_learnt_from_if_there_is_a_test_folder(tmp_path):
    paths = (*numbered("cap/train/good", 3), *numbered("cap/val/good", 2), "cap/val/NG/0.png")
    tree(tmp_path, *paths)
    assert described(tmp_path) == ["cap: 3 good to learn from; test 2 good, 1 defective (NG 1)"]
    tree(tmp_path, *numbered("cap/test/good", 1))
    (line,) = described(tmp_path)
    assert line == "cap: 5 good to learn from; test 1 good, 1 defective (NG 1); 2 of the good images are of validation"


def test_mvtec_ad_2(tmp_path):
    base = "can/test_public"
    tree(tmp_path, *numbered("can/train/good", 3), *numbered("can/validation/good", 1), *numbered(f"{base}/good", 1))
    tree(tmp_path, f"{base}/bad/000_regular.png", f"{base}/ground_truth/bad/000_regular_mask.png")
    tree(tmp_path, "can/test_private/000_regular.png", "can/test_private_mixed/000_mixed.png")
    for options in ({}, {"layout": "mvtec_ad_2"}):
        manifest = read(tmp_path, **options)
        (line,) = manifest.tally.lines({})
        assert line == "can: 4 good to learn from; test 1 good, 1 defective (bad 1), 2 unlabelled, 1 mask"
        assert masks_of(manifest) == {f"{base}/bad/000_regular.png": f"{base}/ground_truth/bad/000_regular_mask.png"}
        assert not manifest.errors


def test_mvtec_loco_has_a_folder_of_masks_per_image(tmp_path):
    tree(tmp_path, *numbered("box/train/good", 3), *numbered("box/test/good", 1))
    tree(tmp_path, *numbered("box/test/logical_anomalies", 2))
    truth = tmp_path / "box/ground_truth/logical_anomalies"
    for name, place in (("000/000.png", (1, 1)), ("000/001.png", (6, 2)), ("001/000.png", (4, 4))):
        (truth / name).parent.mkdir(parents=True, exist_ok=True)
        image = Image.new("L", (8, 8))
        image.putpixel(place, 247)
        image.save(truth / name)
    manifest = read(tmp_path, layout="mvtec_loco")
    assert masks_of(manifest) == {
        "box/test/logical_anomalies/000.png": "box/ground_truth/logical_anomalies/000/",
        "box/test/logical_anomalies/001.png": "box/ground_truth/logical_anomalies/001/000.png",
    }
    assert not manifest.remarks
    both = np.asarray(read_mask(f"{manifest.root}/box/ground_truth/logical_anomalies/000/"))
    assert sorted(zip(*np.nonzero(both), strict=True)) == [(1, 1), (2, 6)]
    for folder, reason in (("empty/", "is empty"), ("nowhere/", "cannot be listed")):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(ImageError, match=reason):
            read_mask(f"{manifest.root}/{folder}")


@pytest.mark.parametrize("annotated", [False, True])
@pytest.mark.parametrize("as_root", [False, True])
def test_visa_as_downloaded(tmp_path, annotated, as_root):
    data = "candle/Data"
    normal = [f"{data}/Images/Normal/{number:04}.JPG" for number in range(10)]
    anomalies = [f"{data}/Images/Anomaly/{number:03}.JPG" for number in range(3)]
    masks = [f"{data}/Masks/Anomaly/{number:03}.png" for number in range(3)]
    tree(tmp_path, *normal, *anomalies, *masks)
    if annotated:
        lines = ["image,label,mask", *(f"{path},normal," for path in normal)]
        lines += [
            f'{path},"{"burnt,spot" if number else "spot"}",{masks[number]}' for number, path in enumerate(anomalies)
        ]
        lines.append(f"{data}/Images/Normal/9999.JPG,normal,")
        (tmp_path / "candle/image_anno.csv").write_text("\n".join(lines))
    manifest = read(tmp_path / "candle" if as_root else tmp_path)
    assert manifest.categories == ["candle"]
    assert len(masks_of(manifest)) == 3
    assert not manifest.errors
    (line,) = manifest.tally.lines(manifest.remarks)
    kinds = "burnt,spot 2, spot 1" if annotated else "anomaly 3"
    good = "9 good to learn from; test 2 good" if annotated else "8 good to learn from; test 2 good"
    seeded = "a seeded split: 80 % of the good images to learn from"
    assert line == f"candle: {good}, 3 defective ({kinds}), 3 masks; {seeded}"


@pytest.mark.parametrize("levels", ["", "realiad_1024/", "data/realiad_256/"])
def test_real_iad(tmp_path, levels):
    good = [f"OK/S{number:04}/usb_{number:04}_OK_C1.jpg" for number in range(4)]
    bad = "NG/HS/S0009/usb_0009_NG_HS_C1"
    tree(tmp_path, *(f"{levels}usb/{path}" for path in (*good, f"{bad}.jpg", f"{bad}.png", "OK/S0008/new.jpg")))
    if levels == "realiad_1024/":
        tree(tmp_path, *(f"realiad_256/usb/{path}" for path in good))

    def entry(path, kind="OK", mask=None):
        return {"category": "usb", "anomaly_class": kind, "image_path": path, "mask_path": mask}

    content = {
        "meta": {"prefix": "usb/", "normal_class": "OK", "pre_transform": False},
        "train": [entry(path) for path in good[:3]],
        "test": [entry(good[3]), entry(f"{bad}.jpg", "HS", f"{bad}.png"), entry("OK/S0007/gone.jpg")],
    }
    top = levels.removesuffix("realiad_256/").removesuffix("realiad_1024/")
    for folder, share in (("realiad_jsons_fuiad_0.1", 1), ("realiad_jsons", 3)):
        path = tmp_path / f"{top}realiad_jsons/{folder}/usb.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({**content, "train": content["train"][:share]}))
    manifest = read(tmp_path)
    (line,) = manifest.tally.lines({})
    assert line == "usb: 3 good to learn from; test 2 good, 1 defective (HS 1), 1 mask"  # the lost one has a row too
    assert masks_of(manifest) == {f"{levels}usb/{bad}.jpg": f"{levels}usb/{bad}.png"}
    (error,) = manifest.errors
    assert error["image_id"] == f"{levels}usb/OK/S0008/new.jpg"
    (tmp_path / f"{top}realiad_jsons/realiad_jsons/usb.json").write_text('{"train": []}')
    with pytest.raises(UsageError, match=r"usb\.json is no list of Real-IAD's images"):
        read(tmp_path, layout="real_iad")


@pytest.mark.parametrize("top", ["", "KolektorSDD/"])
def test_kolektor_sdd_is_divided_by_item(tmp_path, top):
    for item in range(1, 11):
        for part in range(3):
            path = f"{top}kos{item:02}/Part{part}"
            write_image(tmp_path / f"{path}.jpg")
            write_image(tmp_path / f"{path}_label.bmp", marked=part == 1)
    manifest = read(tmp_path)
    rows = manifest.table.to_pylist()
    assert len(rows) == 30
    assert sorted(row["image_id"] for row in rows if row["label"]) == [
        f"{top}kos{n:02}/Part1.jpg" for n in range(1, 11)
    ]
    items = {
        split: {row["image_id"][:-9] for row in rows if (row["split"], row["label"]) == (split, 0)}
        for split in ("train", "test")
    }
    assert (len(items["train"]), len(items["test"])) == (8, 2)
    assert not items["train"] & items["test"]
    assert len(masks_of(manifest)) == 10
    assert manifest.categories == [top.rstrip("/") or tmp_path.name]


def test_kolektor_sdd_2_is_labelled_by_its_label_images(tmp_path):
    for split, number, marked in (("train", 1, 0), ("train", 2, 1), ("test", 3, 0), ("test", 4, 1), ("test", 5, 0)):
        write_image(tmp_path / f"{split}/{number}.png")
        write_image(tmp_path / f"{split}/{number}_GT.png", marked=marked)
    (tmp_path / "test/5_GT.png").write_bytes(b"")
    manifest = read(tmp_path, layout="kolektor")
    splits = {image_id: row[:2] for image_id, row in columns(manifest).items()}
    assert splits == {
        "train/1.png": ("train", 0),
        "train/2.png": ("test", 1),
        "test/3.png": ("test", 0),
        "test/4.png": ("test", 1),
    }
    (error,) = manifest.errors
    assert (error["image_id"], error["error"]) == ("test/5.png", "its label image cannot be read: the file is empty")
    assert kolektor.recognises(files.find_images(storage.list_files(manifest.root)))
    (tmp_path / "test/5_GT.png").unlink()
    assert not kolektor.recognises(files.find_images(storage.list_files(manifest.root)))


def test_the_option_names_every_layout():
    assert set(get_args(Layout)) == {"auto", "plain", *LABELLED}
    assert NightlyOptions().layout == "plain"
    assert ScoreOptions().layout == FitOptions().layout == "auto"


@pytest.mark.parametrize("name", ["{}_mask.png", "{}.bmp", "{}_label.tif", "{}-gt.jpg", "{}_GT.PNG", "{}_Mask.jpeg"])
@pytest.mark.parametrize("folder", ["ground_truth/dent", "GroundTruth/Dent", "masks/dent", "mask", "test/dent"])
def test_masks_are_found_by_name(tmp_path, name, folder):
    if folder == "test/dent" and name == "{}.bmp":
        pytest.skip("that is another image")
    tree(tmp_path, "cap/train/good/0.png", *(f"cap/test/dent/{stem}.png" for stem in ("000", "001")))
    tree(tmp_path, *(f"cap/{folder}/{name.format(stem)}" for stem in ("000", "001")))
    manifest = read(tmp_path)
    assert masks_of(manifest) == {f"cap/test/dent/{n}.png": f"cap/{folder}/{name.format(n)}" for n in ("000", "001")}
    assert described(tmp_path) == ["cap: 1 good to learn from; test 2 defective (dent 2), 2 masks"]


def test_masks_without_an_image_and_images_without_a_mask_are_counted(tmp_path):
    tree(tmp_path, "cap/train/good/0.png", *numbered("cap/test/dent", 3), "cap/test/dent/002_mask.png")
    tree(tmp_path, *(f"cap/ground_truth/dent/{n}_mask.png" for n in ("001", "007", "008")))
    assert described(tmp_path) == [
        "cap: 1 good to learn from; test 3 defective (dent 3), 2 masks, 1 defective without a mask; "
        "2 masks belong to no image"
    ]


DUMP = [f"weave/{name}.png" for name in "abcdef"]


def test_a_dump_with_a_stray_test_folder_stays_a_dump(tmp_path):
    tree(tmp_path, *DUMP, "weave/test/trial 1/a.png")
    manifest = read(tmp_path, to_learn=False)
    assert {row[1] for row in columns(manifest).values()} == {None}
    assert manifest.n_images == 7
    images = Listing(str(tmp_path), DataOptions())
    assert sum(map(len, images)) == 7
    assert list(images.tally.lines(images.remarks)) == ["weave: 7 images"]


@pytest.mark.parametrize(("n_other", "split"), [(1, "train"), (2, "test")])
def test_a_labelled_layout_is_one_that_nearly_all_images_fit(tmp_path, n_other, split):
    tree(tmp_path, *numbered("cap/train/good", 19), *numbered("cap/raw", n_other))
    manifest = read(tmp_path, to_learn=False)
    assert manifest.table["split"].to_pylist()[0] == split
    assert len(manifest.errors) == (n_other if split == "train" else 0)
    assert read(tmp_path, to_learn=True).n_images == 19  # otherwise there would be nothing to learn from


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("overview.png", "directly in the folder of its category"),
        ("cap/overview.png", "directly in the folder of its category"),
        ("cap/raw/a.png", "it lies in raw, where"),
        ("cap/train/raw/a.png", "it lies in train/raw, where"),
        ("cap/train/a.png", "it lies in train, where"),
        ("raw/a.png", "its category has neither train and test folders"),
    ],
)
def test_an_image_without_a_place_has_a_reason(tmp_path, path, reason):
    tree(tmp_path, *numbered("cap/train/good", 3), path)
    manifest = read(tmp_path)
    assert manifest.n_images == 3
    (error,) = manifest.errors
    assert error["image_id"] == path
    assert reason in error["error"]
    (sentence,) = describe_left_out(manifest.left_out)
    assert sentence == f"1 such as {path!r}: {error['error']}"


@pytest.mark.parametrize(
    "name", [*sorted(RUBBISH), ".DS_Store", ".trash", "~$plan.png", ".~lock.a.png#", "Thumbs.db", "#Recycle"]
)
def test_rubbish_is_neither_a_category_nor_an_image(tmp_path, name):
    tree(tmp_path, "cam1/a.png", f"{name}/b.png", f"cam1/{name}/c.png")
    manifest = read(tmp_path, to_learn=False)
    assert [row["image_id"] for row in manifest.table.to_pylist()] == ["cam1/a.png"]
    assert not manifest.errors
    images = Listing(str(tmp_path), DataOptions())
    assert (images.categories, images.n_images) == (["cam1"], 1)


@pytest.mark.parametrize("suffix", files.SUFFIXES)
def test_images_are_known_by_suffix_in_any_capitals(tmp_path, suffix):
    tree(tmp_path, f"cap/a{suffix}", f"cap/b{suffix.upper()}")
    assert read(tmp_path, to_learn=False).n_images == 2


def encoded(tmp_path, kind):
    path = tmp_path / "encoded"
    Image.new("RGB", (9, 9)).save(path, kind)
    return path.read_bytes()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000", "GIF"])
def test_files_with_other_suffixes_are_looked_at(tmp_path, kind):
    data, folder = encoded(tmp_path, kind), tmp_path / "dump/cam1"
    folder.mkdir(parents=True)
    for name in ("a", "b.xyz", "c.20261125", "d.csv", "e.partial"):
        (folder / name).write_bytes(data)
    for name in ("f", "g.xyz", "h.dat"):
        (folder / name).write_bytes(b"something else, of more than 16 bytes")
    os.mkfifo(folder / "pipe")
    manifest = read(tmp_path / "dump", to_learn=False)
    assert [row["image_id"] for row in manifest.table.to_pylist()] == ["cam1/a", "cam1/b.xyz", "cam1/c.20261125"]
    assert manifest.others == {".csv": 1, ".partial": 1, "": 2, ".xyz": 1, ".dat": 1}
    sentence = "6 files are not images: 2 without a suffix, 1 .csv, 1 .dat, 1 .partial, 1 .xyz"
    assert describe_others(manifest.others) == sentence


def test_in_object_storage_a_file_of_unknown_kind_is_left_out_aloud(tmp_path, monkeypatch):
    tree(tmp_path, "cam1/a.png", "cam1/b.xyz", "cam1/c", "cam1/d.txt")
    monkeypatch.setattr(storage, "is_local", lambda uri: False)
    monkeypatch.setattr(files, "_may_be_image", lambda path: pytest.fail("it was opened"))
    found = files.find_images(storage.list_files(to_uri(tmp_path)))
    rows = layouts.unread_rows(to_uri(tmp_path), found.unknown, (), None).to_pylist()
    assert sorted((row["image_id"], row["category"]) for row in rows) == [("cam1/b.xyz", "cam1"), ("cam1/c", "cam1")]
    assert all("its content was not looked at" in row["error"] for row in rows)


@pytest.fixture
def forbidden(monkeypatch):
    """Makes folders unreadable, for root too: a set of their names."""
    names, scan = set(), os.scandir

    def scandir(folder):
        if os.fsdecode(os.path.basename(folder)) in names:
            raise PermissionError(errno.EACCES, "Permission denied", folder)
        return scan(folder)

    monkeypatch.setattr("mvad.storage.listing.os.scandir", scandir)
    return names


@pytest.mark.parametrize("place", ["cam2", "cam1/deep", "cam1/\udcff\udcfe", "cam1/" + "铝" * 80])
def test_a_folder_that_cannot_be_read_is_a_row_and_ends_nothing(tmp_path, forbidden, place):
    tree(tmp_path, "cam1/a.png", "cam3/b.png", f"{place}/c.png")
    forbidden.add(place.rpartition("/")[2])
    for images in (read(tmp_path, to_learn=False), Listing(str(tmp_path), DataOptions())):
        (row,) = images.left_out.to_pylist()
        assert row["category"] == place.partition("/")[0]
        assert row["error"] == "the folder cannot be read: Permission denied"
        assert row["image_id"].endswith("/")
        assert images.n_images == 2
    assert ("cam2" in images.categories) == (place == "cam2")  # it has a row, so the summary must name it
    for name in ("cam1/a.png", "cam3/b.png"):
        (tmp_path / name).unlink()
    for list_images in (lambda: read(tmp_path), lambda: Listing(str(tmp_path), DataOptions())):
        with pytest.raises(UsageError, match=r"no images under .*, the folder cannot be read: Permission denied\."):
            list_images()
    forbidden.add(tmp_path.name)
    with pytest.raises(UsageError, match="cannot be read: Permission denied"):
        read(tmp_path)


def test_a_folder_that_is_removed_while_it_is_listed_is_no_trouble(tmp_path, monkeypatch):
    tree(tmp_path, "cam1/a.png", "cam2/b.png")
    scan = os.scandir

    def scandir(folder):
        if os.path.basename(folder) == b"cam2":
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", folder)
        return scan(folder)

    monkeypatch.setattr("mvad.storage.listing.os.scandir", scandir)
    manifest = read(tmp_path, to_learn=False)
    assert (manifest.n_images, manifest.errors) == (1, [])


def test_of_many_categories_the_first_have_a_line(tmp_path):
    tree(tmp_path, *(f"cam{number:03}/a.png" for number in range(MAX_LINES + 5)))
    lines = described(tmp_path, to_learn=False)
    assert lines[0] == "cam000: 1 image"
    assert len(lines) == MAX_LINES + 1
    assert lines[-1] == "and 5 more categories"


def test_names_of_folders_forge_no_line(tmp_path):
    tree(tmp_path, "a\ncam1: 9 images\x1b[2K/x.png", "cap/test/b\nc/x.png", "cap/train/good/x.png")
    for line in [*described(tmp_path, layout="plain"), *described(tmp_path)]:
        assert line.isprintable()
    assert describe_others({".\n": 1}) == "1 file is not an image: 1 .\\n"


def test_many_kinds_of_defects_are_counted(tmp_path):
    tree(tmp_path, "cap/train/good/0.png", *(f"cap/test/kind{number}/0.png" for number in range(11)))
    (line,) = described(tmp_path)
    assert line.endswith("kind10 1, kind2 1, kind3 1, kind4 1, kind5 1, kind6 1, 3 more kinds)")


def test_meaning_of_other_names_is_none():
    for name in ("cam1", "goods", "okay", "training 2", "testbench", "", "-", "2026", "bottle"):
        assert meaning(name) == (None, None)


def test_a_tally_counts_tables_one_after_the_other(tmp_path):
    tree(tmp_path, *numbered("cam1", 5), *numbered("cam2", 2))
    table = read(tmp_path, to_learn=False).table
    tally = Tally().add(table.slice(0, 3)).add(table.slice(3))
    assert list(tally.lines({"cam2": ["odd"]})) == ["cam1: 5 images", "cam2: 2 images; odd"]


def test_images_left_out_are_rows_of_a_run_once(tmp_path):
    tree(tmp_path / "data", *numbered("cap/train/good", 3), "cap/raw/a.png", "lid/raw/b.png")
    manifest, out = read(tmp_path / "data"), to_uri(tmp_path / "out")
    run = Run("run", out, manifest, RunOptions())
    run.record()
    run.write_left_out(manifest)
    assert read_errors(out) == sorted(manifest.errors, key=lambda row: row["image_id"])
    result = run.finish(manifest.n_files, {})
    assert [error["image_id"] for error in result.errors] == ["cap/raw/a.png", "lid/raw/b.png"]
    # A score run that is taken up again keeps them, and adds those that came since.
    dump = tree(tmp_path / "dump", *numbered("cap", 3), "top.png")
    images = Listing(str(dump), ScoreOptions())
    out = to_uri(tmp_path / "scores")
    first = Run.of_models(out, images, {}, ScoreOptions())
    first.record()
    first.write_left_out(images)
    tree(dump, "another.png")
    images = Listing(str(dump), ScoreOptions())
    again = Run.of_models(out, images, {}, ScoreOptions())
    assert again.left_out(images)["image_id"].to_pylist() == ["another.png"]
    again.write_left_out(images)
    assert sorted(read_status(out)["image_id"].to_pylist()) == ["another.png", "top.png"]
    assert not len(again.left_out(images)) or again.n_rows == 2


def test_every_image_of_a_night_has_a_row(tmp_path, base_run):
    """A stray test folder, an image in no camera's folder, thumbnails of a NAS, other files, an unknown suffix."""
    random, dump = np.random.default_rng(5), tmp_path / "dump"
    names = ("alpha/0.png", "alpha/1.jfif", "alpha/test/trial 1/2.png", "beta/3", "top.png", "alpha/@eaDir/t.png")
    for name in names:
        (dump / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(paint(random)[0]).save(dump / name, "JPEG" if name.endswith(".jfif") else "PNG")
    tree(dump, "alpha/notes.txt")
    options = {"models": str(base_run[0] / "models"), "out": str(tmp_path / "nights"), "date": "2026-11-25"}
    result = mvad.nightly(str(dump), **options, actors=1, quiet=True, max_errors="1")
    rows = results.read_scores(to_uri(tmp_path / "nights/date=2026-11-25"), ["image_id", "status", "label"]).to_pylist()
    assert {row["image_id"]: row["status"] for row in rows} == {
        **dict.fromkeys(names[:4], "ok"),
        "top.png": "error",
    }
    assert {row["label"] for row in rows} == {None}
    assert [error["image_id"] for error in result.errors] == ["top.png"]
