"""A model in this process, and one that is fitted in it, are those of a job, to the last bit."""

import shutil

import numpy as np
import pytest

import mvad
from helpers.tiles import COMPARED, EMBEDDED
from mvad import results
from mvad.detectors import METHODS
from mvad.in_process import estimators
from mvad.options import FitOptions, option_names
from mvad.storage import to_uri

pytestmark = pytest.mark.usefixtures("ray_local")
COLUMNS = ("score", "p_value", "threshold", "is_anomaly", "verdict", "anomalous_area", "width", "height")
WITH_WEIGHTS = sorted({*METHODS} - {"vit-knn"})
OF_METHOD = {one.method: one for one in (getattr(mvad, name) for name in mvad.IN_PROCESS) if hasattr(one, "get_params")}


def rows_of(out, category):
    return results.read_scores(to_uri(out), category=category).to_pylist()


def assert_same(row, prediction, *, with_map=True):
    for name in COLUMNS:
        assert getattr(prediction, name) == row[name], name
    regions = None if prediction.regions is None else [region._asdict() for region in prediction.regions]
    assert (regions is None) == (row["regions"] is None)
    for ours, theirs in zip(regions or (), row["regions"] or (), strict=True):
        assert {name: np.float32(value) for name, value in ours.items()} == {
            name: np.float32(value) for name, value in theirs.items()
        }
    if with_map and row["patch_scores"] is not None:
        np.testing.assert_array_equal(prediction.patch_scores.ravel(), np.array(row["patch_scores"], np.float32))


@pytest.mark.parametrize("method", WITH_WEIGHTS)
def test_every_method_scores_as_the_job_did(tiles, compared, method):
    run = compared[0] / "runs" / method
    model = mvad.load_model(run / "models" / method / "alpha")
    rows = rows_of(run, "alpha")
    images = [tiles / row["image_id"] for row in rows]
    assert len(images) == 8
    for maps in (True, False):
        for row, prediction in zip(rows, model.predict(images, maps=maps), strict=True):
            assert_same(row, prediction, with_map=maps)
            assert (prediction.patch_scores is None) == (not maps or METHODS[method].feature == "pooled")
    assert model.model_id == rows[0]["model_id"]
    assert model.threshold == rows[0]["threshold"]


@pytest.mark.parametrize("method", WITH_WEIGHTS)
def test_every_method_learns_as_the_job_did(tiles, compared, tmp_path, method):
    run = compared[0] / "runs" / method
    stored = mvad.load_model(run / "models" / method / "alpha")
    names = {*OF_METHOD[method].option_names()} & option_names(FitOptions)
    options = {name: stored.record["options"][name] for name in names}
    others = {"beta": tiles / "beta" / "train" / "good"} if method == "vae-fewshot" else None
    fitted = OF_METHOD[method](category="alpha", **options).fit(tiles / "alpha" / "train" / "good", others=others)
    assert fitted.model_.model_id == stored.model_id
    saved = mvad.load_model(fitted.save(tmp_path))
    assert saved.model_id == stored.model_id
    image = tiles / "alpha" / "test" / "spot" / "000.png"
    assert saved.predict(image).score == fitted.predict(image).score == stored.predict(image).score


def test_models_saved_here_score_in_jobs(tiles, tmp_path):
    estimator = mvad.KNN(category="alpha", backbone="efficientnet_lite0", image_size=64)
    estimator.fit(sorted((tiles / "alpha" / "train" / "good").iterdir())).save(tmp_path / "models")
    mvad.score(str(tiles), str(tmp_path / "models"), str(tmp_path / "out"), categories=["alpha"], actors=1, quiet=True)
    rows = rows_of(tmp_path / "out", "alpha")
    for row, prediction in zip(rows, estimator.predict([tiles / row["image_id"] for row in rows]), strict=True):
        assert_same(row, prediction)


def test_windows_places_and_what_is_ignored_are_those_of_the_job(tiles, tmp_path):
    from PIL import Image

    data = tmp_path / "data"
    shutil.copytree(tiles / "alpha", data / "alpha")
    mask = np.zeros((96, 96), np.uint8)
    mask[:30, :40] = 255
    Image.fromarray(mask).save(data / "alpha" / "ignore.png")
    options = {"tile_size": "64", "coreset_ratio": 0.2, "position_weight": 1.0, "seed": 3}
    mvad.run(str(data), str(tmp_path / "out"), maps="all", actors=1, **options, **EMBEDDED)
    model = mvad.load_model(tmp_path / "out" / "models")
    assert model.input_size.window == (64, 64)
    rows = rows_of(tmp_path / "out", "alpha")
    for row, prediction in zip(rows, model.predict([data / row["image_id"] for row in rows]), strict=True):
        assert_same(row, prediction)
    again = mvad.PatchCore(
        category="alpha", backbone="efficientnet_lite0", ignore=str(data / "alpha" / "ignore.png"), **options
    )
    assert again.fit(data / "alpha" / "train" / "good").model_.model_id == model.model_id


def test_maps_are_those_of_results(base_run, tiles):
    out, _ = base_run
    found = mvad.read_results(out)
    model = mvad.load_model(out / "models", "beta")
    image_id = "beta/test/spot/001.png"
    ours, theirs = model.predict(tiles / image_id).anomaly_map, found.maps(image_id)
    assert ours.shape == (96, 96)
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours, theirs)


def test_every_method_has_an_estimator():
    assert {*OF_METHOD} == {*METHODS}
    assert all(isinstance(estimator(), estimators.Estimator) for estimator in OF_METHOD.values())
    assert COMPARED["image_size"] == OF_METHOD["vae"](image_size=COMPARED["image_size"]).get_params()["image_size"]
