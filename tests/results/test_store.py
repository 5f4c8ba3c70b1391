"""Tables of results on disk: written once, read by columns, category or image, and repaired."""

import hashlib
import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from mvad import results
from mvad.calibration import DecisionRule
from mvad.errors import UsageError
from mvad.results import store
from mvad.results.schema import SCORES, SUMMARY, RowOrigin, score_table
from mvad.results.store import drop_duplicates, drop_rows
from mvad.results.verdicts import decide, decide_together
from mvad.storage import to_uri


def images(names, category="cap"):
    """Rows of a manifest."""
    uris = [f"file:///{name}" for name in names]
    return pa.table(
        {"image_id": names, "uri": uris, "category": [category] * len(names), "split": ["test"] * len(names)}
    )


def write(out, names, scores, category="cap", rule=None):
    """Write rows of images with these scores; those whose score is None have an error."""
    scores = pa.array(scores, pa.float32())
    columns = {
        "score": scores,
        "status": pc.if_else(pc.is_valid(scores), "ok", "error"),
        "error": pc.if_else(pc.is_valid(scores), pa.scalar(None, pa.string()), "broken"),
        "patch_scores": pa.array(
            [None if score is None else [score] for score in scores.to_pylist()], pa.list_(pa.float32())
        ),
        **decide(scores, rule or DecisionRule()),
    }
    store.write_part(to_uri(out), score_table(images(names, category), RowOrigin("run"), columns))


def rows_of(out):
    return {row["image_id"]: row for row in results.read_scores(to_uri(out)).to_pylist()}


def files_of(out):
    return {path: path.stat().st_mtime_ns for path in out.glob("scores/**/*.parquet")}


@pytest.mark.parametrize("names", [["a\nb"], ["a\\nb"], ["a\\", "nb"], ["a\\\nb"], ["a", "", "b"]])
def test_line_breaks_in_ids_never_make_two_parts_one(tmp_path, names):
    write(tmp_path, ["a", "b"], [1, 2])
    write(tmp_path, names, [3.0] * len(names))
    assert len(files_of(tmp_path)) == 2
    assert sorted(results.read_scores(to_uri(tmp_path))["image_id"].to_pylist()) == sorted(["a", "b", *names])


def test_a_part_is_named_after_its_rows_and_replaces_itself(tmp_path):
    for _ in range(2):
        write(tmp_path, ["a", "b"], [1, 2], "odd/name")
    (file,) = files_of(tmp_path)
    digest = hashlib.sha256(b"a\nb").hexdigest()[:24]
    assert file.name == f"part-{digest}.parquet"
    assert pq.read_schema(file).equals(SCORES)
    ((category, uri),) = results.list_parts(to_uri(tmp_path))
    assert category == "odd/name"
    assert results.list_parts(to_uri(tmp_path), "odd/name") == [(category, uri)]
    assert results.read_part(uri, ["image_id"])["image_id"].to_pylist() == ["a", "b"]


def test_rows_are_read_by_column_category_and_condition(tmp_path):
    write(tmp_path, ["cap/b", "cap/a"], [1, None])
    write(tmp_path, ["lid/c"], [3], "lid")
    out = to_uri(tmp_path)
    table = results.read_scores(out)
    assert table.schema.equals(SCORES)
    assert table["image_id"].to_pylist() == ["cap/a", "cap/b", "lid/c"]
    assert results.read_scores(out, ["score"]).to_pydict() == {"score": [None, 1, 3]}
    assert results.read_scores(out, ["image_id"], "lid").to_pydict() == {"image_id": ["lid/c"]}
    assert len(results.read_scores(out, None, "unknown")) == 0
    assert results.read_scores(out, ["image_id"], condition=pc.field("score") > 2)["image_id"].to_pylist() == ["lid/c"]
    assert [(name, len(rows)) for name, rows in results.read_by_category(out, ["lid", "cap"], ["score"])] == [
        ("lid", 1),
        ("cap", 2),
    ]
    assert results.read_errors(out) == [{"image_id": "cap/a", "category": "cap", "split": "test", "error": "broken"}]
    status = store.read_status(out)
    assert dict(zip(status["image_id"].to_pylist(), status["status"].to_pylist(), strict=True)) == {
        "cap/a": "error",
        "cap/b": "ok",
        "lid/c": "ok",
    }
    assert set(status["file"].to_pylist()) == {uri for _, uri in results.list_parts(out)}


