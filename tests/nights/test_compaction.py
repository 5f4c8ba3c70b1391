"""Many small files become few: the same rows, whatever interrupts it, for readers of every kind."""

import datetime
import itertools
import json
import shutil

import pyarrow.parquet as pq
import pytest

import mvad
from helpers.fault_injection import Killed, killed_at
from helpers.score_files import write_rows, write_run
from mvad import results, storage
from mvad.errors import UsageError
from mvad.nights import compaction
from mvad.nights.compaction import compact_night, same_table
from mvad.nights.rows import NightRows
from mvad.results.joining import Joining
from mvad.results.store import drop_duplicates, drop_rows, to_parquet
from mvad.storage import to_uri

LATER = ["night", "scored_at", "method", "backbone"]
BOX = {"x": 1, "y": 2, "width": 3, "height": 4, "area": 5, "peak": 2.3, "mean": float("nan")}


@pytest.fixture(autouse=True)
def _one_change_after_the_other(monkeypatch):
    monkeypatch.setattr("mvad.storage.files.THREADS", 1)


@pytest.fixture
def nights(tmp_path):
    """Two finished nights of five files each, one of them older and without the columns that came later."""
    root = tmp_path / "nights"
    for day in (22, 23):
        for number in (3, 1, 4, 2, 0):
            rows = [{"image_id": f"{number}-{place}", "score": number} for place in "ba"]
            rows[0] |= {"patch_scores": [float("nan"), 1.0], "patch_grid": [1, 2], "regions": [BOX]}
            write_rows(root / f"date=2026-11-{day}", "cap", rows, without=LATER if number == 1 else ())
        write_rows(root / f"date=2026-11-{day}", "Lid!", [{"image_id": "lid", "score": float("inf")}])
        write_run(root / f"date=2026-11-{day}", cap=1.0)
    return root


def night(nights, day=22):
    return nights / f"date=2026-11-{day}"


def rows_of(folder):
    return results.read_scores(to_uri(folder))


def parts(folder):
    return sorted(path for path in folder.glob("scores/*/*.parquet"))


def seen_by_queries(nights):
    return NightRows.open(to_uri(nights)).query("SELECT * FROM rows ORDER BY night, image_id, score")


def files_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_each_category_of_a_night_becomes_one_sorted_file(nights):
    before, seen = [rows_of(night(nights, day)) for day in (22, 23)], seen_by_queries(nights)
    result = mvad.compact(str(nights), quiet=True)
    assert result == (2, [], 12, 4, [])
    for day, rows in zip((22, 23), before, strict=True):
        assert same_table(rows_of(night(nights, day)), rows)
    assert same_table(seen_by_queries(nights), seen)
    (file,) = night(nights).glob("scores/cap/*")
    joined = pq.read_table(file)
    assert joined["image_id"].to_pylist() == sorted(joined["image_id"].to_pylist())
    assert joined.schema.equals(results.SCORES)
    assert joined["scored_at"].null_count == 2


def test_a_second_time_there_is_nothing_to_do(nights):
    mvad.compact(str(nights), quiet=True)
    before = files_of(nights)
    assert mvad.compact(str(nights), quiet=True) == (0, [], 4, 4, [])
    assert files_of(nights) == before


@pytest.mark.parametrize("limit", [{"MAX_ROWS": 4}, {"MAX_ROWS": 5}, {"MAX_BYTES": 9000}])
def test_files_stay_small_and_a_second_time_there_is_nothing_to_do(nights, monkeypatch, limit):
    for name, value in limit.items():
        monkeypatch.setattr(compaction, name, value)
    before = rows_of(night(nights))
    compact_night(to_uri(night(nights)))
    files = list(night(nights).glob("scores/cap/*.parquet"))
    assert 1 < len(files) < 5
    assert same_table(rows_of(night(nights)), before)
    if "MAX_ROWS" in limit:
        assert sorted(len(pq.read_table(file)) for file in files) == [2, 4, 4]
        groups = sorted([min(ids), max(ids)] for ids in (pq.read_table(file)["image_id"].to_pylist() for file in files))
        assert all(last < first for (_, last), (first, _) in itertools.pairwise(groups))
    assert compact_night(to_uri(night(nights))).rows == 0


