"""Images seen through windows and as a whole: what is larger than a window is found, and what is small still is."""

import shutil

import numpy as np
import pytest

import mvad
from helpers import banded
from mvad import results
from mvad.data.images import load_image
from mvad.detectors import PatchCore, State
from mvad.errors import UsageError
from mvad.features.specs import prepare
from mvad.features.weights import Network
from mvad.model_store import find_models, model_id, read_arrays, read_calibration, read_fitted, read_map_peaks
from mvad.storage import to_uri

pytestmark = pytest.mark.usefixtures("ray_local")
DECISION = {"false_alarm_rate": 0.08}


@pytest.fixture(scope="module")
def sheets(tmp_path_factory):
    root = tmp_path_factory.mktemp("sheets")
    return banded.write(root, train_good=24, test_good=3, test_spot=2, test_missing=2)


@pytest.fixture(scope="module")
def scored(sheets, ray_local, tmp_path_factory):
    out = tmp_path_factory.mktemp("levels") / "out"
    assert mvad.run(str(sheets), str(out), **banded.LEVELS, **DECISION).exit_code == 0
    return out


def rows_of(out):
    columns = ["image_id", "score", "is_anomaly", "regions", "anomalous_area", "p_value"]
    return {row["image_id"]: row for row in results.read_scores(to_uri(out), columns).to_pylist()}


def model_of(out):
    return find_models(to_uri(out))["sheet"]


def test_a_missing_band_is_found_as_a_whole_alone_and_a_spot_at_both(sheets, scored, tmp_path):
    mvad.run(str(sheets), str(tmp_path / "tiles"), **banded.TILES, **DECISION)
    flagged = [
        {name.split("/")[2] for name, row in rows_of(out).items() if row["is_anomaly"]}
        for out in (tmp_path / "tiles", scored)
    ]
    assert flagged == [{"spot"}, {"spot", "missing"}]
    for name, row in rows_of(scored).items():
        if "missing" in name:
            assert row["regions"][0]["width"] > 2 * banded.TILE
            assert row["anomalous_area"] > 0.1
        elif "spot" in name:
            assert any(
                one["x"] <= banded.SPOT[1].start and one["x"] + one["width"] >= banded.SPOT[1].stop
                for one in row["regions"]
            )


def test_scores_are_those_of_the_detector_of_both(sheets, scored):
    model = model_of(scored / "models")
    extract = prepare(["patches"], Network.load(model.backbone, None), model.size, "auto").load()
    detector = PatchCore.from_state(State(model.settings, read_arrays(model)))
    for name, row in rows_of(scored).items():
        pixels, _, _ = load_image(to_uri(sheets / name), model.size, 10**6)
        assert detector.score(extract(pixels[None])["patches"]).image[0] == row["score"]


@pytest.mark.parametrize("options", [{"batch_size": 1, "actors": 1}, {"batch_size": 5, "actors": 2, "maps": "all"}])
def test_neither_batches_nor_actors_nor_maps_change_a_bit(sheets, scored, tmp_path, options):
    mvad.score(str(sheets), str(scored / "models"), str(tmp_path / "out"), quiet=True, **DECISION, **options)
    assert rows_of(tmp_path / "out") == rows_of(scored)


def test_a_model_in_this_process_is_the_jobs(sheets, scored):
    stored = mvad.load_model(scored / "models", **DECISION)
    options = {name: value for name, value in banded.LEVELS.items() if name not in ("quiet", "actors")}
    images = sorted(sheets.glob("sheet/train/good/*.png"))
    fitted = mvad.PatchCore(**options, **DECISION).fit(images)
    rows = rows_of(scored)
    for model in (stored, fitted):
        for name, row in rows.items():
            found = model.predict(sheets / name)
            assert (found.score, found.is_anomaly, len(found.regions)) == (
                row["score"],
                row["is_anomaly"],
                len(row["regions"]),
            )


def test_shards_are_calibrated_at_both_levels(sheets, scored, tmp_path, monkeypatch):
    monkeypatch.setattr("mvad.fitting.fit.max_images", lambda *_: 2)
    mvad.run(str(sheets), str(tmp_path / "out"), **banded.LEVELS, **DECISION)
    model, whole = model_of(tmp_path / "out/models"), model_of(scored / "models")
    assert len(read_arrays(model)["whole_bank"]) == len(read_arrays(whole)["whole_bank"])
    assert read_arrays(model)["good_scores"].shape == read_arrays(whole)["good_scores"].shape
    assert len(read_map_peaks(model)) == len(read_calibration(model)) == len(read_calibration(whole))
    flagged = {name.split("/")[2] for name, row in rows_of(tmp_path / "out").items() if row["is_anomaly"]}
    assert flagged == {"spot", "missing"}


def test_thinned_patches_of_windows_leave_those_of_the_whole(sheets, scored, tmp_path, monkeypatch):
    monkeypatch.setattr("mvad.fitting.fit.patch_step", lambda *_: 2)
    mvad.fit(str(sheets), str(tmp_path / "models"), **banded.LEVELS)
    thinned, whole = read_arrays(model_of(tmp_path / "models")), read_arrays(model_of(scored / "models"))
    assert len(thinned["whole_bank"]) == len(whole["whole_bank"])
    assert len(thinned["tiles_bank"]) == pytest.approx(len(whole["tiles_bank"]) / 4, rel=0.01)


def test_an_update_keeps_the_units_of_the_levels(sheets, scored, tmp_path):
    shutil.copytree(scored / "models", tmp_path / "models")
    new = banded.write(tmp_path / "new", seed=5, train_good=5)
    mvad.update(str(new), str(tmp_path / "models"), quiet=True)
    before, after = model_of(scored / "models"), model_of(tmp_path / "models")
    assert after.record["n_train"] == 29
    assert len(read_calibration(after)) > len(read_calibration(before))
    np.testing.assert_array_equal(read_arrays(after)["good_scores"], read_arrays(before)["good_scores"])
    assert len(read_arrays(after)["whole_bank"]) > len(read_arrays(before)["whole_bank"])


def test_the_model_knows_its_levels(sheets, scored, tmp_path):
    (listed,) = mvad.models(str(scored / "models"), quiet=True)
    model = model_of(scored / "models")
    assert listed["tile_levels"] == "whole,tiles"
    assert model.size.whole == (128, 128)
    assert model_id(read_fitted(model)) == model.model_id
    with pytest.raises(UsageError, match=r"as a whole and through windows .*, which an ONNX file cannot do"):
        mvad.export(str(scored / "models"), out=str(tmp_path / "model.onnx"), quiet=True)
