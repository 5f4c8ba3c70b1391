"""Writers of regions: names of files, formulas in names, and parts of files that are made one by one."""

import json

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvad import storage
from mvad.exports.coco import coco_document
from mvad.exports.csv_rows import csv_document, region_table
from mvad.exports.folder import label_path, repeated_stems
from mvad.exports.labelme import labelme_document
from mvad.results.schema import SCORES

BOX = {"x": 1, "y": 2, "width": 3, "height": 4, "area": 5, "peak": 0.1, "mean": 0.1}
NAMES = ("image_id", "width", "height", "regions", "score", "p_value", "threshold", "verdict")


def rows_of(*images):
    """Score rows of images given as (image id, list of regions)."""
    columns = {name: pa.nulls(len(images), SCORES.field(name).type) for name in NAMES}
    columns["image_id"] = [name for name, _ in images]
    columns["regions"] = pa.array([regions for _, regions in images], SCORES.field("regions").type)
    columns["width"] = columns["height"] = [10] * len(images)
    return pa.table(columns)


@given(st.lists(st.text("ab./%~\\\n\0é", max_size=9), min_size=2, max_size=8, unique=True))
def test_names_of_labels_stay_in_their_folder_and_apart(ids):
    repeated = repeated_stems(ids)
    names = [label_path(image_id, ".txt", repeated) for image_id in ids]
    assert len(set(names)) == len(ids)
    for name in names:
        assert name.endswith(".txt")
        assert not {"", ".", ".."} & set(name.split("/"))
        assert not any(char in name for char in "\n\0\\:")
        assert not any(other.startswith(f"{name}/") for other in names)


def test_labels_are_called_like_their_image():
    assert label_path("part/top/000.png", ".txt") == "part/top/000.txt"
    assert label_path("part.v2/000.tar.gz", ".json") == "part.v2/000.tar.json"
    assert label_path("a/.png", ".txt") == "a/.png.txt"
    assert label_path("../../etc/passwd", ".txt") == "%2E%2E/%2E%2E/etc/passwd.txt"
    assert label_path("a.txt/b.png", ".txt") == "a%2Etxt/b.txt"
    assert repeated_stems(["a/x.png", "b/x.png", "a/y"]) == set()
    assert len(repeated_stems(["a/x.png", "a/x.jpg", "a/y.png", "a/y"])) == 2


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "'x", "\uff1d1"])
def test_a_name_that_is_a_formula_gets_an_apostrophe(name):
    table = region_table("-lid", rows_of((name, [BOX]), (f"a{name}", [BOX])))
    assert table["image_id"].to_pylist() == [f"'{name}", f"a{name}"]
    assert table["category"].to_pylist() == ["'-lid", "'-lid"]


def test_csv_quotes_names_and_gives_numbers_their_shortest_form():
    rows = rows_of(('say "x", y.png', [BOX]), ("none", []))
    head, *parts = csv_document([("lid", rows), ("lid", rows.slice(1)), ("lid", rows.slice(2))])
    assert head == b"image_id,category,x,y,width,height,area,peak,mean,score,p_value,threshold,verdict\n"
    assert b"".join(parts) == b'"say ""x"", y.png","lid",1,2,3,4,5,0.1,0.1,,,,\n'


@pytest.mark.parametrize("files", [[], [0], [1, 0, 2], [0, 0, 3], [2, 2]])
def test_coco_is_one_document_whatever_files_it_is_made_of(files):
    tables = [
        ("lid", rows_of(*[(f"{number}-{n}.png", [BOX] * n) for n in range(count)]))
        for number, count in enumerate(files)
    ]
    document = json.loads(b"".join(coco_document(tables, ["lid"])))
    assert len(document["images"]) == sum(files)
    assert len(document["annotations"]) == sum(n for count in files for n in range(count))
    assert [each["id"] for each in document["annotations"]] == list(range(1, len(document["annotations"]) + 1))
    assert all(each["score"] == 0.1 for each in document["annotations"])


def test_labelme_names_the_image_alone_where_there_is_no_path_to_it():
    row = {"uri": "s3://bucket/a/b.png", "image_id": "a/b.png", "regions": [], "width": 3, "height": 4}
    assert json.loads(labelme_document(row, "file:///to/a/b.json"))["imagePath"] == "b.png"
    row["uri"] = "file:///data/%C3%BC/b.png"
    assert json.loads(labelme_document(row, "s3://bucket/to/b.json"))["imagePath"] == "b.png"
    assert json.loads(labelme_document(row, "file:///to/a/b.json"))["imagePath"] == "../../data/ü/b.png"


def test_a_stream_that_fails_leaves_the_file_as_it_was(tmp_path):
    def parts():
        yield b"new"
        raise ValueError("no more")

    uri = storage.to_uri(tmp_path / "file")
    storage.write_stream(uri, iter([b"o", b"ld"]))
    with pytest.raises(ValueError, match="no more"):
        storage.write_stream(uri, parts())
    assert storage.read(uri) == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
