"""Whatever is being written when a command is killed: repeating the command gives what an undisturbed one gives."""

import itertools
import json
import shutil

import numpy as np
import pytest
import torch

import mvad
from helpers.fault_injection import Killed, kill_everywhere, killed_at
from helpers.tiles import EMBEDDED
from mvad import results
from mvad.data.image_size import ImageSize
from mvad.detectors import PatchCore
from mvad.errors import UsageError
from mvad.features.backbones import describe
from mvad.model_store import FittedModel, read_arrays, read_model, save_model
from mvad.results.store import REPLACEMENT, open_folder, write_run
from mvad.storage import to_uri

SMALL = {**EMBEDDED, "image_size": 64, "actors": 1, "folds": 2}
# What a run records besides its results, and differs from run to run.
PASSING = (
    "started",
    "seconds",
    "stages",
    "run_id",
    "images_per_second",
    "earlier_runs",
    "score_seconds",
    "fit_seconds",
)


def save(folder, seed, **options):
    features = np.random.default_rng(seed).standard_normal((3, 4, 4, 6)).astype(np.float32)
    state = PatchCore().fit(torch.from_numpy(features)).state
    record = {"n_train": 3, "errors": [], "fit_seconds": 1.0}
    spec, size = describe("efficientnet_lite0"), ImageSize.square(64)
    return save_model(to_uri(folder), FittedModel("cap", PatchCore, state, spec, "abc", size, record), **options)


def bank_of(folder):
    return read_arrays(read_model(to_uri(folder / "patchcore/cap")))["bank"].tolist()


@pytest.mark.parametrize("keep_earlier", [False, True])
@pytest.mark.parametrize("n_earlier", [0, 1, 2])
def test_a_model_is_the_old_or_the_new_one_whenever_its_writer_is_killed(tmp_path, n_earlier, keep_earlier):
    for seed in (0, 1, 2):
        save(tmp_path / str(seed), seed)
    for n in itertools.count():
        folder = tmp_path / f"models{n}"
        for seed in range(n_earlier):
            save(folder, seed)
        try:
            with killed_at(n):
                save(folder, 2, keep_earlier=keep_earlier)
        except Killed:
            whole = [2] if not n_earlier else [2, n_earlier - 1]
            if (folder / "patchcore/cap/model.json").exists():
                assert bank_of(folder) in [bank_of(tmp_path / str(seed)) for seed in whole]
            else:
                assert not n_earlier
            save(folder, 2, keep_earlier=keep_earlier)
            assert bank_of(folder) == bank_of(tmp_path / "2")
            assert not list(folder.rglob("*.unfinished"))
        else:
            assert n >= 2
            return


def texts(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_new_run_takes_the_place_of_the_others_whenever_it_is_killed(tmp_path):
    out = tmp_path / "out"
    identity = {"maps": "none"}

    def new_run():
        folder, _ = open_folder(to_uri(out), "score", identity, new_run=True)
        content = {"command": "score", "identity": identity, "status": "running"}
        write_run(folder, content)
        results.write_json(f"{folder}/scores", "new")
        write_run(folder, content | {"status": "done", "exit_code": 0})
        results.store.replace_by_new(to_uri(out))

    for name in ("scores/cap/part-0.parquet", "scores/lid/part-0.parquet", "report.html", "models/x/model.json"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("old")
    write_run(to_uri(out), {"command": "run", "identity": {}, "status": "done", "exit_code": 0})

    def check(n):
        assert sorted(texts(out)) == ["_SUCCESS", "run.json", "scores"]
        assert texts(out)["scores"] == '"new"'
        assert json.loads((out / "run.json").read_text())["command"] == "score"

    assert kill_everywhere(new_run, [out], check, tmp_path / "kept") > 15
    check(-1)


def test_earlier_results_stay_until_the_new_ones_are_whole(base_run, tiles, tmp_path, monkeypatch):
    out = tmp_path / "out"
    shutil.copytree(base_run[0], out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    monkeypatch.setattr("mvad.pipeline.job.ray_session", refuse)
    with pytest.raises(UsageError, match="no Ray cluster at"):
        mvad.run(str(tiles), str(out), new_run=True, **SMALL)
    assert before.items() <= {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}.items()
    assert (out / REPLACEMENT / "run.json").exists()
    assert mvad.evaluate(str(out), quiet=True).summary[0]["category"] == "alpha"


def refuse(*_):
    raise UsageError("no Ray cluster at 'nowhere'")


def stored(out):
    """Rows and documents of results as text, without what differs from run to run."""
    rows = results.read_scores(to_uri(out)).drop_columns(["run_id", "scored_at"]).to_pylist()
    run = json.loads((out / "run.json").read_text())
    facts = {
        name: {key: fact for key, fact in row.items() if key not in PASSING} for name, row in run["categories"].items()
    }
    kept = {name: value for name, value in run.items() if name not in (*PASSING, "categories")}
    text = json.dumps([rows, kept, facts, (out / "_SUCCESS").exists()], default=str)
    return text.replace(str(out), "OUT")


def test_a_run_that_is_killed_goes_on(tiles, ray_local, tmp_path):
    """First between two models, then between fitting and scoring, then in each write of its end."""
    out, expected = tmp_path / "out", tmp_path / "expected"
    mvad.run(str(tiles), str(expected), **SMALL)

    def run():
        return mvad.run(str(tiles), str(out), **SMALL)

    with pytest.raises(Killed), killed_at(1, after="model.json"):  # after the first model
        run()
    (first,) = (out / "models").rglob("model.json")
    fitted = first.stat().st_mtime_ns
    assert run().exit_code == 0
    assert first.stat().st_mtime_ns == fitted
    assert stored(out) == stored(expected)
    content = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps(content | {"status": "running"}))
    (out / "_SUCCESS").unlink()

    def check(n):
        assert stored(out) == stored(expected)

    assert kill_everywhere(run, [out], check, tmp_path / "kept") >= 6


def test_a_fit_that_is_killed_goes_on(tiles, ray_local, tmp_path):
    models, expected = tmp_path / "models", tmp_path / "expected"
    mvad.fit(str(tiles), str(expected), **SMALL)
    with pytest.raises(Killed), killed_at(1, after="model.json"):
        mvad.fit(str(tiles), str(models), **SMALL)
    (first,) = models.rglob("model.json")
    fitted = first.stat().st_mtime_ns
    assert mvad.fit(str(tiles), str(models), **SMALL).exit_code == 0
    assert first.stat().st_mtime_ns == fitted
    for category in ("alpha", "beta"):
        ids = [read_model(to_uri(folder / "patchcore" / category)).model_id for folder in (models, expected)]
        assert ids[0] == ids[1]


@pytest.mark.parametrize("damage", ["bank.npy", "model.json"])
def test_a_damaged_model_is_fitted_again_and_the_reason_is_said(base_run, tiles, ray_local, tmp_path, capsys, damage):
    models = tmp_path / "models"
    shutil.copytree(base_run[0] / "models", models)
    expected = read_model(to_uri(models / "patchcore/alpha")).model_id
    (file,) = (models / "patchcore/alpha").rglob(damage)
    file.write_bytes(file.read_bytes()[:-3])
    fitted = mvad.fit(str(tiles), str(models), **{**EMBEDDED, "image_size": 64})
    warnings = capsys.readouterr().err
    assert fitted.exit_code == 0
    assert 'warning: "alpha: patchcore" is fitted again: the model ' in warnings
    assert f"{models}/patchcore/alpha cannot be used: {damage} is damaged" in warnings
    assert "beta" not in warnings
    assert read_model(to_uri(models / "patchcore/alpha")).model_id == expected
