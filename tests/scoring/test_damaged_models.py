"""A damaged or failing model costs the images of its category, which say why; the others are scored."""

import json
import shutil

import numpy as np
import pytest
import ray

import mvad
from helpers.damage import saved, seal_files, spoilt
from mvad import results
from mvad.calibration import DecisionRule
from mvad.data.images import decode_batch
from mvad.data.manifest import read_manifest
from mvad.detectors import PatchCore
from mvad.errors import UsageError
from mvad.features.specs import prepare
from mvad.features.weights import Network
from mvad.model_store import find_models
from mvad.options import ScoreOptions
from mvad.results.result import EXIT_TOO_MANY_ERRORS
from mvad.results.schema import RowOrigin
from mvad.runtime.stage_totals import StageTotals
from mvad.scoring import model_sharing
from mvad.scoring.jobs import ScoringJob
from mvad.scoring.model_sharing import Broadcast
from mvad.scoring.scorer_actor import Scorer
from mvad.storage import to_uri

ORIGIN = RowOrigin("r")

OPTIONS = {"actors": 1, "quiet": True, "settle": 0}


def rows_of(out):
    return {row["image_id"]: row for row in results.read_scores(to_uri(out)).to_pylist()}


def with_nan(model):
    """Put a NaN into the bank of a model, with the right hashes."""
    bank = np.load(model / "bank.npy")
    (model / "bank.npy").write_bytes(saved(spoilt(bank, np.nan)))
    seal_files(model)


def test_a_night_with_a_damaged_model_and_its_repair(base_run, tiles, tmp_path, capfd):
    models, out, expected = tmp_path / "models", tmp_path / "out", rows_of(base_run[0])
    shutil.copytree(base_run[0] / "models", models)
    with_nan(models / "patchcore/alpha")
    assert mvad.score(str(tiles), str(models), str(out), **OPTIONS).exit_code == EXIT_TOO_MANY_ERRORS
    rows = rows_of(out)
    assert sorted(rows) == sorted(expected)
    for name, row in rows.items():
        if name.startswith("alpha/"):
            reason = "the model cannot be used: bank holds NaN or infinity; fit it again"
            assert (row["status"], row["error"]) == ("error", reason)
        else:
            assert (row["status"], row["score"]) == ("ok", expected[name]["score"])
    assert json.loads((out / "run.json").read_text())["failed_categories"] == ["alpha"]

    shutil.rmtree(models / "patchcore/alpha")
    shutil.copytree(base_run[0] / "models/patchcore/alpha", models / "patchcore/alpha")
    damaged = min((out / "scores/beta").glob("part-*"))
    damaged.write_bytes(damaged.read_bytes()[:-9])
    assert mvad.score(str(tiles), str(models), str(out), **OPTIONS).exit_code == 0
    assert f"{damaged} is damaged" in capfd.readouterr().err
    assert {name: row["score"] for name, row in rows_of(out).items()} == {
        name: row["score"] for name, row in expected.items()
    }


def test_no_usable_model_is_one_sentence_before_any_work(base_run, tiles, tmp_path, monkeypatch):
    monkeypatch.setattr("mvad.pipeline.job.ray_session", lambda *_: pytest.fail("Ray was started"))
    models = tmp_path / "models"
    shutil.copytree(base_run[0] / "models", models)
    for name in ("alpha", "beta"):
        (models / "patchcore" / name / "calibration.npy").write_bytes(saved(np.full(4, np.nan, np.float32)))
        seal_files(models / "patchcore" / name)
    with pytest.raises(UsageError, match=r"of 'alpha' in .* cannot be used: calibration.npy is damaged: it holds NaN"):
        mvad.score(str(tiles), str(models), str(tmp_path / "out"), **OPTIONS)
    shutil.rmtree(models / "patchcore/beta")
    (models / "patchcore/alpha/model.json").write_bytes(b"[" * 10_000)
    with pytest.raises(UsageError, match=r"patchcore/alpha cannot be used: model.json is damaged"):
        mvad.score(str(tiles), str(models), str(tmp_path / "other"), **OPTIONS)
    assert not (tmp_path / "other").exists()


@pytest.fixture(scope="module")
def scorer(base_run, tiles):
    """A function that scores all test images in this process: by category, scores and errors."""
    model = find_models(to_uri(base_run[0] / "models"))["alpha"]
    spec = ray.put(prepare(["patches"], Network.load(model.backbone, None), model.size))
    images = read_manifest(str(tiles), ScoreOptions()).split("test")
    columns = {name: np.array(images[name].to_pylist(), object) for name in ("uri", "category")}
    batch = decode_batch({**columns, "row": np.arange(len(images))}, model.size, 10**8)

    def score(folder=base_run[0] / "models"):
        models = find_models(to_uri(folder))
        jobs = {n: ScoringJob(models[name], DecisionRule("m"), "", ORIGIN, np.inf) for n, name in enumerate(models)}
        broadcast = Broadcast(models.values())
        rows = Scorer(spec, jobs, broadcast, 1, StageTotals("score"))(batch).to_pylist()
        return {
            job.category: [(row["score"], row["error"]) for row in rows if row["job"] == number]
            for number, job in jobs.items()
        }

    return score


def test_damage_that_an_actor_finds_stays_with_its_category(base_run, scorer, tmp_path, monkeypatch):
    expected = scorer()
    shutil.copytree(base_run[0] / "models", tmp_path / "models")
    (tmp_path / "models/patchcore/alpha/bank.npy").write_bytes(b"x")
    monkeypatch.setattr(model_sharing, "STORE_FRACTION", 0.0)
    found = scorer(tmp_path / "models")
    reason = "the model cannot be used: bank.npy is damaged: its hash is not the model's; fit it again"
    assert set(found["alpha"]) == {(None, reason)}
    assert found["beta"] == expected["beta"]


@pytest.mark.parametrize(
    ("method", "error", "reason"),
    [
        ("restore", KeyError("bank"), "the model cannot be used: KeyError: 'bank'"),
        ("restore", MemoryError(), "the model cannot be used: MemoryError:"),
        ("bounded", RuntimeError("shapes\ndiffer"), "scoring failed: RuntimeError: shapes differ"),
    ],
)
def test_an_exception_of_one_model_stays_with_its_category(scorer, monkeypatch, method, error, reason):
    expected, original = scorer(), getattr(PatchCore, method)
    first = []

    def fail(self, *arguments, **named):
        first.append(self)
        if self is first[0]:
            raise error
        return original(self, *arguments, **named)

    monkeypatch.setattr(PatchCore, method, fail)
    found = scorer()
    assert {text for _, text in found["alpha"]} == {reason}
    assert {score for score, _ in found["alpha"]} == {None}
    assert found["beta"] == expected["beta"]


def test_a_score_that_is_not_finite_is_an_error(scorer, monkeypatch):
    original = PatchCore.bounded

    def spoil(self, *arguments, **named):
        scores = original(self, *arguments, **named)
        scores.image[0] = np.nan
        return scores

    monkeypatch.setattr(PatchCore, "bounded", spoil)
    assert scorer()["alpha"][0] == (None, "scoring failed: the model gives this image no finite score")


def test_what_is_lost_with_a_node_is_not_the_models_fault(scorer, monkeypatch):
    def lost(*_):
        raise ray.exceptions.RaySystemError("a node has gone")

    monkeypatch.setattr(Broadcast, "arrays", lost)
    with pytest.raises(ray.exceptions.RayError):
        scorer()
