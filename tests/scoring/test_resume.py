"""Scoring night after night: what is missing is scored, what is there stays, and nothing is there twice."""

import json
import os
import re
import shutil

import pytest

import mvad
from mvad import results
from mvad.calibration import Drift
from mvad.data.listing import wait_until_settled
from mvad.data.manifest import read_manifest
from mvad.errors import UsageError
from mvad.options import DataOptions
from mvad.results.result import EXIT_DONE, EXIT_DRIFTED
from mvad.results.store import drop_rows
from mvad.storage import to_uri

DAY = "2026-11-23"
OPTIONS = {"actors": 1, "max_errors": "50%", "quiet": True}
NIGHT = OPTIONS | {"expect": "alpha"}


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
    return folder / "dump", models, folder, mvad.nightly(str(folder / "dump"), str(models), str(folder), DAY, **NIGHT)


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
        same = ("score", "p_value", "threshold", "is_anomaly", "verdict", "model_id")
        assert [row[key] for key in same] == [other[key] for key in same]
        assert row["verdict"] == ("anomalous" if row["is_anomaly"] else "good")
    assert night[3].summary[0]["n_flagged"] == sum(bool(row["is_anomaly"]) for row in rows.values())


def test_only_what_is_missing_is_scored(begun, tiles, night):
    """As after a kill: rows are missing. Besides, the half-written file is whole by now, and another has come."""
    dump, models, out = begun
    before = rows_of(out)
    lost = sorted(before)[:3]
    drop_rows(to_uri(out), lost)
    (out / "_SUCCESS").unlink()
    content = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps({**content, "status": "running", "data": str(dump)}))
    replaced = next(name for name in sorted(before) if name not in lost and name != "alpha/spot/001.png")
    shutil.copyfile(tiles / "beta/test/good/001.png", dump / replaced)
    shutil.copy(tiles / "alpha/test/spot/001.png", dump / "alpha/spot/001.png")
    shutil.copy(tiles / "beta/test/good/000.png", dump / "alpha/new.png")
    (out / "scores/alpha/.abc.unfinished").write_bytes(b"half a fi")
    result = mvad.score(str(dump), str(models), str(out), **OPTIONS)
    assert result.exit_code == 0
    rows = rows_of(out)
    assert sorted(rows) == sorted([*before, "alpha/new.png"])
    fresh = {name for name, row in rows.items() if row["run_id"] != content["run_id"]}
    assert fresh == {*lost, replaced, "alpha/spot/001.png", "alpha/new.png"}
    assert rows[replaced]["file_size"] == (dump / replaced).stat().st_size
    for name, row in before.items():
        if row["status"] == "ok" and name != replaced:
            assert rows[name]["score"] == row["score"]
    assert rows["alpha/spot/001.png"]["status"] == "ok"
    assert not list(out.glob("**/*.unfinished"))
    assert (out / "_SUCCESS").exists()
    run = json.loads((out / "run.json").read_text())
    assert [one["run_id"] for one in run["earlier_runs"]] == [content["run_id"]]
    assert run["n_rows"] == 9


@pytest.mark.parametrize("drifted", [True, False])
def test_a_night_that_drifted_says_so_in_its_exit_code_its_record_and_its_marker(begun, no_ray, drifted, monkeypatch):
    dump, models, out = begun
    (dump / "alpha/spot/001.png").unlink()  # which would be scored again
    out.rename(out.parent / f"date={DAY}")
    out = out.parent / f"date={DAY}"
    (out / "_SUCCESS").unlink()
    content = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps({**content, "status": "running"}))
    drift = Drift(9, 1e-9, 0.5, 2.0, drifted)
    monkeypatch.setattr("mvad.calibration.measure_drift", lambda *_: drift)
    for _ in range(2):
        result = mvad.nightly(str(dump), str(models), str(out.parent), DAY, **NIGHT)
        run = json.loads((out / "run.json").read_text())
        assert result.exit_code == run["exit_code"] == (EXIT_DRIFTED if drifted else EXIT_DONE)
        assert (out / "_SUCCESS").exists() != drifted
    assert mvad.score(str(dump), str(models), str(out), **OPTIONS).exit_code == EXIT_DONE  # where drift does not matter
    assert (out / "_SUCCESS").exists()


def test_a_night_prints_one_table(begun, no_ray, capsys):
    dump, models, out = begun
    (dump / "alpha/spot/001.png").unlink()
    out.rename(out.parent / f"date={DAY}")
    mvad.nightly(str(dump), str(models), str(out.parent), DAY, **NIGHT | {"quiet": False})
    printed = capsys.readouterr().out
    assert printed.count("alpha ") == 1
    assert "category state images flagged rate errors drift note" in " ".join(printed.split())
    assert "AUROC" not in printed


