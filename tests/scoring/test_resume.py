"""Scoring night after night: what is missing is scored, what is there stays, and nothing is there twice."""

import json
import shutil

import numpy as np
import pytest

import mvad
from mvad import results
from mvad.commands.nightly import EXIT_DRIFTED, verdict
from mvad.errors import UsageError
from mvad.results import DecisionRule, Destination, write_rows
from mvad.storage import to_uri

DAY = "2026-11-23"
OPTIONS = {"actors": 1, "quiet": True}


def rows_of(out):
    return {row["image_id"]: row for row in results.read_scores(to_uri(out)).to_pylist()}


@pytest.fixture(scope="module")
def night(base_run, tiles, tmp_path_factory):
    """A dump with a half-written file, scored by the nightly job: (dump, models, folder of the nights, result)."""
    folder = tmp_path_factory.mktemp("night")
    shutil.copytree(tiles / "alpha/test", folder / "dump/alpha")
    whole = (folder / "dump/alpha/spot/001.png").read_bytes()
    (folder / "dump/alpha/spot/001.png").write_bytes(whole[:300])
    models = base_run[0] / "models"
    return folder / "dump", models, folder, mvad.nightly(str(folder / "dump"), str(models), str(folder), DAY, **OPTIONS)


@pytest.fixture
def begun(night, tmp_path):
    """Copies that a test may spoil: (dump, models, folder of the night's results)."""
    shutil.copytree(night[0], tmp_path / "dump")
    shutil.copytree(night[2] / f"date={DAY}", tmp_path / "out")
    return tmp_path / "dump", night[1], tmp_path / "out"


def test_a_night_has_its_folder_its_rows_and_verdicts(night, base_run):
    rows = rows_of(night[2] / f"date={DAY}")
    expected = rows_of(base_run[0])
    assert len(rows) == 8
    for name, row in rows.items():
        other = expected[name.replace("alpha/", "alpha/test/")]
        if name == "alpha/spot/001.png":
            assert row["status"] == "error"
            continue
        assert [row[key] for key in ("score", "p_value", "threshold", "is_anomaly", "model_id")] == [
            other[key] for key in ("score", "p_value", "threshold", "is_anomaly", "model_id")
        ]
    assert night[3].summary[0]["n_flagged"] == sum(bool(row["is_anomaly"]) for row in rows.values())


def test_only_what_is_missing_is_scored(begun, tiles, night):
    """As after a kill: rows are missing. Besides, the half-written file is whole by now, and another has come."""
    dump, models, out = begun
    before = rows_of(out)
    lost = sorted(before)[:3]
    results.drop_rows(to_uri(out), lost)
    (out / "_SUCCESS").unlink()
    content = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps({**content, "status": "running"}))
    shutil.copy(tiles / "alpha/test/spot/001.png", dump / "alpha/spot/001.png")
    shutil.copy(tiles / "beta/test/good/000.png", dump / "alpha/new.png")
    (out / "scores/category=alpha/.abc.unfinished").write_bytes(b"half a fi")
    result = mvad.score(str(dump), str(models), str(out), **OPTIONS)
    assert result.exit_code == 0
    rows = rows_of(out)
    assert sorted(rows) == sorted([*before, "alpha/new.png"])
    fresh = {name for name, row in rows.items() if row["run_id"] != content["run_id"]}
    assert fresh == {*lost, "alpha/spot/001.png", "alpha/new.png"}
    for name, row in before.items():
        if row["status"] == "ok":
            assert rows[name]["score"] == row["score"]
    assert rows["alpha/spot/001.png"]["status"] == "ok"
    assert not list(out.glob("**/*.unfinished"))
    assert (out / "_SUCCESS").exists()
    run = json.loads((out / "run.json").read_text())
    assert [one["run_id"] for one in run["earlier_runs"]] == [content["run_id"]]
    assert run["n_rows"] == 9


@pytest.fixture
def no_ray(monkeypatch):
    monkeypatch.setattr("mvad.pipeline.flow.ray_session", lambda address: pytest.fail("Ray was started"))