def test_some_images_are_read_from_their_files_alone(tmp_path):
    write(tmp_path, ["a", "b"], [1, 2])
    write(tmp_path, ["c"], [3])
    table = results.read_images(to_uri(tmp_path), "cap", ["c", "a", "unknown"], ["image_id", "patch_scores"])
    assert table.to_pydict() == {"image_id": ["a", "c"], "patch_scores": [[1], [3]]}
    nothing = results.read_images(to_uri(tmp_path), "cap", ["unknown"], ["image_id", "patch_scores"])
    assert nothing.to_pydict() == {"image_id": [], "patch_scores": []}


def test_older_results_keep_the_category_in_the_name_of_the_folder(tmp_path):
    write(tmp_path / "new", ["a", "b"], [1, None])
    folder = tmp_path / "old/scores/category=cap"
    folder.mkdir(parents=True)
    ((_, uri),) = results.list_parts(to_uri(tmp_path / "new"))
    pq.write_table(results.read_part(uri).drop_columns(["category"]), folder / "part-0.parquet")
    old, new = to_uri(tmp_path / "old"), to_uri(tmp_path / "new")
    assert results.read_scores(old).equals(results.read_scores(new))
    assert results.read_scores(old, ["score"], "cap").equals(results.read_scores(new, ["score"], "cap"))
    assert results.read_errors(old) == results.read_errors(new)
    assert [category for category, _ in results.list_parts(old)] == ["cap"]
    drop_rows(old, ["a"])
    assert list(rows_of(tmp_path / "old")) == ["b"]


def test_without_results_there_is_a_sentence(tmp_path):
    out = to_uri(tmp_path)
    for read in (results.read_scores, results.read_errors, results.list_parts):
        with pytest.raises(UsageError, match=r"no results in .*; make some with mvad run or mvad score\."):
            read(out)
    with pytest.raises(UsageError, match="no results in"):
        results.read_scores(out, None, "cap")
    assert len(store.read_status(out)) == 0
    assert results.read_summary(out) == []
    with pytest.raises(UsageError, match=r"run.json cannot be read"):
        results.read_run(out)


def test_a_file_is_rewritten_only_if_it_changes(tmp_path):
    write(tmp_path, ["a", "b"], [1, 2])
    before = files_of(tmp_path)
    ((_, uri),) = results.list_parts(to_uri(tmp_path))
    store.rewrite(uri, lambda rows: rows)
    assert files_of(tmp_path) == before
    store.rewrite(uri, lambda rows: rows.slice(1))
    assert list(rows_of(tmp_path)) == ["b"]
    store.rewrite(uri, lambda rows: rows.slice(1))
    assert files_of(tmp_path) == {}


def test_rows_that_were_written_twice_are_there_once(tmp_path):
    """A retried task whose blocks were divided differently."""
    write(tmp_path, ["a", "b", "c"], [1, 2, 3])
    write(tmp_path, ["b", "c", "d"], [2, 3, 4])
    write(tmp_path, ["a", "b", "c", "d"], [1, 2, 3, 4])
    (tmp_path / "scores/.half.unfinished").write_bytes(b"half a fi")
    assert len(results.read_scores(to_uri(tmp_path))) == 10
    for _ in range(2):
        status = drop_duplicates(to_uri(tmp_path))
        assert sorted(status["image_id"].to_pylist()) == ["a", "b", "c", "d"]
        assert status["status"].to_pylist() == ["ok"] * 4
        rows = results.read_scores(to_uri(tmp_path)).to_pylist()
        assert [(row["image_id"], row["score"]) for row in rows] == [("a", 1), ("b", 2), ("c", 3), ("d", 4)]
    before = files_of(tmp_path)
    drop_duplicates(to_uri(tmp_path))
    assert files_of(tmp_path) == before
    assert not list(tmp_path.glob("**/*.unfinished"))


def test_nothing_to_repair_in_an_empty_folder(tmp_path):
    status = drop_duplicates(to_uri(tmp_path))
    assert status.column_names == store.STATUS
    assert len(status) == 0


def test_rows_of_some_images_are_dropped_from_their_files(tmp_path):
    write(tmp_path, ["a", "b"], [1, 2])
    write(tmp_path, ["c"], [3])
    write(tmp_path, ["d"], [4], "lid")
    before = files_of(tmp_path)
    drop_rows(to_uri(tmp_path), [])
    drop_rows(to_uri(tmp_path), ["unknown"])
    assert files_of(tmp_path) == before
    drop_rows(to_uri(tmp_path), {"a", "c"})
    assert list(rows_of(tmp_path)) == ["b", "d"]
    assert len(files_of(tmp_path)) == 2


