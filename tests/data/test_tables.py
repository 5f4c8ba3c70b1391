"""One list of images in the ways that spreadsheets, pandas and Windows write it; and what is wrong with a list."""

import codecs
import datetime
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.tiles import tree
from mvad import storage
from mvad.data.manifest import read_manifest
from mvad.data.tables import read_columns
from mvad.errors import UsageError
from mvad.options import DataOptions

LINES = [["uri", "category", "split", "label"], ["img/ä 1.png", "plate", "train", "0"], ["img/b.png", "lid", "", "1"]]
EXPECTED = [("img/b.png", "lid", "test", 1), ("img/ä 1.png", "plate", "train", 0)]


def text(lines=LINES, delimiter=",", end="\n"):
    return end.join(delimiter.join(line) for line in lines) + end


def read(path, **options):
    table = read_manifest(str(path), DataOptions(**options)).table
    return [tuple(row[name] for name in ("image_id", "category", "split", "label")) for row in table.to_pylist()]


HEADER_IN_CAPITALS = [["URI", "Category", "SPLIT", "Label"], *LINES[1:]]
BLANK_AFTER_COMMAS = [[first, *(f" {cell}" for cell in others)] for first, *others in LINES]
WITH_OTHERS = [["", *LINES[0], "note", "note"], *(["7", *row, '"ok, checked;\nlater"', ""] for row in LINES[1:])]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("comma.csv", text()),
        ("semicolon.csv", text(delimiter=";")),
        ("tab.csv", text(delimiter="\t")),
        ("tab.TSV", text(delimiter="\t")),
        ("excel.csv", "sep=;\r\n" + text(delimiter=";", end="\r\n")),
        ("crlf.csv", text(end="\r\n")),
        ("mark.csv", codecs.BOM_UTF8 + text().encode()),
        ("latin1.csv", text(delimiter=";").encode("latin-1")),
        ("cp1252.csv", text(WITH_OTHERS).replace("checked", "checked \u201etwice\u201c").encode("cp1252")),
        ("undefined.csv", text(WITH_OTHERS).replace("checked", "\x81").encode("latin-1")),
        ("utf16.csv", text().encode("utf-16")),
        ("utf16be.csv", codecs.BOM_UTF16_BE + text(delimiter="\t").encode("utf-16-be")),
        ("without_mark.csv", text(delimiter="\t").encode("utf-16-le")),
        ("utf32.csv", text().encode("utf-32")),
        ("capitals.csv", text(HEADER_IN_CAPITALS)),
        ("blanks.csv", text(BLANK_AFTER_COMMAS)),
        ("quoted.csv", text([[f'"{cell}"' for cell in line] for line in LINES])),
        ("others.csv", text(WITH_OTHERS)),
        ("comment.csv", "# made by line 3; uri\n\n" + text()),
        ("ends.csv", text() + "\n\n"),
        ("cleared.csv", text(delimiter=";") + ";;;\n;;;\n"),
        ("no_end.csv", text().rstrip("\n")),
        ("windows.csv", text().replace("img/", "img\\")),
    ],
)
def test_a_list_is_the_same_however_it_is_written(tmp_path, name, content):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert read(tmp_path / name) == EXPECTED


LABELS = [
    *[
        (word, 0)
        for word in ("0", "0.0", "0,0", "false", "False", "good", "OK", "Normal", "PASS", "non-defective", " ok ")
    ],
    *[(word, 1) for word in ("1", "1.0", "TRUE", "bad", "NG", "defect", "Anomaly", "nok", "fail")],
    *[(word, None) for word in ("", "nan", "NaN", "None", "NULL", "n/a", "unknown", "?")],
]


@pytest.mark.parametrize(("word", "label"), LABELS)
def test_labels_as_people_write_them(tmp_path, word, label):
    (tmp_path / "t.csv").write_text(f"uri;label\nx/a.png;{word}\n")
    assert read(tmp_path / "t.csv") == [("x/a.png", "x", "test", label)]


URIS = pa.array(["img/a.png", "img/b.png"])


