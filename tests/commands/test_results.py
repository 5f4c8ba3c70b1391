"""Rows of nights as tables: every value in every format, no formula, and nothing read or written besides."""

import csv
import datetime
import io
import json
import os
import subprocess
import sys
import zipfile

import openpyxl
import pyarrow.parquet as pq
import pytest

import mvad
from helpers.score_files import write_rows
from helpers.tiles import ROOT
from mvad.errors import UsageError
from mvad.exports import fiftyone
from mvad.nights import rows as night_rows
from mvad.nights import tables
from mvad.nights.selection import PEOPLE_COLUMNS

BOX = {"x": 30, "y": 15, "width": 60, "height": 15, "area": 9, "peak": 2.3, "mean": 1.7}
FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"]


@pytest.fixture
def nights(tmp_path):
    root = tmp_path / "nights"
    flagged = {"is_anomaly": True, "verdict": "anomalous", "p_value": 0.0625, "threshold": 0.1, "regions": [BOX]}
    first = [{"image_id": "a", "score": 2.3, "label": 1, "defect": "dent", **flagged}, {"image_id": "b", "regions": []}]
    write_rows(root / "date=2026-11-22", "cap", first, without=["night", "scored_at", "method", "backbone"])
    write_rows(root / "date=2026-11-23", "cap", [{"image_id": "a", "is_anomaly": False, "threshold": float("-inf")}])
    write_rows(root / "date=2026-11-23", "=lid", [{"image_id": name, "patch_scores": [0.5]} for name in FORMULAS])
    return root


def export(nights, capsys, **options):
    mvad.export_results(str(nights), quiet=True, **options)
    return capsys.readouterr().out


def test_rows_are_chosen_sorted_and_limited(nights, capsys):
    assert export(nights, capsys, where="category = 'cap'", columns="night,image_id,score") == (
        'night,image_id,score\n2026-11-22,"a",2.3\n2026-11-22,"b",1.5\n2026-11-23,"a",1.5\n'
    )
    assert export(nights, capsys, where="is_anomaly -- those", columns="image_id") == 'image_id\n"a"\n'
    assert export(nights, capsys, since="2026-11-23", order="image_id desc", limit=1, columns="image_id").endswith(
        '\n"a"\n'
    )
    assert export(nights, capsys, until="2026-11-22", order="score", columns="image_id").split() == [
        *("image_id", '"b"', '"a"')
    ]
    assert export(nights, capsys, where="false", columns="image_id") == "image_id\n"
    assert export(nights, capsys, where="false", format="json") == "[]\n"


def test_csv_is_for_people_and_has_no_formulas(nights, capsys):
    rows = list(csv.DictReader(io.StringIO(export(nights, capsys), newline="")))
    assert tuple(rows[0]) == PEOPLE_COLUMNS
    assert not {"patch_scores", "patch_grid", "model_id", "run_id"} & {*PEOPLE_COLUMNS}
    lids = {row["image_id"] for row in rows if row["category"] == "'=lid"}
    assert lids == {f"'{name}" for name in FORMULAS}
    assert json.loads(rows[0]["regions"]) == [BOX]
    assert (rows[0]["score"], rows[0]["threshold"], rows[1]["regions"]) == ("2.3", "0.1", "[]")


def test_json_has_every_value(nights, capsys):
    rows = json.loads(export(nights, capsys, format="json", columns="all"))
    lines = export(nights, capsys, format="jsonl", columns="all").splitlines()
    assert list(map(json.loads, lines)) == rows
    assert len(rows) == 9
    assert {*rows[0]} == {*night_rows.SCORES.names, "folder"}
    assert (rows[0]["score"], rows[0]["regions"], rows[0]["night"]) == (2.3, [BOX], "2026-11-22")
    (last,) = [row for row in rows if row["night"] == "2026-11-23" and row["image_id"] == "a"]
    assert last["threshold"] is None
    assert datetime.datetime.fromisoformat(last["scored_at"]).utcoffset() == datetime.timedelta(0)