def test_a_night_that_has_not_ended_or_is_later_is_left_alone(nights, capsys):
    content = results.read_run(to_uri(night(nights, 22)))
    for status in ("running", "deciding"):
        results.write_json(f"{to_uri(night(nights, 22))}/run.json", content | {"status": status})
        before = files_of(nights)
        result = mvad.compact(str(nights), before="2026-11-23")
        assert result.left_alone == [str(night(nights, 22))]
        assert result.files_before == 0
        assert "is left alone: its run has not ended" in capsys.readouterr().err
        assert files_of(nights) == before
    (night(nights, 22) / "run.json").unlink()
    assert mvad.compact(str(nights), quiet=True).left_alone == [str(night(nights, 22))]
    assert len(parts(night(nights, 22))) == 6
    assert len(parts(night(nights, 23))) == 2


def test_the_results_of_one_run_are_compacted_too(nights, tmp_path):
    assert mvad.compact(str(night(nights)), quiet=True)[2:4] == (6, 2)
    with pytest.raises(UsageError, match="no nights in"):
        mvad.compact(str(tmp_path / "nothing"))
    with pytest.raises(UsageError, match="--before 'soon' is not a date"):
        mvad.compact(str(nights), before="soon")


def test_whenever_it_is_killed_each_reader_sees_each_row_once_and_the_next_time_is_the_end(nights, tmp_path):
    shutil.copytree(nights, tmp_path / "kept")
    expected, seen = rows_of(night(nights)), seen_by_queries(nights)
    mvad.compact(str(nights), quiet=True)
    compacted = {path.relative_to(nights) for path in files_of(nights)}
    n_doubles = 0
    for next_step in (lambda: None, lambda: drop_duplicates(to_uri(night(nights)))):
        n = 0
        while True:
            shutil.rmtree(nights)
            shutil.copytree(tmp_path / "kept", nights)
            try:
                with killed_at(n):
                    mvad.compact(str(nights), quiet=True)
                break
            except Killed:
                n += 1
            assert same_table(rows_of(night(nights)), expected)
            assert same_table(seen_by_queries(nights), seen)
            in_files = [name for part in parts(night(nights)) for name in pq.read_table(part)["image_id"].to_pylist()]
            assert {*in_files} == {*expected["image_id"].to_pylist()}
            n_doubles += len(in_files) > len(expected)
            next_step()
            assert same_table(rows_of(night(nights)), expected)
            mvad.compact(str(nights), quiet=True)
            assert {path.relative_to(nights) for path in files_of(nights)} == compacted
            assert same_table(rows_of(night(nights)), expected)
        assert n == 2 * (2 + 5 + 1)  # a marker, the joined file, five others, and the marker again
    assert n_doubles == 2 * 5


def test_the_next_run_removes_what_is_left(nights):
    """Before it drops rows: otherwise, a row would come back with the files that do not count any more."""
    expected = rows_of(night(nights))
    with pytest.raises(Killed), killed_at(4):
        compact_night(to_uri(night(nights)))
    assert list(night(nights).glob("scores/cap/_joined-*.json"))
    status = drop_duplicates(to_uri(night(nights)))
    assert sorted(status["image_id"].to_pylist()) == expected["image_id"].to_pylist()
    assert not list(night(nights).rglob("_joined-*"))
    assert len(parts(night(nights))) == 2
    drop_rows(to_uri(night(nights)), ["1-a"])
    assert len(rows_of(night(nights))) == len(expected) - 1


def test_a_joined_file_that_a_run_adds_to_is_joined_again(nights):
    compact_night(to_uri(night(nights)))
    write_rows(night(nights), "cap", [{"image_id": "0-new"}])
    expected = rows_of(night(nights))
    assert compact_night(to_uri(night(nights))).rows == 11
    assert same_table(rows_of(night(nights)), expected)