@pytest.mark.parametrize(
    ("column", "values", "expected"),
    [
        ("label", pa.array([0, 1], pa.int64()), [0, 1]),
        ("label", pa.array([0, None], pa.uint8()), [0, None]),
        ("label", pa.array([False, True]), [0, 1]),
        ("label", pa.array([0.0, float("nan")]), [0, None]),
        ("label", pa.array([1.0, None]), [1, None]),
        ("label", pa.array(["OK", "NG"]).dictionary_encode(), [0, 1]),
        ("label", pa.nulls(2), [None, None]),
        ("category", pa.array([7, 12]), ["7", "12"]),
        ("category", pa.array([7.0, 12.0]), ["7", "12"]),
        ("category", pa.array([7, 7]).dictionary_encode(), ["7", "7"]),
        ("category", pa.array(["007", "1"], pa.large_string()), ["007", "1"]),
        ("category", pa.array(["a", "NA"], pa.string_view()), ["a", "NA"]),
        ("category", pa.array([b"a", b"null"]), ["a", "null"]),
        ("category", pa.array([datetime.date(2026, 1, 2)] * 2), ["2026-01-02"] * 2),
        ("category", pa.array([True, False]), ["true", "false"]),
        ("category", pa.array([None, ""]), ["img", "img"]),
        ("split", pa.array(["TRAIN", None]).dictionary_encode(), ["train", "test"]),
        ("defect", pa.array([None, 3.0]), [None, "3"]),
        ("uri", URIS.cast(pa.large_string()), URIS.to_pylist()),
        ("uri", URIS.dictionary_encode(), URIS.to_pylist()),
    ],
)
def test_columns_of_any_type_are_cast_at_the_door(tmp_path, column, values, expected):
    columns = {"uri": URIS, column: values}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    table = read_manifest(str(tmp_path / "t.parquet"), DataOptions()).table.sort_by("image_id")
    shown = "image_id" if column == "uri" else column
    assert table[shown].to_pylist() == expected


def test_a_timestamp_as_a_category_is_text(tmp_path):
    table = pa.table({"uri": URIS[:1], "category": pa.array([datetime.datetime(2026, 1, 2, 3)])})
    pq.write_table(table, tmp_path / "t.parquet")
    assert read(tmp_path / "t.parquet")[0][1].startswith("2026-01-02 03:00:00")


def test_text_that_means_nothing_elsewhere_is_a_name(tmp_path):
    (tmp_path / "t.csv").write_text("uri,category\na.png,NA\nb.png,null\nc.png,nan\nd.png,007\n")
    assert [row[1] for row in read(tmp_path / "t.csv")] == ["007", "NA", "nan", "null"]


def test_a_folder_of_parquet_files_is_a_table(tmp_path):
    for number, category in enumerate(("a", "b")):
        place = tmp_path / "t.parquet" / f"category={category}"
        place.mkdir(parents=True)
        pq.write_table(pa.table({"uri": [f"img/{number}.png"]}), place / "part-0.parquet")
    (tmp_path / "t.parquet/_SUCCESS").touch()
    assert [row[:2] for row in read(tmp_path / "t.parquet")] == [("img/0.png", "a"), ("img/1.png", "b")]


def test_a_hive_key_above_a_table_is_none_of_its_columns(tmp_path):
    place = tmp_path / "category=7"
    place.mkdir()
    pq.write_table(pa.table({"uri": ["img/a.png"]}), place / "t.parquet")
    assert read(place / "t.parquet") == [("img/a.png", "img", "test", None)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no column uri; it has none"),
        ("\n\n", "has no column uri; it has none"),
        ("image_path,label\na,0\n", "has no column uri; it has 'image_path', 'label'"),
        ("image_path;label\na;0\n", "has no column uri; it has 'image_path', 'label'"),
        ("uri,URI\na,b\n", "has two columns uri"),
        ("uri,label\nx/a,0\nx/b,maybe\n", "row 2, column label: 'maybe' is not 0, 1"),
        ("uri,label\nx/a,0\n,\nx/b,-1\n", "row 3, column label: '-1' is not 0, 1"),
        ("uri,label\nx/a,0.5\n", "row 1, column label: '0.5' is not"),
        ("uri,label\nx/a,0\n,1\n", "row 2, column uri: it is empty"),
        ("uri,split\nx/a,dev\n", "row 1, column split: 'dev' is not train or test"),
        ("uri,split,label\nx/a,train,1\n", "row 1, column split: a defective image is not for training"),
        ("uri,label\nx/a,0\nx/b,c,1\n", "row 2: it has 3 columns, not 2 as the header"),
        ("# note\nuri,label\nx/a,0\nx/b\n", "row 2: it has 1 columns, not 2 as the header"),
        ("uri\n", "names no image"),
        ("uri,label\n,\n,\n", "names no image"),
    ],
)
def test_what_is_wrong_is_said_with_row_and_column(tmp_path, content, message):
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(UsageError, match=message) as caught:
        read(tmp_path / "t.csv")
    assert str(caught.value).startswith(str(tmp_path / "t.csv"))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"uri": [["a"]]}, "column uri: it is of type list"),
        ({"uri": [{"a": 1}]}, "column uri: it is of type struct"),
        ({"uri": [b"\xff\xfe"]}, "column uri: it is of type binary"),
        ({"uri": ["x/a"], "label": [7]}, "row 1, column label: '7'"),
        ({"uri": [None], "category": ["x"]}, "row 1, column uri: it is empty"),
        ({"image": ["x/a"]}, "has no column uri; it has 'image'"),
    ],
)
def test_what_is_wrong_with_a_parquet_file_is_said(tmp_path, columns, message):
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    with pytest.raises(UsageError, match=message):
        read(tmp_path / "t.parquet")