@pytest.fixture
def no_ray(monkeypatch):
    monkeypatch.setattr("mvad.pipeline.job.ray_session", lambda *_: pytest.fail("Ray was started"))


def test_when_all_is_done_nothing_is(begun, no_ray):
    dump, models, out = begun
    (dump / "alpha/spot/001.png").unlink()  # what could not be read is tried again
    files = {path: path.stat().st_mtime_ns for path in out.glob("**/*") if path.name != "_SUCCESS"}
    result = mvad.score(str(dump), str(models), str(out), **OPTIONS)
    assert len(result.errors) == 1
    assert result.summary == json.loads((out / "summary.json").read_text())
    assert {path: path.stat().st_mtime_ns for path in out.glob("**/*") if path.name != "_SUCCESS"} == files


def test_which_images_count_as_new_can_be_told_by_name_alone(begun, no_ray):
    dump, models, out = begun
    (dump / "alpha/spot/001.png").unlink()
    os.utime(dump / "alpha/good/000.png", (1e9, 1e9))
    with pytest.raises(
        UsageError, match=r"was begun with the images in .*, and 'alpha/good/000.png' in .* is not the same"
    ):
        mvad.score(str(dump), str(models), str(out), **OPTIONS)  # another dump under the same names
    content = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps({**content, "data": str(dump)}))
    assert len(mvad.score(str(dump), str(models), str(out), recheck="name", **OPTIONS).errors) == 1


def test_a_category_without_images_is_missed(begun, no_ray, capsys):
    dump, models, out = begun
    (dump / "alpha/spot/001.png").unlink()
    out.rename(out.parent / f"date={DAY}")
    out = out.parent / f"date={DAY}"
    for expect, code in (
        (None, EXIT_DRIFTED),
        ("alpha,gamma", EXIT_DRIFTED),
        ("none", EXIT_DONE),
        ("alpha", EXIT_DONE),
    ):
        result = mvad.nightly(
            str(dump), str(models), str(out.parent), DAY, **OPTIONS | {"expect": expect, "quiet": False}
        )
        run = json.loads((out / "run.json").read_text())
        assert result.exit_code == run["exit_code"] == code
        assert (out / "_SUCCESS").exists() == (code == EXIT_DONE)
        missing = {None: ["beta"], "alpha,gamma": ["gamma"]}.get(expect, [])
        assert run["missing_categories"] == missing
        printed = capsys.readouterr()
        assert all(f"{name}: no images" in printed.err for name in missing)
        assert re.findall(r"^(\w+) +NO IMAGES +0 ", printed.out, flags=re.M) == missing


def test_files_that_are_being_written_are_left_for_the_next_run(tmp_path, monkeypatch):
    now = 1e9
    for name, age in (("old", 100), ("young", 1), ("growing", 1), ("ahead", -3600)):
        (tmp_path / f"{name}.png").write_bytes(b"x")
        os.utime(tmp_path / f"{name}.png", (now - age, now - age))
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        (tmp_path / "growing.png").write_bytes(b"xy")

    monkeypatch.setattr("mvad.data.listing.time.time", lambda: now)
    monkeypatch.setattr("mvad.data.listing.time.sleep", sleep)
    images = read_manifest(str(tmp_path), DataOptions(category="cap")).table
    settled = wait_until_settled(images, 5.0)
    assert dict(zip(images["image_id"].to_pylist(), settled.to_pylist(), strict=True)) == {
        "ahead.png": True,
        "growing.png": False,
        "old.png": True,
        "young.png": True,
    }
    assert slept == [5.0]


def test_what_cannot_be_read_is_tried_again_and_keeps_one_row(begun):
    dump, models, out = begun
    result = mvad.score(str(dump), str(models), str(out), **OPTIONS)
    rows = rows_of(out)
    assert len(rows) == 8
    assert [name for name, row in rows.items() if row["status"] == "error"] == ["alpha/spot/001.png"]
    assert [error["image_id"] for error in result.errors] == ["alpha/spot/001.png"]
    run = json.loads((out / "run.json").read_text())
    assert {row["run_id"] == run["run_id"] for row in rows.values()} == {False, True}
    assert rows["alpha/spot/001.png"]["run_id"] == run["run_id"]


def test_a_run_killed_before_its_summary_gets_it(begun, no_ray):
    dump, models, out = begun
    expected = json.loads((out / "summary.json").read_text())
    (dump / "alpha/spot/001.png").unlink()
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
        ({"uncertain_rate": 0.5}, "begun with --uncertain-rate None, not 0.5"),
        ({"threshold": "alhpa=1"}, "unknown category 'alhpa'; .*/models has: alpha, beta"),
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
