"""Rows of many nights: all of them, each with its night, whoever wrote them and wherever they lie."""

import datetime
import shutil

import pyarrow.parquet as pq
import pytest

from helpers.score_files import write_rows
from mvad.errors import UsageError
from mvad.nights.rows import NightRows
from mvad.results.nights import list_nights
from mvad.results.schema import SCORES
from mvad.storage import to_uri

EACH = "SELECT night, category, image_id, score FROM rows ORDER BY ALL"
LATER = ["night", "scored_at", "method", "backbone"]  # columns
DAYS = [datetime.date(2026, 11, day) for day in (22, 23, 24)]


@pytest.fixture
def nights(tmp_path):
    """Three nights of two images; the files of the first lack the columns that came later."""
    root = tmp_path / "nights [of] cap*"
    for number, day in enumerate(DAYS):
        images = [{"image_id": "a", "score": number}, {"image_id": "b", "score": number + 0.5}]
        write_rows(root / f"date={day}", "cap", images, without=LATER if number == 0 else ())
    for other in ("date=2026-02-31", "date=old", "labels"):
        write_rows(root / other, "cap", [{"image_id": "c"}])
    return root


def rows(root, query=EACH, **between):
    return NightRows.open(to_uri(root), **between).query(query).to_pylist()


def test_every_row_has_its_night(nights):
    found = rows(nights)
    assert [(row["night"], row["image_id"], row["score"]) for row in found] == [
        (day, name, number + score) for number, day in enumerate(DAYS) for name, score in (("a", 0), ("b", 0.5))
    ]
    assert list(list_nights(to_uri(nights)).values()) == DAYS


def test_nights_between_dates(nights):
    assert {row["night"] for row in rows(nights, since=DAYS[1], until=DAYS[1])} == {DAYS[1]}
    with pytest.raises(UsageError, match=r"no results in .* from 2026-12-01 to the last"):
        rows(nights, since=datetime.date(2026, 12, 1))


def test_the_columns_are_those_of_score_rows_and_the_folder(nights):
    table = NightRows.open(to_uri(nights)).query("SELECT * FROM rows")
    assert {*table.column_names} == {*SCORES.names, "folder"}
    for name in SCORES.names:
        assert table.schema.field(name).type == SCORES.field(name).type


def test_a_run_alone_has_no_night(nights):
    assert [(row["night"], row["image_id"]) for row in rows(nights / "labels")] == [(None, "c")]


def test_older_results_are_read_like_others(nights):
    before = rows(nights)
    folder = nights / f"date={DAYS[1]}/scores"
    (path,) = folder.glob("cap/*.parquet")
    older = folder / "category=cap" / path.name
    older.parent.mkdir()
    pq.write_table(pq.read_table(path).drop_columns(["category"]), older)
    shutil.rmtree(folder / "cap")
    assert rows(nights) == before


def test_no_other_file_is_read(nights, tmp_path):
    (tmp_path / "secret.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UsageError, match="Permission"):
        rows(nights, f"SELECT * FROM '{tmp_path / 'secret.csv'}'")
    with pytest.raises(UsageError):
        rows(nights, f"COPY (SELECT 1) TO '{tmp_path / 'written.csv'}'")
    assert not (tmp_path / "written.csv").exists()


def test_a_damaged_file_is_one_sentence(nights):
    (path,) = (nights / f"date={DAYS[2]}/scores/cap").glob("*.parquet")
    path.write_bytes(b"PAR1 nothing")
    with pytest.raises(UsageError) as caught:
        rows(nights)
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_query_that_is_not_right_is_one_sentence(nights):
    with pytest.raises(UsageError, match="nonsense"):
        rows(nights, "SELECT nonsense FROM rows")