def test_a_full_disk_spoils_no_file(tmp_path, monkeypatch):
    write(tmp_path, ["a", "b"], [1, 2])

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path, ["a", "b"], [3, 4])
    with pytest.raises(OSError, match="No space left"):
        drop_rows(to_uri(tmp_path), {"a"})
    monkeypatch.undo()
    assert [row["score"] for row in rows_of(tmp_path).values()] == [1, 2]
    assert not list(tmp_path.glob("**/*.unfinished"))


def test_a_table_of_scores_has_every_column(tmp_path):
    manifest = images(["a", "b"]).append_column("ignored", pa.array([1, 2]))
    table = score_table(manifest, RowOrigin("run"), {"status": pa.array(["ok", "ok"])})
    assert table.schema.equals(SCORES)
    assert table["image_id"].to_pylist() == ["a", "b"]
    assert table["run_id"].to_pylist() == ["run", "run"]
    assert table["score"].null_count == table["label"].null_count == 2


def test_regions_come_back_as_they_were_written_and_are_null_in_older_files(tmp_path):
    box = {"x": 3, "y": 5, "width": 7, "height": 2, "area": 11, "peak": 2.5, "mean": 1.5}
    columns = {"status": pa.array(["ok"] * 3), "regions": pa.array([[box], [], None], SCORES.field("regions").type)}
    columns["anomalous_area"] = pa.array([0.25, 0, None], pa.float64())
    store.write_part(to_uri(tmp_path), score_table(images(["a", "b", "c"]), RowOrigin("run"), columns))
    older = score_table(images(["d"]), RowOrigin("run"), {"status": pa.array(["ok"])}).drop_columns(
        ["regions", "anomalous_area"]
    )
    store.write_part(to_uri(tmp_path), older)
    names = ["image_id", "regions", "anomalous_area"]
    expected = {"image_id": ["a", "b", "c", "d"], "regions": [[box], [], None, None]}
    expected["anomalous_area"] = [0.25, 0.0, None, None]
    assert results.read_scores(to_uri(tmp_path), names).to_pydict() == expected
    parts = [results.read_part(uri, names) for _, uri in results.list_parts(to_uri(tmp_path))]
    assert all(part.schema.field("regions").type == SCORES.field("regions").type for part in parts)
    assert pa.concat_tables(parts).sort_by("image_id").to_pydict() == expected


def test_images_that_cannot_be_scored_get_their_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "MAX_ROWS_PER_FILE", 2)
    names = [f"{number}.png" for number in range(5)]
    table = pa.concat_tables([images(names), images(["lid.png"], "lid")])
    reasons = {name: f"because of {name}" for name in [*names, "lid.png"]}
    store.write_unscored_rows(to_uri(tmp_path), table, reasons, RowOrigin("run"))
    rows = rows_of(tmp_path)
    assert {name: row["error"] for name, row in rows.items()} == reasons
    assert {row["status"] for row in rows.values()} == {"error"}
    assert {row["category"] for name, row in rows.items() if name != "lid.png"} == {"cap"}
    assert all(row["score"] is row["is_anomaly"] is row["threshold"] is None for row in rows.values())
    assert len(files_of(tmp_path)) == 4  # 2 + 2 + 1 images of cap, one of lid
    store.write_unscored_rows(to_uri(tmp_path), table.slice(0, 0), {}, RowOrigin("run"))
    assert len(files_of(tmp_path)) == 4


def test_an_image_is_flagged_above_the_threshold(tmp_path):
    """Of 19 calibration scores, 20 is above all, 18 is as high as the highest, -1 below all."""
    rule = DecisionRule("m", np.arange(19, dtype=np.float32), "conformal", 18.0)
    columns = decide(pa.array([20, 18, -1, None], pa.float32()), rule)
    assert columns["p_value"].to_pylist() == [1 / 20, 2 / 20, 1, None]
    assert columns["threshold"].to_pylist() == [18.0] * 4
    assert columns["is_anomaly"].to_pylist() == [True, False, False, None]
    without = decide(pa.array([20, None], pa.float32()), DecisionRule("m"))
    assert all(column.to_pylist() == [None, None] for column in without.values())
    assert [without[name].type for name in ("p_value", "threshold", "is_anomaly")] == [
        SCORES.field(name).type for name in ("p_value", "threshold", "is_anomaly")
    ]


