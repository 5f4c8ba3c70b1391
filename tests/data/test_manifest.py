"""Manifests of every layout and of tables."""

import os
import string
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.tiles import tree
from mvad.data.manifest import SCHEMA, read_manifest
from mvad.errors import UsageError
from mvad.options import DataOptions
from mvad.storage import local_path
from mvad.storage.listing import RUBBISH


def rows(root, **options):
    return read_manifest(str(root), DataOptions(**options)).table.to_pylist()


MVTEC = (
    "cable/train/good/000.png",
    "cable/test/good/000.png",
    "cable/test/cut/000.png",
    "cable/ground_truth/cut/000_mask.png",
    "cable/test/cut/001.png",
    "pill/train/good/a.JPG",
    "pill/test/good/b.tiff",
)


def test_mvtec_layout(tmp_path):
    root = tree(tmp_path, *MVTEC, "cable/readme.txt", "cable/.hidden.png")
    manifest = read_manifest(str(root), DataOptions())
    assert manifest.table.schema == SCHEMA
    assert not manifest.errors
    assert manifest.categories == ["cable", "pill"]
    by_id = {row["image_id"]: (row["split"], row["label"], row["defect"]) for row in manifest.table.to_pylist()}
    assert by_id == {
        "cable/train/good/000.png": ("train", 0, "good"),
        "cable/test/good/000.png": ("test", 0, "good"),
        "cable/test/cut/000.png": ("test", 1, "cut"),
        "cable/test/cut/001.png": ("test", 1, "cut"),
        "pill/train/good/a.JPG": ("train", 0, "good"),
        "pill/test/good/b.tiff": ("test", 0, "good"),
    }
    masks = {row["image_id"]: row["mask_uri"] for row in manifest.table.to_pylist() if row["mask_uri"]}
    assert masks == {"cable/test/cut/000.png": (tmp_path / "cable/ground_truth/cut/000_mask.png").as_uri()}


def test_one_category_as_root(tmp_path):
    tree(tmp_path, *MVTEC)
    images = rows(tmp_path / "cable")
    assert {row["category"] for row in images} == {"cable"}
    assert {row["image_id"] for row in images} >= {"train/good/000.png", "test/cut/001.png"}
    assert sum(row["mask_uri"] is not None for row in images) == 1


def test_btad_names(tmp_path):
    tree(tmp_path, "01/train/ok/0.bmp", "01/test/ok/1.bmp", "01/test/ko/2.bmp", "01/ground_truth/ko/2.png")
    by_id = {row["image_id"]: row for row in rows(tmp_path)}
    assert by_id["01/train/ok/0.bmp"]["label"] == 0
    assert by_id["01/test/ko/2.bmp"]["label"] == 1
    assert by_id["01/test/ko/2.bmp"]["mask_uri"].endswith("01/ground_truth/ko/2.png")


def test_visa_split(tmp_path):
    base = "candle/Data"
    tree(tmp_path, f"{base}/Images/Normal/0.JPG", f"{base}/Images/Anomaly/1.JPG", f"{base}/Masks/Anomaly/1.png")
    (tmp_path / "split_csv").mkdir()
    (tmp_path / "split_csv/1cls.csv").write_text(
        "object,split,label,image,mask\n"
        f"candle,train,normal,{base}/Images/Normal/0.JPG,\n"
        f"candle,test,anomaly,{base}/Images/Anomaly/1.JPG,{base}/Masks/Anomaly/1.png\n"
    )
    train, test = sorted(rows(tmp_path), key=lambda row: row["split"], reverse=True)
    expected = {"category": "candle", "split": "train", "label": 0}
    assert {name: train[name] for name in expected} == expected
    expected = {"split": "test", "label": 1, "defect": "anomaly"}
    assert {name: test[name] for name in expected} == expected
    assert test["mask_uri"].endswith("Masks/Anomaly/1.png")


def test_plain_dump(tmp_path):
    tree(tmp_path, "line1/2026/a.png", "line1/b.webp", "line2/c.bmp", "notes.txt")
    by_id = {row["image_id"]: (row["category"], row["split"], row["label"]) for row in rows(tmp_path)}
    assert by_id == {
        "line1/2026/a.png": ("line1", "test", None),
        "line1/b.webp": ("line1", "test", None),
        "line2/c.bmp": ("line2", "test", None),
    }
    assert {row["category"] for row in rows(tmp_path, category="all")} == {"all"}


def test_images_without_a_folder_need_a_name(tmp_path):
    tree(tmp_path, "a.png")
    with pytest.raises(UsageError, match="add --category NAME"):
        rows(tmp_path)
    assert rows(tmp_path, category="lid")[0]["category"] == "lid"


def test_layout_can_be_forced(tmp_path):
    tree(tmp_path, *MVTEC)
    assert {row["split"] for row in rows(tmp_path, layout="plain")} == {"test"}
    with pytest.raises(UsageError, match="visa layout"):
        rows(tmp_path, layout="visa")