def test_a_damaged_file_is_left_and_named(nights, capsys):
    damaged = parts(night(nights))[-1]
    content = damaged.read_bytes()[:-5]
    damaged.write_bytes(content)
    result = mvad.compact(str(nights))
    assert damaged.name in result.problems[0]
    assert f"{damaged} is damaged" in capsys.readouterr().err
    assert damaged.read_bytes() == content
    assert len(parts(night(nights))) == 3


def test_columns_of_other_types_are_left(nights):
    file = parts(night(nights))[-1]
    table = pq.read_table(file)
    other = table.set_column(table.column_names.index("score"), "score", table["score"].cast("string"))
    file.write_bytes(to_parquet(other))
    before = files_of(night(nights))
    (problem,) = compact_night(to_uri(night(nights))).problems
    assert "cannot be joined" in problem
    assert files_of(night(nights)) == before


def test_columns_of_later_versions_are_kept(nights):
    file = parts(night(nights))[-1]
    table = pq.read_table(file)
    file.write_bytes(to_parquet(table.append_column("of_later", table["score"])))
    compact_night(to_uri(night(nights)))
    joined = pq.read_table(next(night(nights).glob("scores/cap/*.parquet")))
    assert joined["of_later"].null_count == len(joined) - len(table)


def test_a_night_that_changes_meanwhile_keeps_its_files(nights, monkeypatch):
    read = compaction._read

    def change(uri):
        table = read(uri)
        storage.write(uri, to_parquet(table.slice(0, 1).replace_schema_metadata({"changed": "yes"})))
        return table

    before = [path.name for path in parts(night(nights))]
    monkeypatch.setattr(compaction, "_read", change)
    result = compact_night(to_uri(night(nights)))
    assert "has changed meanwhile" in result.problems[0]
    assert [path.name for path in parts(night(nights))] == before


def test_what_the_disk_makes_of_a_file_is_compared(nights, monkeypatch):
    write, expected = storage.write, rows_of(night(nights))

    def spoil(uri, *content):
        write(uri, *([b"PAR1"] if uri.endswith(".parquet") else content))

    monkeypatch.setattr(storage, "write", spoil)
    with pytest.raises(UsageError, match=r"does not hold what was written; its files are as they were"):
        compact_night(to_uri(night(nights)))
    assert same_table(rows_of(night(nights)), expected)
    assert len(parts(night(nights))) == 6
    assert not list(nights.rglob("_joined-*"))


def test_tables_that_differ_in_one_value_are_not_the_same(nights):
    table = rows_of(night(nights))
    assert same_table(table, table)
    for name in ("score", "image_id", "patch_scores", "regions"):
        place = table.column_names.index(name)
        other = table.set_column(place, table.schema.field(name), table[name].take([*range(1, len(table)), 0]))
        assert not same_table(table, other), name
    assert not same_table(table, table.slice(1))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        json.dumps({"joined": "part-a.parquet", "replaced": ["../../run.json"]}).encode(),
        json.dumps({"joined": "part-a.parquet", "replaced": ["part-/../../x.parquet"]}).encode(),
        json.dumps({"joined": "part-a.parquet", "replaced": 7}).encode(),
    ],
)
def test_a_marker_that_is_damaged_or_names_other_files_changes_nothing(nights, content):
    expected, before = rows_of(night(nights)), parts(night(nights))
    marker = night(nights) / "scores/cap/_joined-part-a.parquet.json"
    marker.write_bytes(content)
    with pytest.raises(ValueError, match=r".*"):
        Joining.from_bytes(content)
    assert same_table(rows_of(night(nights)), expected)
    drop_duplicates(to_uri(night(nights)))
    assert not marker.exists()
    assert parts(night(nights)) == before
    assert (night(nights) / "run.json").exists()


def test_dates_of_rows_are_kept(nights):
    mvad.compact(str(nights), quiet=True)
    dates = {row["night"] for row in seen_by_queries(nights).to_pylist()}
    assert dates == {datetime.date(2026, 11, 22), datetime.date(2026, 11, 23)}