def test_two_columns_of_one_name_in_a_parquet_file(tmp_path):
    pq.write_table(pa.table([pa.array(["x/a"])] * 2, names=["uri", "uri"]), tmp_path / "t.parquet")
    with pytest.raises(UsageError, match="has two columns uri"):
        read(tmp_path / "t.parquet")
    pq.write_table(pa.table([pa.array(["x/a"])] * 3, names=["uri", "note", "note"]), tmp_path / "t.parquet")
    assert read(tmp_path / "t.parquet") == [("x/a", "x", "test", None)]


@pytest.mark.parametrize("content", [b"", b"uri\nx/a.png\n", b"PAR1" + bytes(100) + b"PAR1", b"PAR1"])
def test_a_parquet_file_that_is_none(tmp_path, content):
    (tmp_path / "t.parquet").write_bytes(content)
    with pytest.raises(UsageError, match="cannot be read as Parquet"):
        read(tmp_path / "t.parquet")


def test_a_folder_is_no_csv(tmp_path):
    (tmp_path / "t.csv").mkdir()
    with pytest.raises(UsageError, match="cannot be read as CSV"):
        read(tmp_path / "t.csv")


def test_columns_are_found_by_others_too(tmp_path):
    (tmp_path / "t.csv").write_text("Object;image;label;mask\ncandle;a.jpg;normal;\n")
    (row,) = read_columns(storage.to_uri(tmp_path / "t.csv"), ("object", "image", "label")).to_pylist()
    assert row == {"object": "candle", "image": "a.jpg", "label": "normal", "mask": None}


def test_a_backslash_in_the_name_of_a_file_stays(tmp_path):
    tree(tmp_path, "img/a\\b.png")
    (tmp_path / "t.csv").write_text("uri\nimg/a\\b.png\nimg\\c.png\n")
    assert [row[0] for row in read(tmp_path / "t.csv")] == ["img/a\\b.png", "img/c.png"]


def test_names_start_from_the_folder_of_the_table(tmp_path):
    (tmp_path / "t.csv").write_text("uri,mask_uri\nimg/a.png,masks\\a b.png\nimg/b.png,/m/b.png\n")
    table = read_manifest(str(tmp_path / "t.csv"), DataOptions()).table
    assert table["uri"][0].as_py() == (tmp_path / "img/a.png").as_uri()
    assert table["mask_uri"].to_pylist() == [(tmp_path / "masks/a b.png").as_uri(), "file:///m/b.png"]


def test_many_rows_keep_their_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr("mvad.data.tables.ROWS_PER_CHUNK", 10)
    labels = np.zeros(35, int).astype(str)
    labels[31] = "x"
    (tmp_path / "t.csv").write_text("uri,label\n" + "".join(f"i/{n}.png,{label}\n" for n, label in enumerate(labels)))
    with pytest.raises(UsageError, match="row 32, column label"):
        read(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("http://host/a.png", "http:// is not supported"),
        ("ftp://user:password@host/a.png", "ftp:// is not supported"),
        ("nonsense://x", "nonsense:// is not supported"),
        ("s3://", "names no bucket"),
        ("s3:///a.png", "names no bucket"),
        ("s3://[bad/a.png", "is not a URI"),
        ("s3://bad bucket/a.png", "cannot be reached"),
        ("s3://bucket/a.png?unheard=of", "an endpoint of its own"),
        ("s3://bucket/a.png?endpoint_override=evil:1&scheme=http", "an endpoint of its own"),
        ("s3://KEY:SECRET@bucket/a.png", "an endpoint of its own, or keys"),
        ("file://host/a.png", "another machine"),
        ("file:/nowhere/a.png", "does not exist"),
        ("D:\\dump\\a.png", "does not exist"),
        ("\\\\server\\share\\a.png", "does not exist"),
        ("/dev/zero", "not a regular file"),
        ("/dev/null", "not a regular file"),
        ("pipe", "not a regular file"),
        ("folder", "not a regular file"),
        ("a%00b", "does not exist"),
        ("file:///tmp/a%00b", "cannot be read"),
        ("x" * 5000, "cannot be read"),
        ("a\x1b[31m.png", "does not exist"),
    ],
)
def test_a_uri_that_cannot_be_opened_is_an_error_at_once(tmp_path, monkeypatch, uri, reason):
    monkeypatch.setattr("socket.create_connection", lambda *_: pytest.fail("it asked a server"))
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "t.csv").write_text(f'uri,category\n"{uri}",x\n')
    (row,) = read_manifest(str(tmp_path / "t.csv"), DataOptions()).table.to_pylist()
    with pytest.raises(ValueError, match=reason) as caught:
        storage.read_bytes(row["uri"], 100)
    assert "SECRET" not in str(row) + str(caught.value)
    assert "password" not in str(row) + str(caught.value)