def test_images_outside_the_layout_are_counted(tmp_path):
    tree(tmp_path, *MVTEC, "cable/overview.png")
    (error,) = read_manifest(str(tmp_path), DataOptions(), to_learn=True).errors
    assert error["image_id"] == "cable/overview.png"
    assert "directly in the folder of its category" in error["error"]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_of_images(tmp_path, kind):
    columns = {
        "uri": ["lamp/a b#1.png", "/data/c.png", "s3://bucket/d.png"],
        "category": ["lamp", "lamp", "lens"],
        "label": [0, 1, None],
        "split": ["train", "test", None],
    }
    path = tmp_path / f"images.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table(columns), path)
    else:
        path.write_text(
            "uri,category,label,split\nlamp/a b#1.png,lamp,0,train\n/data/c.png,lamp,1,test\ns3://bucket/d.png,lens,,\n"
        )
    by_id = {row["image_id"]: row for row in rows(path)}
    first = by_id["lamp/a b#1.png"]
    assert local_path(first["uri"]) == os.fsencode(tmp_path / "lamp/a b#1.png")
    assert first["split"] == "train"
    assert first["label"] == 0
    assert by_id["/data/c.png"]["uri"] == "file:///data/c.png"
    assert by_id["s3://bucket/d.png"]["uri"] == "s3://bucket/d.png"
    assert by_id["s3://bucket/d.png"]["label"] is None
    assert by_id["s3://bucket/d.png"]["split"] == "test"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path\na.png\n", "has no column uri"),
        ("uri\na.png\n", "row 1: the category is unknown"),
        ("uri,category\nx/a.png,x\nx/a.png,x\n", "more than once"),
        ("uri,label\nx/a.png,7\n", "row 1, column label: '7' is not 0, 1, empty"),
        ("uri,split\nx/a.png,dev\n", "row 1, column split: 'dev' is not train or test"),
        ("uri,category\n", "names no image"),
    ],
)
def test_wrong_tables(tmp_path, text, message):
    path = tmp_path / "images.csv"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        rows(path)


def test_limit_takes_an_even_share_of_every_defect(tmp_path):
    tree(
        tmp_path,
        *(f"cap/test/{kind}/{n}.png" for kind in ("good", "chip", "dent") for n in range(10)),
        "cap/train/good/0.png",
    )
    images = [row for row in rows(tmp_path, limit=6) if row["split"] == "test"]
    assert len(images) == 6
    assert {row["defect"] for row in images} == {"good", "chip", "dent"}


def test_categories_are_selected_and_unknown_ones_refused(tmp_path):
    tree(tmp_path, *MVTEC)
    assert {row["category"] for row in rows(tmp_path, categories="pill")} == {"pill"}
    with pytest.raises(UsageError, match=r"unknown category 'bolt'; .* has: cable, pill"):
        rows(tmp_path, categories="pill,bolt")


@pytest.mark.parametrize(
    ("make", "message"), [("nothing", "does not exist"), ("file", "is a file"), ("empty", "no images under")]
)
def test_no_images(tmp_path, make, message):
    path = tmp_path / "data"
    if make == "file":
        path.touch()
    if make == "empty":
        path.mkdir()
    with pytest.raises(UsageError, match=message):
        rows(path)


def test_linked_categories_are_followed_and_loops_end(tmp_path):
    tree(tmp_path / "real", *MVTEC)
    root = tmp_path / "root"
    root.mkdir()
    (root / "cable").symlink_to(tmp_path / "real/cable")
    (root / "cable2").symlink_to(tmp_path / "real/cable")
    (tmp_path / "real/cable/loop").symlink_to(root)
    ids = {row["image_id"] for row in rows(root)}
    assert {"cable/train/good/000.png", "cable2/train/good/000.png"} <= ids


def test_names_that_are_not_utf8(tmp_path):
    tree(tmp_path, "cap/ok.png")
    name = os.fsencode(tmp_path) + b"/cap/\xff\xfe.png"
    with open(name, "wb"):
        pass
    uris = {row["image_id"]: row["uri"] for row in rows(tmp_path)}
    assert local_path(uris["cap/\\xff\\xfe.png"]) == name


NAMES = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=["Cs"])
    | st.sampled_from(string.punctuation.replace("/", "")),
    min_size=1,
    max_size=12,
).filter(lambda name: not name.startswith((".", "~$")) and name.casefold() not in RUBBISH)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(NAMES, min_size=1, max_size=5, unique_by=str.casefold))
def test_any_name_survives_the_manifest(tmp_path_factory, names):
    root = tmp_path_factory.mktemp("names")
    paths = [f"{name}/{name}.png" for name in names]
    tree(root, *paths)
    images = rows(root, layout="plain")
    assert sorted(row["image_id"] for row in images) == sorted(paths)
    for row in images:
        assert local_path(row["uri"]) == os.fsencode(root / row["image_id"])
        assert row["category"] == Path(row["image_id"]).parts[0]