def test_the_batch_as_a_whole_can_be_decided_on(tmp_path):
    """19 calibration scores: the p-values of 4 images are 1/20, 1/20, 11/20 and 1; at 10 % two are flagged."""
    rule = DecisionRule("m", np.arange(19, dtype=np.float32), "conformal", 18.0)
    write(tmp_path, ["a", "b"], [99, 50], rule=rule)
    write(tmp_path, ["c", "d"], [8.5, -1], rule=rule)
    write(tmp_path, ["e"], [None], rule=rule)
    write(tmp_path, ["f"], [99], "lid", rule=rule)
    decide_together(to_uri(tmp_path), "cap", 0.1)
    rows = rows_of(tmp_path)
    assert [rows[name]["p_value"] for name in "abcde"] == [1 / 20, 1 / 20, 11 / 20, 1, None]
    assert [rows[name]["is_anomaly"] for name in "abcde"] == [True, True, False, False, None]
    assert [rows[name]["threshold"] for name in "abcdef"] == [8.5, 8.5, 8.5, 8.5, None, 18.0]
    decide_together(to_uri(tmp_path), "cap", 0.04)
    rows = rows_of(tmp_path)
    assert not any(rows[name]["is_anomaly"] for name in "abcde")
    assert rows["a"]["threshold"] == 99


def test_when_all_images_are_flagged_the_threshold_is_below_all(tmp_path):
    rule = DecisionRule("m", np.arange(19, dtype=np.float32), "conformal", 18.0)
    write(tmp_path, ["a", "b"], [99, 50], rule=rule)
    decide_together(to_uri(tmp_path), "cap", 0.1)
    assert {row["threshold"] for row in rows_of(tmp_path).values()} == {-np.inf}
    assert all(row["is_anomaly"] for row in rows_of(tmp_path).values())


def test_the_summary_has_every_column(tmp_path):
    out = to_uri(tmp_path)
    rows = results.write_summary(out, [{"category": "cap", "n_good": 3, "image_auroc": 0.5}])
    assert list(rows[0]) == SUMMARY.names
    assert (rows[0]["n_good"], rows[0]["image_auroc"], rows[0]["note"]) == (3, 0.5, None)
    assert results.read_summary(out) == rows == json.loads((tmp_path / "summary.json").read_text())
    assert pq.read_table(tmp_path / "summary.parquet").schema.equals(SUMMARY)


def test_only_finished_runs_are_read(tmp_path):
    out = to_uri(tmp_path)
    results.write_json(f"{out}/run.json", {"command": "run", "status": "running"})
    with pytest.raises(UsageError, match=r"has not ended; wait for it or run it again\."):
        results.read_finished_run(out)
    results.write_json(f"{out}/run.json", {"command": "run", "status": "done"})
    assert results.read_finished_run(out) == results.read_run(out) == {"command": "run", "status": "done"}
    for name in ("knn", "vae"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    results.write_json(f"{out}/run.json", {"command": "compare", "status": "done"})
    with pytest.raises(UsageError, match=r"holds a comparison; name one of its runs, in .*/runs: knn, vae\."):
        results.read_finished_run(out)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(UsageError, match=r"run.json cannot be read\."):
        results.read_run(out)
    with pytest.raises(ValueError, match="not JSON compliant"):
        results.write_json(f"{out}/run.json", {"score": float("nan")})


def test_folders_of_other_files_are_not_written_to(tmp_path):
    out = to_uri(tmp_path)
    results.ensure_writable(out, replace=False)
    (tmp_path / "scores").mkdir()
    with pytest.raises(UsageError, match=r"holds other files \(scores\); give --out an empty or new folder\."):
        results.ensure_writable(out, replace=True)  # without run.json it is not a run's
    (tmp_path / "run.json").touch()
    with pytest.raises(UsageError, match=r"another run's results; choose another --out, or --new-run"):
        results.ensure_writable(out, replace=False)
    results.ensure_writable(out, replace=True)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UsageError, match=r"holds other files \(notes.txt\)"):
        results.ensure_writable(out, replace=True)
    results.clear(out)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_other_files_stay_outside_of_the_results(tmp_path):
    out = to_uri(tmp_path / "out")
    for target in ("elsewhere", "out2", "out/report.html", "out/report/x"):
        results.ensure_outside(out, to_uri(tmp_path / target), ["report.html", "report"])
    for target in ("out", "out/page.html", "out/scores/report"):
        with pytest.raises(
            UsageError, match=r"lies in the folder of the results; give --to another place, or .*/report\.html\."
        ):
            results.ensure_outside(out, to_uri(tmp_path / target), ["report.html", "report"])
