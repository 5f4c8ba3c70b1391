"""Exported regions: every number in every format, in files that stay in their folder and that other programs find."""

import csv
import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

import mvad
from helpers.score_files import CROPPED, write_rows, write_run
from mvad import results
from mvad.anomaly_maps.geometry import map_on_image
from mvad.data.image_size import ImageSize
from mvad.errors import UsageError
from mvad.results.stored_maps import stored_map
from mvad.storage import to_uri

BIG = {"x": 10, "y": 20, "width": 40, "height": 30, "area": 900, "peak": 2.3, "mean": 1.7}
SMALL = {"x": 0, "y": 59, "width": 1, "height": 1, "area": 1, "peak": 1.25, "mean": 1.25}
PEAKS = np.full((8, 8), 1, np.float32)
PEAKS[4, 4] = 10


@pytest.fixture
def out(tmp_path):
    """Two categories with regions and one without; images of other sizes, without regions, with errors."""
    flagged = {"p_value": 0.0625, "threshold": 1.25, "is_anomaly": True, "verdict": "anomalous"}
    folder = tmp_path / "out"
    rows = [
        {"image_id": "bolt/a.png", "score": 2.5, "label": 1, "regions": [BIG, SMALL], **flagged},
        {"image_id": "bolt/b.png", "score": 0.5, "label": 1, "regions": [], "is_anomaly": False, "verdict": "good"},
        {"image_id": "bolt/broken.png", "status": "error", "score": None, "width": None, "height": None},
    ]
    write_rows(folder, "bolt", rows)
    rows = [{"image_id": "=cmd|'/c calc'!A0", "width": 60, "height": 120, "regions": [SMALL], "is_anomaly": True}]
    write_rows(folder, "+nut", rows)
    write_rows(folder, "screw", [{"image_id": "screw/old.png"}], without=["regions", "anomalous_area"])
    write_run(folder, bolt=1.0, screw=None, **{"+nut": 1.0})
    return folder


def export(out, to, **options):
    result = mvad.regions(str(out), str(to), quiet=True, **options)
    return result, json.loads((to / "regions.json").read_text())


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_csv_has_a_row_per_region_and_no_formulas(out, tmp_path):
    result, record = export(out, tmp_path / "to")
    with open(tmp_path / "to/regions.csv", newline="", encoding="utf-8") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: (row["image_id"], -float(row["peak"])))
    names = [
        "image_id",
        "category",
        "x",
        "y",
        "width",
        "height",
        "area",
        "peak",
        "mean",
        "score",
        "p_value",
        "threshold",
        "verdict",
    ]
    assert list(rows[0]) == names
    assert [list(row.values()) for row in rows] == [
        ["'=cmd|'/c calc'!A0", "'+nut", "0", "59", "1", "1", "1", "1.25", "1.25", "1.5", "", "", ""],
        ["bolt/a.png", "bolt", "10", "20", "40", "30", "900", "2.3", "1.7", "2.5", "0.0625", "1.25", "anomalous"],
        ["bolt/a.png", "bolt", "0", "59", "1", "1", "1", "1.25", "1.25", "2.5", "0.0625", "1.25", "anomalous"],
    ]
    assert result.exit_code == 0
    assert result.errors == []
    assert {name: record[name] for name in ("format", "only", "n_images", "n_regions", "n_left_out", "n_errors")} == {
        "format": "csv",
        "only": "all",
        "n_images": 3,
        "n_regions": 3,
        "n_left_out": 1,
        "n_errors": 0,
    }
    assert record["pixel_thresholds"] == {"+nut": 1.0, "bolt": 1.0, "screw": None}
    assert files_in(tmp_path / "to") == ["regions.csv", "regions.json"]


def test_coco_numbers_images_and_boxes(out, tmp_path):
    export(out, tmp_path / "to", format="coco")
    document = json.loads((tmp_path / "to/coco.json").read_text())
    classes = {each["supercategory"]: each["id"] for each in document["categories"]}
    assert {each["name"] for each in document["categories"]} == {"anomaly"}
    assert sorted(classes) == ["+nut", "bolt", "screw"]
    assert sorted(classes.values()) == [1, 2, 3]
    images = {each["file_name"]: each for each in document["images"]}
    assert sorted(each["id"] for each in images.values()) == [1, 2, 3]
    sizes = {name: (each["width"], each["height"]) for name, each in images.items()}
    assert sizes == {"bolt/a.png": (120, 60), "bolt/b.png": (120, 60), "=cmd|'/c calc'!A0": (60, 120)}
    annotations = document["annotations"]
    assert sorted(each["id"] for each in annotations) == [1, 2, 3]
    (big,) = [each for each in annotations if each["area"] == 900]
    assert big == {
        "id": big["id"],
        "image_id": images["bolt/a.png"]["id"],
        "category_id": classes["bolt"],
        "bbox": [10, 20, 40, 30],
        "area": 900,
        "iscrowd": 0,
        "score": 2.3,
        "segmentation": [[10, 20, 50, 20, 50, 50, 10, 50]],
    }
    owners = Counter((each["image_id"], each["category_id"]) for each in annotations)
    assert owners == {
        (images["bolt/a.png"]["id"], classes["bolt"]): 2,
        (images["=cmd|'/c calc'!A0"]["id"], classes["+nut"]): 1,
    }


