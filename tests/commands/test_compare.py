"""Every method on every category, with one actor and with two."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

import mvad
from helpers.tiles import COMPARED, write_category
from mvad import results
from mvad.comparison.table import SCHEMA
from mvad.detectors import METHODS
from mvad.errors import UsageError
from mvad.storage import to_uri

pytestmark = pytest.mark.usefixtures("ray_local")


def table_of(result):
    return {(row["method"], row["shots"], row["category"]): row for row in result.summary}


def scores_of(out, name):
    return {row["image_id"]: row for row in results.read_scores(to_uri(out / "runs" / name)).to_pylist()}


def test_every_method_has_its_rows(compared):
    _, result = compared
    assert result.exit_code == 0
    table = table_of(result)
    assert len(table) == len(METHODS) * 2 * 3
    for (method, shots, _), row in table.items():
        assert (row["image_auroc"] is None) == (method == "vit-knn")
        assert row["repeats"] in (None, 0 if method == "vit-knn" else 2 if shots else 1)
    assert all(table[method, None, "alpha"]["image_auroc"] == 1.0 for method in ("patchcore", "knn"))
    assert all(table[method, 2, "alpha"]["n_train"] == 2 for method in METHODS if method != "vit-knn")


def test_the_table_is_that_of_the_runs(compared):
    out, result = compared
    table = table_of(result)
    summaries = [json.loads((out / f"runs/vae-2shot-{seed}/summary.json").read_text())[1] for seed in (0, 1)]
    row = table["vae", 2, "beta"]
    assert row["image_auroc"] == pytest.approx(np.mean([summary["image_auroc"] for summary in summaries]))
    assert row["image_auroc_sd"] == pytest.approx(np.std([summary["image_auroc"] for summary in summaries], ddof=1))
    mean = table["vae", 2, "mean"]
    both = [table["vae", 2, name] for name in ("alpha", "beta")]
    assert mean["image_auroc"] == pytest.approx((both[0]["image_auroc"] + both[1]["image_auroc"]) / 2)
    assert mean["fit_seconds"] == pytest.approx(both[0]["fit_seconds"] + both[1]["fit_seconds"])
    folder = out / "runs/patchcore/models/patchcore/alpha"
    files = [folder / name for name in json.loads((folder / "model.json").read_text())["files"]]
    assert table["patchcore", None, "alpha"]["model_bytes"] == sum(path.stat().st_size for path in files)
    stored = pq.read_table(out / "compare.parquet")
    assert stored.schema.equals(SCHEMA)
    assert stored.to_pylist() == json.loads((out / "compare.json").read_text()) == result.summary
    assert (out / "_SUCCESS").exists()


def test_a_method_without_weights_has_its_reason_and_stops_nobody(compared):
    row = table_of(compared[1])["vit-knn", None, "alpha"]
    assert row["image_auroc"] is None
    assert "vit_b_16-c867db91.pth" in row["note"]


def test_one_actor_gives_the_same_scores(compared, tiles, tmp_path):
    methods = ",".join(name for name in METHODS if name != "vit-knn")
    options = {**COMPARED, "methods": methods, "shot_repeats": 1, "batch_size": 5}
    mvad.compare(str(tiles), str(tmp_path / "out"), actors=1, **options)
    for method in methods.split(","):
        for name in (method, f"{method}-2shot-0"):
            expected, found = scores_of(compared[0], name), scores_of(tmp_path / "out", name)
            assert len(found) == 16
            assert {image: row["score"] for image, row in found.items()} == {
                image: row["score"] for image, row in expected.items()
            }, name
            assert all(row["patch_scores"] == expected[image]["patch_scores"] for image, row in found.items())


def test_a_run_of_one_method_gives_the_same_scores(base_run, compared):
    """Features extracted together with others, and by `run` for PatchCore alone."""
    expected = results.read_scores(to_uri(base_run[0]), ["image_id", "score"]).to_pylist()
    assert {row["image_id"]: row["score"] for row in expected} == {
        image: row["score"] for image, row in scores_of(compared[0], "patchcore").items()
    }


def test_models_of_trained_methods_are_safetensors(compared, tiles, tmp_path):
    folder = compared[0] / "runs/vae/models"
    assert sorted(path.name for path in (folder / "vae/alpha").iterdir()) == ["model.json", "network.safetensors"]
    assert json.loads((folder / "vae/alpha/model.json").read_text())["settings"]["history"]["epochs"] <= 2
    options = {"categories": "alpha", "actors": 1, "quiet": True}
    mvad.score(str(tiles), str(folder), str(tmp_path / "out"), **options)
    found = results.read_scores(to_uri(tmp_path / "out")).to_pylist()
    expected = scores_of(compared[0], "vae")
    assert len(found) == 8
    assert all(row["score"] == expected[row["image_id"]]["score"] for row in found)


def test_nearest_neighbours_give_verdicts_and_no_maps(compared):
    rows = scores_of(compared[0], "knn").values()
    assert all(row["is_anomaly"] == (row["score"] > row["threshold"]) for row in rows)
    assert all(row["patch_scores"] is row["patch_grid"] is None for row in rows)
    for summary in json.loads((compared[0] / "runs/knn/summary.json").read_text())[:2]:
        flagged = sum(row["is_anomaly"] for row in rows if row["category"] == summary["category"])
        assert flagged == 4 * summary["recall_at_threshold"] + 4 * summary["false_alarm_rate"]
        assert summary["pixel_auroc"] is None


def test_what_fails_has_its_reason_and_the_rest_goes_on(tmp_path, monkeypatch):
    """One category: nothing to transfer from. PatchCore fails in fitting. An unreadable file is named once."""
    write_category(tmp_path / "data", "cap", train=5, good=2, defective=2)
    (tmp_path / "data/cap/train/good/001.png").write_bytes(b"")

    def explode(options, features, rows, prior=None, **others):  # defined here, it travels to the tasks as code
        if options.method != "patchcore":
            from mvad.fitting.tasks import fit_detector

            return fit_detector(options, features, rows, prior, **others)
        raise ValueError("no room\nfor patches")

    monkeypatch.setattr("mvad.fitting.category_fit.fit_detector", explode)
    options = {**COMPARED, "shots": None, "methods": "vae-fewshot,knn,patchcore", "max_errors": "0", "actors": 1}
    options["engine"] = "torch"
    result = mvad.compare(str(tmp_path / "data"), str(tmp_path / "out"), **options)
    notes = {row["method"]: row["note"] for row in result.summary if row["category"] == "cap"}
    assert notes["patchcore"] == "no model: ValueError: no room for patches"
    assert "other categories" in notes["vae-fewshot"]
    assert notes["knn"] is None
    assert table_of(result)["knn", None, "cap"]["image_auroc"] > 0.5
    assert [row["image_id"] for row in result.errors] == ["cap/train/good/001.png"]
    assert result.exit_code == 3
    assert not (tmp_path / "out/_SUCCESS").exists()


def test_wrong_use(tiles, tmp_path):
    for options, message in (
        ({"methods": "magic"}, "unknown method 'magic'"),
        ({"methods": ","}, "the list is empty"),
        ({"shots": "one"}, "--shots 'one' is not a whole number"),
        ({"shots": "0,5"}, "--shots '0' is too small; the minimum is 1"),
        ({"backbone": "resnet5000"}, "unknown backbone"),
    ):
        with pytest.raises(UsageError, match=message):
            mvad.compare(str(tiles), str(tmp_path / "out"), **options)
    assert not (tmp_path / "out").exists()
