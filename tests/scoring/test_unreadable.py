"""Whatever images cannot be read: one row for every image, and the good ones with the scores they always have."""

import functools
import math
import shutil

import numpy as np
import pytest
import ray
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import mvad
from helpers.tiles import COMPARED, EMBEDDED
from mvad import results
from mvad.calibration import DecisionRule
from mvad.data.image_size import ImageSize
from mvad.data.images import decode_batch
from mvad.data.manifest import read_manifest
from mvad.detectors import METHODS, ViTKNN
from mvad.features.backbones import describe
from mvad.features.specs import prepare
from mvad.features.weights import Network
from mvad.model_store import FittedModel, find_models, save_model
from mvad.options import ScoreOptions
from mvad.pipeline.columns import SCORED
from mvad.results.schema import RowOrigin
from mvad.runtime.stage_totals import StageTotals
from mvad.scoring.jobs import ScoringJob
from mvad.scoring.model_sharing import Broadcast
from mvad.scoring.scorer_actor import Scorer
from mvad.scoring.write import WriteScores
from mvad.storage import to_uri

ORIGIN = RowOrigin("r")

pytestmark = pytest.mark.usefixtures("ray_local")
VIT = "timm:vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def vit(tiles, tmp_path_factory):
    """A vit-knn model of ``alpha`` and of ``beta``, made of nothing but black images, and its network."""
    import timm

    spec, size, folder = describe(VIT), ImageSize.square(64), tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    save_file(timm.create_model(VIT.removeprefix("timm:")).state_dict(), folder / "vit.safetensors")
    network = Network.load(spec, str(folder / "vit.safetensors"))
    features = prepare(["pooled"], network, size).load()(np.zeros((3, 64, 64, 3), np.uint8))["pooled"]
    state = ViTKNN(neighbours=1).fit(features + torch.arange(3)[:, None]).state
    record = {"n_train": 3, "errors": [], "fit_seconds": 1.0}
    for name in ("alpha", "beta"):
        save_model(to_uri(folder), FittedModel(name, ViTKNN, state, spec, network.sha256, size, record))
    return folder, network


@pytest.fixture(scope="module", params=list(METHODS))
def scoring(request, compared, vit, tiles, tmp_path_factory):
    """One method as it scores: a function from images that can be read or not, and maps or not, to score rows."""
    folder = vit[0] if request.param == "vit-knn" else compared[0] / "runs" / request.param / "models"
    models = find_models(to_uri(folder))
    model = models["alpha"]
    network = vit[1] if request.param == "vit-knn" else Network.load(model.backbone, None)
    spec = ray.put(prepare([METHODS[request.param].feature], network, model.size))
    broadcast, totals = Broadcast(models.values()), StageTotals("score")
    images = read_manifest(str(tiles), ScoreOptions()).split("test")
    columns = {name: np.array(images[name].to_pylist(), object) for name in ("uri", "category")}
    columns["row"] = np.arange(len(images))

    @functools.cache
    def actor(maps):
        out = to_uri(tmp_path_factory.mktemp("written"))
        threshold = -math.inf if maps else math.inf
        jobs = [ScoringJob(models[name], DecisionRule("m"), out, ORIGIN, threshold) for name in ("alpha", "beta")]
        return Scorer(spec, dict(enumerate(jobs)), broadcast, 1, totals), jobs

    @functools.cache
    def score(readable, maps):
        scorer, jobs = actor(maps)
        uris = np.where(readable, columns["uri"], "file:///nowhere.png").astype(object)
        scored = scorer(decode_batch({**columns, "uri": uris}, model.size, 10**8))
        assert scored.schema.equals(SCORED)
        results.clear(jobs[0].out)
        receipts = WriteScores(jobs, ray.put(images), totals)(scored)
        assert receipts["rows"].to_pylist() == [8, 8]
        return results.read_scores(jobs[0].out).drop_columns(["scored_at"]).to_pylist()

    return score