def test_yolo_has_a_file_per_image_which_may_be_empty(out, tmp_path):
    export(out, tmp_path / "to", format="yolo", categories="bolt")
    expected = ["classes.txt", "data.yaml", "labels/bolt/a.txt", "labels/bolt/b.txt", "regions.json"]
    assert files_in(tmp_path / "to") == expected
    assert (tmp_path / "to/classes.txt").read_text() == "anomaly\n"
    assert (tmp_path / "to/data.yaml").read_text() == "train: images\nval: images\nnames:\n  0: anomaly\n"
    assert (tmp_path / "to/labels/bolt/b.txt").read_text() == ""
    assert (tmp_path / "to/labels/bolt/a.txt").read_text().splitlines() == [
        "0 0.25000000 0.58333333 0.33333333 0.50000000",
        "0 0.00416667 0.99166667 0.00833333 0.01666667",
    ]


def test_labelme_has_a_document_per_image(out, tmp_path):
    export(out, tmp_path / "to", format="labelme", only="anomalous", categories="bolt")
    assert files_in(tmp_path / "to") == ["labels/bolt/a.json", "regions.json"]
    document = json.loads((tmp_path / "to/labels/bolt/a.json").read_text())
    assert (tmp_path / "to/labels/bolt" / document.pop("imagePath")).resolve().as_uri() == "file:///data/bolt/a.png"
    big, small = document.pop("shapes")
    assert document == {"version": "5.5.0", "flags": {}, "imageData": None, "imageHeight": 60, "imageWidth": 120}
    assert big == {
        "label": "anomaly",
        "points": [[10, 20], [50, 50]],
        "group_id": None,
        "description": "peak 2.3, mean 1.7",
        "shape_type": "rectangle",
        "flags": {},
        "mask": None,
    }
    assert small["points"] == [[0, 59], [1, 60]]


def test_masks_are_where_the_map_is_above_the_threshold(tmp_path):
    rows = [
        {"image_id": "a.jpg", "regions": [BIG], "patch_scores": PEAKS.ravel(), "patch_grid": [8, 8]},
        {"image_id": "b.jpg", "regions": []},
        {"image_id": "huge.jpg", "width": 900, "height": 900, "patch_scores": PEAKS.ravel(), "patch_grid": [8, 8]},
        {"image_id": "spoilt.jpg", "patch_scores": [1.0], "patch_grid": [2, 2]},
    ]
    write_rows(tmp_path / "out", "bolt", rows)
    write_rows(tmp_path / "out", "nut", [{"image_id": "n.jpg", "patch_scores": [1.0], "patch_grid": [1, 1]}])
    write_run(tmp_path / "out", bolt=2.0, nut=None)
    result, record = export(tmp_path / "out", tmp_path / "to", format="mask-png", max_pixels=10_000, max_errors="100%")
    assert {error["image_id"]: error["error"] for error in result.errors} == {
        "huge.jpg": "has 900 x 900 pixels, more than --max-pixels 10000",
        "spoilt.jpg": "the grid of patch scores is damaged",
    }
    assert (record["n_images"], record["n_regions"], record["n_left_out"], record["n_errors"]) == (1, 1, 1, 2)
    assert files_in(tmp_path / "to") == ["masks/a.png", "regions.json"]
    with Image.open(tmp_path / "to/masks/a.png") as picture:
        assert (picture.size, picture.mode) == ((120, 60), "L")
        mask = np.asarray(picture)
    expected = np.zeros((60, 120), np.uint8)  # the model looked at the middle half of each side
    size = ImageSize(**CROPPED)
    seen = map_on_image(stored_map({"patch_scores": PEAKS, "patch_grid": [8, 8]}, size), size, 120, 60)
    expected[15:45, 30:90] = np.where(seen > 2, 255, 0)
    np.testing.assert_array_equal(mask, expected)
    assert 0 < (mask == 255).sum() < 30 * 60
    rows, columns = np.nonzero(mask)
    assert abs(columns.mean() - (30 + 60 * 4.5 / 8)) < 1.5
    assert abs(rows.mean() - (15 + 30 * 4.5 / 8)) < 1.5