def test_when_all_is_done_nothing_is(begun, no_ray):
    dump, models, out = begun
    files = {path: path.stat().st_mtime_ns for path in out.glob("scores/**/*.parquet")}
    result = mvad.score(str(dump), str(models), str(out), **OPTIONS)
    assert len(result.errors) == 1
    assert result.summary == json.loads((out / "summary.json").read_text())
    assert {path: path.stat().st_mtime_ns for path in out.glob("scores/**/*.parquet")} == files


def test_a_run_killed_before_its_summary_gets_it(begun, no_ray):
    dump, models, out = begun
    expected = json.loads((out / "summary.json").read_text())
    for name in ("_SUCCESS", "summary.json", "summary.parquet"):
        (out / name).unlink()
    content = json.loads((out / "run.json").read_text())
    del content["categories"]
    (out / "run.json").write_text(json.dumps({**content, "status": "running"}))
    result = mvad.score(str(dump), str(models), str(out), **OPTIONS)
    assert (out / "_SUCCESS").exists()
    assert result.summary[0]["n_flagged"] == expected[0]["n_flagged"]


def test_rows_of_other_options_or_models_are_not_mixed(begun, no_ray, base_run, tmp_path):
    dump, models, out = begun
    for options, message in (
        ({"false_alarm_rate": 0.05}, r"begun with --false-alarm-rate 0.01, not 0.05"),
        ({"maps": "all"}, "begun with --maps none, not all"),
    ):
        with pytest.raises(UsageError, match=message):
            mvad.score(str(dump), str(models), str(out), **options, **OPTIONS)
    shutil.copytree(models, tmp_path / "models")
    for name in ("alpha", "beta"):  # alpha's images scored by beta's model
        place = tmp_path / "models/patchcore" / name
        shutil.rmtree(place)
    shutil.copytree(models / "patchcore/beta", tmp_path / "models/patchcore/alpha")
    with pytest.raises(UsageError):
        mvad.score(str(dump), str(tmp_path / "models"), str(out), **OPTIONS)
    shutil.copytree(base_run[0], tmp_path / "run")
    with pytest.raises(UsageError, match="another run's results"):
        mvad.score(str(dump), str(models), str(tmp_path / "run"), **OPTIONS)
    assert len(rows_of(out)) == 8


def batch(names, scores, error=""):
    count = len(names)
    return {
        **{name: np.array([""] * count, object) for name in ("defect", "mask_uri")},
        **{name: np.array(names, object) for name in ("image_id", "uri")},
        "category": np.array(["cap"] * count, object),
        "split": np.array(["test"] * count, object),
        "label": np.full(count, -1, np.int8),
        "score": np.array(scores, np.float32),
        "error": np.array([error] * count, object),
        **{name: np.ones(count, np.int32) for name in ("width", "height")},
        **{key: np.zeros(count) for key in ("seconds", "bytes", "retries", "memory")},
        "actor": np.full(count, "", object),
        "patch_scores": np.array([np.float32([score]).tobytes() for score in scores], object),
        "patch_grid": np.ones((count, 2), np.int32),
    }


def destination(out, calibration=None, threshold=None):
    judge = DecisionRule("m", calibration, "conformal", threshold)
    return Destination(to_uri(out), "r", {"cap": judge})


def test_rows_that_were_written_twice_are_there_once(tmp_path):
    """A retried task whose blocks were divided otherwise."""
    write_rows(batch(["a", "b", "c"], [1, 2, 3]), destination(tmp_path))
    write_rows(batch(["b", "c", "d"], [2, 3, 4]), destination(tmp_path))
    write_rows(batch(["a", "b", "c", "d"], [1, 2, 3, 4]), destination(tmp_path))
    assert results.count_scores(to_uri(tmp_path)) == 10
    results.repair(to_uri(tmp_path))
    rows = results.read_scores(to_uri(tmp_path)).to_pylist()
    assert [(row["image_id"], row["score"]) for row in rows] == [("a", 1), ("b", 2), ("c", 3), ("d", 4)]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("scores/**/*.parquet")}
    results.repair(to_uri(tmp_path))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("scores/**/*.parquet")} == before


