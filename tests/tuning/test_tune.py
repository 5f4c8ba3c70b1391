"""`mvad tune` from end to end, with two candidates and a few images."""

import json
import math
import time

import pytest
import ray
from ray.exceptions import TaskCancelledError, WorkerCrashedError

import mvad
from helpers.tiles import EMBEDDED
from mvad.errors import UsageError
from mvad.model_store import find_models
from mvad.storage import to_uri
from mvad.tuning import candidates
from mvad.tuning.search import results_by

SMALL = {**EMBEDDED, "limit": 16, "image_size": 64, "actors": 1, "folds": 0, "categories": "weave"}


@pytest.fixture
def two_candidates(monkeypatch):
    steps = (({"image_size": 64}, {"image_size": 96}), ({"no_such_option": 1}, {"coreset_ratio": 0.02}))
    monkeypatch.setitem(candidates.CANDIDATES, "patchcore", steps)


@pytest.mark.usefixtures("ray_local", "two_candidates")
def test_models_have_the_chosen_options_and_the_record_says_why(sample, tmp_path, capsys):
    result = mvad.tune(str(sample), str(tmp_path / "models"), budget="5m", **{**SMALL, "quiet": False})
    assert result.exit_code == 0
    entry = json.loads((tmp_path / "models/tuning.json").read_text())["categories"]["weave"]
    assert (entry["n_fit"], entry["n_held_out"], entry["n_defective"]) == (11, 5, 15)
    assert (entry["method"], entry["seed"], entry["budget"], entry["note"]) == ("patchcore", 0, 300.0, None)
    assert entry["not_tried"] == []
    tried = [one["changes"] for one in entry["candidates"]]
    size = entry["chosen"].get("image_size", 64)
    assert tried[:2] == [{}, {"image_size": 96}]
    assert tried[2] in ({"coreset_ratio": 0.02}, {"image_size": 96, "coreset_ratio": 0.02})
    assert [one["input"] for one in entry["candidates"]][:2] == ["64 x 64", "96 x 96"]
    for one in entry["candidates"]:
        assert 0 <= one["low"] <= one["figure"] <= one["high"] <= 1
        assert one["figure"] == pytest.approx((one["image_auroc"] + one["pixel_ap"]) / 2, abs=1e-5)
        assert one["difference_low"] <= one["difference"] <= one["difference_high"]
    model = find_models(to_uri(str(tmp_path / "models")), None)["weave"]
    assert model.size.crop == (size, size)
    assert model.settings["coreset_ratio"] == entry["chosen"].get("coreset_ratio", 0.1)
    assert model.record["n_train"] == 16
    assert [row["chosen"] for row in result.summary].count(True) == 1
    shown = capsys.readouterr().out
    assert "image-size 96" in shown
    assert "chosen: " in shown


@pytest.mark.usefixtures("ray_local", "two_candidates")
def test_what_was_chosen_is_kept_when_the_command_is_repeated(sample, tmp_path):
    models = tmp_path / "models"
    mvad.tune(str(sample), str(models), budget="5m", **SMALL)
    before = (models / "tuning.json").read_bytes(), (models / "patchcore/weave/model.json").read_bytes()
    again = mvad.tune(str(sample), str(models), budget="5m", **SMALL)
    assert ((models / "tuning.json").read_bytes(), (models / "patchcore/weave/model.json").read_bytes()) == before
    assert again.seconds["tune"] < 5
    with pytest.raises(UsageError, match="'weave' already, that was not tuned like this; add --new-run"):
        mvad.tune(str(sample), str(models), seed=1, **SMALL)


@pytest.mark.usefixtures("ray_local", "two_candidates")
def test_a_budget_that_is_spent_leaves_candidates_untried_and_says_so(sample, tmp_path, capsys):
    mvad.tune(str(sample), str(tmp_path / "models"), budget="0.001s", **SMALL)
    entry = json.loads((tmp_path / "models/tuning.json").read_text())["categories"]["weave"]
    assert entry["chosen"] == {}
    assert [one["changes"] for one in entry["candidates"]] == [{}]
    assert entry["not_tried"] == [{"image_size": 96}, {"coreset_ratio": 0.02}]
    assert "no time for 2 candidates (image-size 96; coreset-ratio 0.02); raise --budget" in capsys.readouterr().err


@pytest.mark.usefixtures("ray_local", "two_candidates")
def test_a_category_with_few_images_keeps_the_options_as_given(sample, tmp_path, capsys):
    result = mvad.tune(str(sample), str(tmp_path / "models"), **{**SMALL, "limit": 6})
    assert result.exit_code == 0
    assert "it has too few good images to hold some out" in capsys.readouterr().err
    assert json.loads((tmp_path / "models/tuning.json").read_text())["categories"]["weave"]["candidates"] == []


@pytest.mark.usefixtures("ray_local", "two_candidates")
def test_a_run_tunes_and_scores_with_models_of_different_input(sample, tmp_path, monkeypatch):
    monkeypatch.setattr("mvad.tuning.search.choose", lambda figures, costs: len(figures) - 1)
    options = {**SMALL, "limit": 12, "categories": "weave,perforated"}
    result = mvad.run(str(sample), str(tmp_path / "out"), tune=True, budget="5m", **options)
    assert result.exit_code == 0
    assert {row["category"] for row in result.summary} == {"weave", "perforated", "mean"}
    for name in ("weave", "perforated"):
        model = json.loads((tmp_path / f"out/models/patchcore/{name}/model.json").read_text())
        assert model["size"]["crop"] == [96, 96]
        assert model["settings"]["coreset_ratio"] == 0.02
    run = json.loads((tmp_path / "out/run.json").read_text())
    assert run["options"]["tune"] is True
    assert {"tune", "fit", "score"} <= set(run["seconds"])


def test_only_methods_with_candidates_are_tuned():
    with pytest.raises(UsageError, match="--method knn has no options to tune; choose one of: patchcore"):
        mvad.tune("data", "models", method="knn")
    with pytest.raises(UsageError, match="--shots leaves too few images"):
        mvad.run("data", "out", tune=True, shots=4)


@pytest.mark.parametrize("budget", ["soon", "10 minutes", "-5m", "0", "1d", ""])
def test_a_budget_that_is_no_time_is_refused(budget):
    with pytest.raises(UsageError, match=f"--budget '{budget}' is not a time such as 90s, 10m or 1h"):
        mvad.tune("data", "models", budget=budget)


def test_a_candidate_that_takes_too_long_is_given_up(ray_local):
    @ray.remote
    def after(seconds):
        time.sleep(seconds)
        return 7

    quick, slow = after.remote(0), after.remote(600)
    assert ray.get(quick) == 7
    assert results_by(time.monotonic(), [quick, slow]) == [7, None]
    with pytest.raises((TaskCancelledError, WorkerCrashedError)):
        ray.get(slow, timeout=60)
    assert results_by(math.inf, [quick]) == [7]
    assert results_by(math.inf, []) == []