def test_xlsx_holds_texts_and_no_formula(nights, tmp_path):
    target = tmp_path / "rows.xlsx"
    assert mvad.export_results(str(nights), out=str(target), quiet=True) == 9
    header, *rows = openpyxl.load_workbook(target)["rows"].iter_rows()
    assert tuple(cell.value for cell in header) == PEOPLE_COLUMNS
    found = [dict(zip(PEOPLE_COLUMNS, row, strict=True)) for row in rows]
    assert {row["image_id"].value.replace("_x000D_", "\r") for row in found if row["category"].value == "=lid"} == {
        *FORMULAS
    }
    assert {row["image_id"].data_type for row in found} == {"s"}
    assert found[0]["night"].value == datetime.datetime(2026, 11, 22)
    assert (found[0]["score"].value, found[0]["is_anomaly"].value) == (2.3, True)
    assert json.loads(found[0]["regions"].value) == [BOX]
    assert [row["threshold"].value for row in found if row["night"].value.day == 23][-1] in (None, "-inf")
    with zipfile.ZipFile(target) as book:
        assert b"<f>" not in book.read("xl/worksheets/sheet1.xml")


def test_what_does_not_fit_into_a_sheet_is_refused(nights, tmp_path, monkeypatch):
    target = tmp_path / "rows.xlsx"
    monkeypatch.setattr(tables, "MAX_XLSX_ROWS", 3)
    with pytest.raises(UsageError, match=r"^9 rows are more than the 3 of a sheet of XLSX; choose fewer"):
        mvad.export_results(str(nights), out=str(target))
    assert mvad.export_results(str(nights), out=str(target), limit=3, quiet=True) == 3
    monkeypatch.setattr(tables, "MAX_XLSX_TEXT", 20)
    before = target.read_bytes()
    with pytest.raises(UsageError, match="a text in the column regions has"):
        mvad.export_results(str(nights), out=str(target), limit=1, columns="regions")
    assert target.read_bytes() == before


def test_parquet_has_the_types_of_score_rows(nights, tmp_path):
    mvad.export_results(str(nights), out=str(tmp_path / "rows.parquet"), columns="all", quiet=True)
    table = pq.read_table(tmp_path / "rows.parquet")
    assert len(table) == 9
    assert all(table.schema.field(name).type == night_rows.SCORES.field(name).type for name in night_rows.SCORES.names)


def test_many_rows_come_in_batches(nights, capsys, monkeypatch):
    whole = {name: export(nights, capsys, format=name) for name in ("csv", "json", "jsonl", "fiftyone", "label-studio")}
    monkeypatch.setattr(night_rows, "BATCH_ROWS", 1)
    for name, text in whole.items():
        assert export(nights, capsys, format=name) == text
    assert len(json.loads(whole["fiftyone"])["samples"]) == len(json.loads(whole["label-studio"])) == 9


def test_fiftyone_has_a_field_for_each_value_and_boxes_in_shares(nights, capsys):
    document = json.loads(export(nights, capsys, format="fiftyone", limit=2))
    assert document["media_type"] == "image"
    assert document["sample_fields"] == fiftyone.FIELDS
    first, second = document["samples"]
    assert {*first} == {*fiftyone.FIELDS}
    assert first["filepath"] == "/data/a"
    assert first["ground_truth"] == {"_cls": "Classification", "label": "dent"}
    assert first["verdict"] == {"_cls": "Classification", "label": "anomalous"}
    assert first["metadata"] == {"_cls": "ImageMetadata", "width": 120, "height": 60}
    assert first["regions"]["detections"] == [
        {
            "_cls": "Detection",
            "label": "anomaly",
            "bounding_box": [0.25, 0.25, 0.5, 0.25],
            "area": 9,
            "peak": 2.3,
            "mean": 1.7,
        }
    ]
    assert second["verdict"] is second["ground_truth"] is None
    assert second["regions"]["detections"] == []