def test_a_full_disk_spoils_no_file(tmp_path, monkeypatch):
    write_rows(batch(["a", "b"], [1, 2]), destination(tmp_path))

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_rows(batch(["a", "b"], [3, 4]), destination(tmp_path))
    with pytest.raises(OSError, match="No space left"):
        results.drop_rows(to_uri(tmp_path), {"a"})
    monkeypatch.undo()
    assert [row["score"] for row in results.read_scores(to_uri(tmp_path)).to_pylist()] == [1, 2]
    assert not list(tmp_path.glob("**/*.unfinished"))


def test_the_batch_as_a_whole_can_be_decided_on(tmp_path):
    """19 calibration scores: the p-values of 4 images are 1/20, 1/20, 11/20 and 1; at 10 % two are flagged."""
    calibration = np.arange(19, dtype=np.float32)
    write_rows(batch(["a", "b"], [99, 50]), destination(tmp_path, calibration=calibration, threshold=18.0))
    write_rows(batch(["c", "d"], [8.5, -1]), destination(tmp_path, calibration=calibration, threshold=18.0))
    write_rows(batch(["e"], [np.nan], "broken"), destination(tmp_path, calibration=calibration, threshold=18.0))
    results.control_fdr(to_uri(tmp_path), "cap", 0.1)
    rows = {row["image_id"]: row for row in results.read_scores(to_uri(tmp_path)).to_pylist()}
    assert [rows[name]["p_value"] for name in "abcde"] == [1 / 20, 1 / 20, 11 / 20, 1, None]
    assert [rows[name]["is_anomaly"] for name in "abcde"] == [True, True, False, False, None]
    assert rows["a"]["threshold"] == 8.5
    results.control_fdr(to_uri(tmp_path), "cap", 0.04)
    rows = {row["image_id"]: row for row in results.read_scores(to_uri(tmp_path)).to_pylist()}
    assert not any(row["is_anomaly"] for row in rows.values())


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ({}, "2026-11-23 cap: LOOK, 3 of 200 images flagged (1.5%)"),
        ({"n_flagged": 0}, "2026-11-23 cap: OK, 0 of 200 images flagged (0.0%)"),
        ({"drifted": True, "n_error": 2}, "MOVED, look at camera and light first; 3 of 200 .* 2 unreadable"),
        ({"threshold": None}, "200 images scored, no verdicts"),
        ({"n_scored": 0, "note": "why"}, r"NOT SCORED \(why\)"),
    ],
)
def test_the_verdict_is_one_line(row, line):
    import datetime
    import re

    whole = {"category": "cap", "n_scored": 200, "n_flagged": 3, "n_error": 0, "threshold": 1.5, "drifted": False}
    found = verdict(datetime.date.fromisoformat(DAY), {**whole, "note": None, **row})
    assert re.search(line, found) or line == found
    assert "\n" not in found


def test_a_category_that_has_moved_has_its_own_exit_code(monkeypatch, tmp_path):
    from mvad.pipeline import flow as pipeline
    from mvad.results.run_record import Result

    rows = [{"category": "cap", "n_scored": 9, "n_flagged": 9, "n_error": 0, "threshold": 1.0, "drifted": True}]
    monkeypatch.setattr(pipeline, "score", lambda *arguments, **options: Result(summary=rows))
    assert mvad.nightly("dump", "models", str(tmp_path), quiet=True).exit_code == EXIT_DRIFTED
    monkeypatch.setattr(pipeline, "score", lambda *arguments, **options: Result(exit_code=3, summary=rows))
    assert mvad.nightly("dump", "models", str(tmp_path), quiet=True).exit_code == 3
    with pytest.raises(UsageError, match="is not a date"):
        mvad.nightly("dump", "models", str(tmp_path), "tomorrow", quiet=True)