KINDS = {
    "none": st.just([True] * 16),
    "all": st.just([False] * 16),
    "the first": st.integers(1, 15).map(lambda count: [False] * count + [True] * (16 - count)),
    "the last": st.integers(1, 15).map(lambda count: [True] * (16 - count) + [False] * count),
    "a category": st.sampled_from([[True] * 8 + [False] * 8, [False] * 8 + [True] * 8]),
    "any": st.lists(st.booleans(), min_size=16, max_size=16),
}


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(readable=st.one_of(*KINDS.values()), maps=st.booleans())
def test_every_image_has_its_row_whatever_can_be_read(scoring, readable, maps):
    expected, rows = scoring((True,) * 16, maps), scoring(tuple(readable), maps)
    assert [row["image_id"] for row in rows] == [row["image_id"] for row in expected]
    assert [row["status"] == "ok" for row in rows] == readable
    for row, undisturbed in zip(rows, expected, strict=True):
        if row["status"] == "ok":
            assert row == undisturbed
        else:
            assert row["score"] is row["patch_scores"] is row["width"] is None
            assert row["error"] == "the file does not exist"


def spoiled(tiles, root, pattern):
    """The tiles with some test images broken; gives their ids."""
    shutil.copytree(tiles, root)
    names = sorted(path.relative_to(root).as_posix() for path in root.glob("*/test/*/*.png"))
    broken = [name for name, good in zip(names, pattern, strict=True) if not good]
    for name in broken:
        (root / name).write_bytes(b"")
    return broken


def rows_of(out):
    return {row["image_id"]: row for row in results.read_scores(to_uri(out)).to_pylist()}


def check(rows, expected, broken):
    assert sorted(rows) == sorted(expected)
    assert sorted(name for name, row in rows.items() if row["status"] == "error") == sorted(broken)
    for name, row in rows.items():
        if name not in broken:
            assert [row[key] for key in ("score", "patch_scores")] == [
                expected[name][key] for key in ("score", "patch_scores")
            ]


def test_score_keeps_every_row(base_run, tiles, tmp_path):
    broken = spoiled(tiles, tmp_path / "data", [False] * 8 + [True] * 8)
    models, out = str(base_run[0] / "models"), tmp_path / "out"
    result = mvad.score(str(tmp_path / "data"), models, str(out), maps="all", actors=1, quiet=True)
    check(rows_of(out), rows_of(base_run[0]), broken)
    assert sorted(error["image_id"] for error in result.errors) == broken


def test_a_night_keeps_every_row(base_run, tiles, tmp_path):
    broken = spoiled(tiles, tmp_path / "data", [False] * 16)
    options = {"maps": "all", "layout": "mvtec", "actors": 1, "quiet": True}
    mvad.nightly(str(tmp_path / "data"), str(base_run[0] / "models"), str(tmp_path), "2026-11-23", **options)
    check(rows_of(tmp_path / "date=2026-11-23"), rows_of(base_run[0]), broken)


def test_run_keeps_every_row(base_run, tiles, tmp_path):
    broken = spoiled(tiles, tmp_path / "data", [True] * 3 + [False] * 13)
    options = {**EMBEDDED, "image_size": 64, "actors": 1, "folds": 0, "maps": "all"}
    mvad.run(str(tmp_path / "data"), str(tmp_path / "out"), **options)
    check(rows_of(tmp_path / "out"), rows_of(base_run[0]), broken)


def test_compare_keeps_every_row(compared, tiles, tmp_path):
    broken = spoiled(tiles, tmp_path / "data", [False] * 2 + [True] * 6 + [False] * 8)
    options = {**COMPARED, "shots": None, "methods": "knn,patchcore", "actors": 1}
    mvad.compare(str(tmp_path / "data"), str(tmp_path / "out"), **options)
    for name in ("knn", "patchcore"):
        check(rows_of(tmp_path / "out/runs" / name), rows_of(compared[0] / "runs" / name), broken)