def test_label_studio_has_predictions_in_percent(nights, capsys):
    first, second = json.loads(export(nights, capsys, format="label-studio", limit=2))
    assert first["data"] == {
        "image": "/data/local-files/?d=data/a",
        "image_id": "a",
        "category": "cap",
        "night": "2026-11-22",
        "score": 2.3,
    }
    (prediction,) = first["predictions"]
    rectangle, choice = prediction["result"]
    assert prediction["score"] == 1 - 0.0625
    value = rectangle["value"]
    assert [value.pop(name) for name in ("x", "y", "width", "height")] == [25, 25, 50, 25]
    assert value == {"rotation": 0, "rectanglelabels": ["anomaly"]}
    assert (rectangle["original_width"], rectangle["original_height"]) == (120, 60)
    assert choice["value"] == {"choices": ["anomalous"]}
    assert second["predictions"] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"where": "nonsense > 1"}, "--where 'nonsense > 1' is not right .*nonsense.*; the columns are image_id, uri"),
        ({"where": "score = 'x'"}, "Could not convert string 'x' to FLOAT"),
        ({"where": "true; drop view rows"}, "is not right"),
        ({"where": "true) or (true"}, "is not right"),
        ({"order": "nonsense"}, "--order 'nonsense' is not right .*; the columns are"),
        ({"columns": "score,nonsense"}, "--columns 'nonsense' is unknown; the columns are image_id, uri"),
        ({"columns": "score", "format": "fiftyone"}, "has columns of its own; leave out --columns"),
        ({"since": "yesterday"}, "--since 'yesterday' is not a date such as"),
        ({"since": "2026-12-01"}, "no results in .* from 2026-12-01"),
        ({"format": "xlsx"}, "--format xlsx is not for a terminal; name a file with --out"),
        ({"format": "csv", "out": "rows.xlsx"}, "does not end in .csv"),
        ({"out": "rows.txt"}, "does not end in .csv"),
    ],
)
def test_wrong_uses_are_one_sentence_and_print_nothing(nights, tmp_path, capsys, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message) as caught:
        mvad.export_results(str(nights), **options)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""
    assert os.listdir(tmp_path) == ["nights"]


@pytest.mark.parametrize(
    "where",
    [
        "exists (select * from read_text('FILE'))",
        "exists (select * from read_csv('FILE'))",
        "exists (select * from 'FILE')",
        "exists (select * from glob('FOLDER/*'))",
        "exists (select * from secret_frame)",
        "true) union all copy (select 1) to 'FOLDER/written.csv' --",
    ],
)
def test_an_expression_reads_and_writes_no_other_file(nights, tmp_path, where):
    secret_frame = pq.read_table(next(nights.rglob("*.parquet")))  # that DuckDB could find by its name
    (tmp_path / "secret.csv").write_text("a\n1\n")
    text = where.replace("FILE", str(tmp_path / "secret.csv")).replace("FOLDER", str(tmp_path))
    for name in ("where", "order"):
        with pytest.raises(UsageError):
            mvad.export_results(str(nights), **{name: text})
    assert len(secret_frame)
    assert sorted(os.listdir(tmp_path)) == ["nights", "secret.csv"]


def test_no_file_is_written_among_the_results(nights):
    with pytest.raises(UsageError, match="lies in the folder of the results"):
        mvad.export_results(str(nights), out=str(nights / "rows.csv"))


def test_a_damaged_file_leaves_the_file_that_was_there(nights, tmp_path):
    target = tmp_path / "rows.csv"
    target.write_text("before")
    damaged = next(nights.rglob("*.parquet"))
    damaged.write_bytes(damaged.read_bytes()[:-8])
    with pytest.raises(UsageError, match=damaged.name):
        mvad.export_results(str(nights), out=str(target))
    assert target.read_text() == "before"


def test_a_reader_that_has_enough_ends_the_command_without_a_word(tmp_path):
    images = [{"image_id": f"{number:06}", "error": "x" * 100} for number in range(3000)]
    write_rows(tmp_path / "nights/date=2026-11-22", "cap", images)
    command = [sys.executable, "-m", "mvad", "results", str(tmp_path / "nights")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    assert process.stdout.readline().startswith(b"night,image_id")
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == (b"", 0)
    process.stderr.close()