def test_only_chooses_images(out, tmp_path):
    for only, names in (("anomalous", {"bolt/a.png"}), ("mistakes", {"bolt/b.png"})):
        export(out, tmp_path / only, format="coco", only=only, categories="bolt")
        document = json.loads((tmp_path / only / "coco.json").read_text())
        assert {each["file_name"] for each in document["images"]} == names
    export(out, tmp_path / "csv", only="mistakes", categories="bolt")
    assert len((tmp_path / "csv/regions.csv").read_text().splitlines()) == 1


def test_many_files_of_rows_make_one_file_that_is_the_same_again(tmp_path):
    for number in range(7):
        rows = [{"image_id": f"{number}/{place}.png", "regions": [BIG] * place} for place in range(3)]
        write_rows(tmp_path / "out", "bolt", rows)
    write_run(tmp_path / "out", bolt=1.0)
    for format, name in (("coco", "coco.json"), ("csv", "regions.csv")):
        contents = set()
        for _ in range(2):
            export(tmp_path / "out", tmp_path / "to", format=format)
            contents.add((tmp_path / "to" / name).read_bytes())
        assert len(contents) == 1
    document = json.loads((tmp_path / "to/coco.json").read_text())
    assert [each["id"] for each in document["images"]] == list(range(1, 22))
    assert [each["id"] for each in document["annotations"]] == list(range(1, 22))
    names = {each["id"]: each["file_name"] for each in document["images"]}
    counts = Counter(names[each["image_id"]] for each in document["annotations"])
    assert counts == {f"{number}/{place}.png": place for number in range(7) for place in (1, 2)}
    assert len((tmp_path / "to/regions.csv").read_text().splitlines()) == 1 + 21


def test_images_of_the_same_name_keep_their_suffix(tmp_path):
    names = ["../a.png", "../a.jpg", "../a.png.tif", "../b.png"]
    write_rows(tmp_path / "out", "bolt", [{"image_id": name, "regions": []} for name in names])
    write_run(tmp_path / "out", bolt=1.0)
    export(tmp_path / "out", tmp_path / "to", format="yolo")
    labels = [name.removeprefix("labels/%2E%2E/") for name in files_in(tmp_path / "to") if name.startswith("labels")]
    assert labels == ["a.jpg~.txt", "a.png.txt", "a.png~.txt", "b.txt"]


def test_a_damaged_file_costs_its_images_alone(out, tmp_path):
    (file,) = (out / "scores/bolt").iterdir()
    file.write_bytes(b"")
    result, record = export(out, tmp_path / "to", format="labelme")
    assert result.exit_code == 3
    (error,) = result.errors
    assert error["category"] == "bolt"
    assert file.name in error["error"]
    assert (record["n_images"], record["n_regions"]) == (1, 1)
    assert files_in(tmp_path / "to/labels") == ["=cmd%7C'/c calc'!A0.json"]
    with pytest.raises(UsageError, match=file.name):
        mvad.regions(str(out), str(tmp_path / "other"), categories="bolt", quiet=True)


def test_wrong_uses_write_nothing(out, tmp_path):
    to = tmp_path / "to"
    for options, message in (
        ({"categories": "lid"}, "unknown category 'lid'"),
        ({"format": "xml"}, "--format 'xml' is unknown"),
        ({"categories": "screw"}, "has regions, which need a pixel threshold"),
        ({"categories": "screw", "format": "mask-png"}, "has regions, which need a pixel threshold"),
        ({"format": "mask-png"}, "kept its map, .* --maps anomalous or --maps all"),
    ):
        with pytest.raises(UsageError, match=message):
            mvad.regions(str(out), str(to), quiet=True, **options)
    (tmp_path / "file").touch()
    for place, message in (
        (out, "lies in the folder of the results"),
        (tmp_path, "holds other files"),
        (tmp_path / "file/below", "cannot be written to"),
    ):
        with pytest.raises(UsageError, match=message):
            mvad.regions(str(out), str(place), quiet=True)
    write_run(out, bolt=1.0)
    run = results.read_run(to_uri(out)) | {"status": "running"}
    results.write_json(f"{to_uri(out)}/run.json", run)
    with pytest.raises(UsageError, match="has not ended"):
        mvad.regions(str(out), str(to), quiet=True)
    assert not to.exists()


def test_the_folder_of_the_results_has_a_place_for_them(out):
    export(out, out / "regions")
    assert (out / "regions/regions.csv").exists()
    mvad.regions(str(out), str(out / "regions"), format="coco", quiet=True)
    assert (out / "regions/coco.json").exists()
