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
from mvad.data.image_size import ImageSize
from mvad.data.images import decode_batch
from mvad.data.manifest import read_manifest
from mvad.detectors import METHODS, ViTKNN
from mvad.features.backbones import describe
from mvad.features.extractor import prepare
from mvad.features.weights import Network
from mvad.model_store import find_models, save_model
from mvad.options import CommonOptions
from mvad.pipeline.actors import Scorer
from mvad.pipeline.flow import _without_nulls
from mvad.results import DecisionRule, Destination, WriteResults
from mvad.scoring.model_sharing import Broadcast
from mvad.storage import to_uri

pytestmark = pytest.mark.usefixtures("ray_local")
VIT = "timm:vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def vit(tiles, tmp_path_factory):
    """A vit-knn model of ``alpha`` and of ``beta``, made of nothing but black images, and its network."""
    import timm

    spec, size, folder = describe(VIT), ImageSize(resize=64, crop=64), tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    save_file(timm.create_model(VIT.removeprefix("timm:")).state_dict(), folder / "vit.safetensors")
    network = Network.load(spec, str(folder / "vit.safetensors"))
    features = prepare(["pooled"], network, size).load()(np.zeros((3, 64, 64, 3), np.uint8))["pooled"]
    detector = ViTKNN(neighbours=1).fit(features + torch.arange(3)[:, None])
    state = detector.state
    for name in ("alpha", "beta"):
        save_model(to_uri(folder), name, ViTKNN, state, spec, network.sha256, size, {"n_train": 3, "errors": []})
    return folder, network


@pytest.fixture(scope="module", params=list(METHODS))
def scoring(request, compared, vit, tiles):
    """One method as it scores: a function from images that can be read or not, and maps or not, to a batch."""
    folder = vit[0] if request.param == "vit-knn" else compared[0] / "runs" / request.param / "models"
    fitted = find_models(to_uri(folder))
    model = fitted["alpha"]
    network = vit[1] if request.param == "vit-knn" else Network.load(model.backbone, None)
    package = ray.put(prepare([METHODS[request.param].feature], network, model.size))
    broadcast = Broadcast(fitted.values())
    images = _without_nulls(read_manifest(str(tiles), CommonOptions()).split("test"))
    columns = {name: images[name].to_numpy() for name in images.column_names}

    @functools.cache
    def actor(maps):
        above = {("", name): -math.inf if maps else math.inf for name in fitted}
        return Scorer(package, 1, {"": fitted}, broadcast, above, keep_going=False)

    @functools.cache
    def score(readable, maps):
        uris = np.where(readable, columns["uri"], "file:///nowhere.png").astype(object)
        return actor(maps)(decode_batch({**columns, "uri": uris}, model.size, 10**8) | {"retries": np.zeros(16, int)})

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
def test_every_image_has_its_row_whatever_can_be_read(scoring, readable, maps, tmp_path_factory):
    expected, found = scoring((True,) * 16, maps), scoring(tuple(readable), maps)
    assert {name: column.dtype for name, column in found.items()} == {
        name: column.dtype for name, column in expected.items()
    }
    assert found["image_id"].tolist() == expected["image_id"].tolist()
    assert (found["error"] == "").tolist() == readable
    np.testing.assert_array_equal(found["score"], np.where(readable, expected["score"], np.nan))
    out = to_uri(tmp_path_factory.mktemp("written"))
    rules = {name: DecisionRule("m") for name in ("alpha", "beta")}
    WriteResults({"": Destination(out, "r", rules)})(found)
    rows = results.read_scores(out).to_pylist()
    assert [row["image_id"] for row in rows] == sorted(expected["image_id"])
    for row, good, grid in zip(rows, readable, expected.get("patch_scores", [b""] * 16), strict=True):
        assert row["status"] == ("ok" if good else "error")
        assert (row["patch_scores"] is not None) == (good and bool(grid))


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
    options = {"maps": "all", "actors": 1, "quiet": True}
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
