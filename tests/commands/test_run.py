"""The main job end to end, on small images and with the packaged weights."""

import json
import shutil
from pathlib import Path

import duckdb
import numpy as np
import pandas
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import mvad
from helpers.tiles import EMBEDDED, REAL_DATA, write_category
from mvad import results
from mvad.data.image_size import ImageSize
from mvad.errors import UsageError
from mvad.options import RunOptions
from mvad.storage import to_uri

pytestmark = pytest.mark.usefixtures("ray_local")
# One actor starts sooner than two, and calibration is tested elsewhere.
SMALL = {**EMBEDDED, "image_size": 64, "actors": 1, "folds": 0}


def scores_of(out):
    """Score rows by image id."""
    return {row["image_id"]: row for row in results.read_scores(to_uri(out)).to_pylist()}


def test_every_test_image_has_its_row(base_run, tiles):
    out, result = base_run
    assert result.exit_code == 0
    rows = scores_of(out)
    images = sorted(path.relative_to(tiles).as_posix() for path in tiles.glob("*/test/*/*.png"))
    assert sorted(rows) == images
    assert len(images) == 16
    row = rows["beta/test/spot/001.png"]
    assert row["category"] == "beta"
    assert (row["split"], row["label"], row["defect"], row["status"]) == ("test", 1, "spot", "ok")
    assert (row["width"], row["height"]) == (96, 96)
    assert row["uri"] == (tiles / "beta/test/spot/001.png").as_uri()
    assert row["patch_grid"] == [8, 8]
    assert len(row["patch_scores"]) == 64
    assert row["error"] is None
    # Of 8 calibration images the largest score is the threshold.
    assert row["threshold"] == np.load(out / "models/patchcore/beta/calibration.npy").max()
    assert (row["is_anomaly"], row["p_value"]) == (True, 1 / 9)


def test_defects_score_above_good_images_and_are_found_where_they_are(base_run, tiles):
    out, result = base_run
    for row in result.summary:
        assert row["image_auroc"] == 1.0
        assert row["pixel_auroc"] > 0.9
    for name, row in scores_of(out).items():
        if row["label"] == 1:
            grid = np.reshape(row["patch_scores"], row["patch_grid"])
            y, x = np.unravel_index(grid.argmax(), grid.shape)
            mask = np.asarray(Image.open(tiles / name.replace("test", "ground_truth").replace(".png", "_mask.png")))
            marked = mask.reshape(8, 12, 8, 12).any(axis=(1, 3))
            assert marked[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].any(), name


def test_the_summary_has_a_row_a_category_and_the_mean(base_run):
    out, result = base_run
    assert [row["category"] for row in result.summary] == ["alpha", "beta", "mean"]
    table = pq.read_table(out / "summary.parquet")
    assert table.schema.equals(results.SUMMARY)
    written = json.loads((out / "summary.json").read_text())
    assert written == table.to_pylist()
    image_names, pixel_names = ("auroc", "ap", "f1_max"), ("auroc", "ap", "f1_max", "aupro", "aupro_5", "aupimo")
    for name in (*(f"image_{name}" for name in image_names), *(f"pixel_{name}" for name in pixel_names)):
        assert written[2][name] == pytest.approx((written[0][name] + written[1][name]) / 2)
    assert [row["n_train"] for row in written] == [8, 8, 16]
    assert [(row["n_good"], row["n_defect"], row["n_error"]) for row in written] == [(4, 4, 0), (4, 4, 0), (8, 8, 0)]
    assert all(row["images_per_second"] > 0 and row["fit_seconds"] > 0 for row in written)


def test_run_json_tells_what_was_done(base_run, tiles):
    out, _ = base_run
    run = json.loads((out / "run.json").read_text())
    assert (run["status"], run["exit_code"], run["n_rows"], run["n_errors"]) == ("done", 0, 16, 0)
    assert run["options"]["backbone"] == "efficientnet_lite0"
    assert run["options"]["seed"] == 0
    assert {"mvad", "ray", "torch", "python"} <= set(run["versions"])
    assert {"fit", "score", "evaluate", "total"} <= set(run["seconds"])
    model = json.loads((out / "models/patchcore/alpha/model.json").read_text())
    assert run["categories"]["alpha"]["model_id"] == model["model_id"]
    assert (out / "_SUCCESS").exists()
    assert list(run["stages"]) == ["fit", "score"]
    for stage, files in (("fit", tiles.glob("*/train/good/*")), ("score", tiles.glob("*/test/*/*"))):
        facts = run["stages"][stage]
        assert (facts["images"], facts["actors"], facts["actors_replaced"], facts["tasks_retried"]) == (16, 2, 0, 0)
        assert facts["bytes_read"] == sum(file.stat().st_size for file in files)
        assert all(10**8 < size < 10**10 for size in facts["peak_memory"].values())
        assert 0 < facts["seconds"] <= run["seconds"]["total"]


def test_other_programs_read_the_scores(base_run):
    out, _ = base_run
    frame = pandas.read_parquet(out / "scores")
    assert len(frame) == 16
    assert set(frame["category"].astype(str)) == {"alpha", "beta"}
    assert frame.groupby("label")["score"].mean()[1] > frame.groupby("label")["score"].mean()[0]
    counts = duckdb.sql(
        f"select category, count(*), count(score) from read_parquet('{out}/scores/*/*.parquet') group by all order by 1"
    ).fetchall()
    assert counts == [("alpha", 8, 8), ("beta", 8, 8)]


def test_fit_then_score_then_evaluate_are_the_run(base_run, tiles, tmp_path):
    models, out = tmp_path / "models", tmp_path / "out"
    fitted = mvad.fit(str(tiles), str(models), **SMALL)
    assert fitted.exit_code == 0
    mvad.score(str(tiles), str(models), str(out), maps="all", actors=1, quiet=True)
    expected = scores_of(base_run[0])
    assert {name: row["score"] for name, row in scores_of(out).items()} == {
        name: row["score"] for name, row in expected.items()
    }
    summary = json.loads((out / "summary.json").read_text())
    (out / "summary.json").unlink()
    assert mvad.evaluate(str(out), quiet=True).summary == summary
    assert json.loads((out / "summary.json").read_text()) == summary
    with pytest.raises(UsageError, match="has a patchcore model of 'alpha' already, of other images or options"):
        mvad.fit(str(tiles), str(models), **SMALL | {"coreset_ratio": 0.5})


def test_maps_of_anomalous_images_alone(base_run, tiles, tmp_path):
    out, options = tmp_path / "out", {"maps": "anomalous", "false_alarm_rate": 0.3, "actors": 1, "quiet": True}
    mvad.score(str(tiles), str(base_run[0] / "models"), str(out), **options)
    expected, rows = scores_of(base_run[0]), scores_of(out)
    assert {row["is_anomaly"] for row in rows.values()} == {True, False}
    for name, row in rows.items():
        assert row["score"] == expected[name]["score"]
        assert row["patch_scores"] == (expected[name]["patch_scores"] if row["is_anomaly"] else None)


def test_an_unlabelled_dump(base_run, tiles, tmp_path):
    dump = tmp_path / "dump"
    (dump / "alpha/night").mkdir(parents=True)
    (dump / "gamma").mkdir()
    shutil.copy(tiles / "alpha/test/spot/000.png", dump / "alpha/night/x.png")
    shutil.copy(tiles / "alpha/test/good/000.png", dump / "gamma/y.png")
    out = tmp_path / "out"
    result = mvad.score(str(dump), str(base_run[0] / "models"), str(out), actors=1, quiet=True)
    rows = scores_of(out)
    assert rows["alpha/night/x.png"]["score"] == scores_of(base_run[0])["alpha/test/spot/000.png"]["score"]
    assert rows["alpha/night/x.png"]["label"] is None
    assert rows["alpha/night/x.png"]["patch_scores"] is None
    assert rows["gamma/y.png"]["status"] == "error"
    assert rows["gamma/y.png"]["error"] == "no model of category 'gamma'"
    notes = {row["category"]: (row["image_auroc"], row["note"]) for row in result.summary}
    assert notes["alpha"] == (None, "the images carry no labels")
    assert notes["gamma"] == (None, "no test image could be scored; the first: no model of category 'gamma'")


REASONS = {
    "empty.png": "the file is empty",
    "text.jpg": "not an image of a known kind",
    "half.png": "truncated",
    "huge.png": "more than --max-pixels",
    "gone.png": "does not exist",
}


def spoil(folder):
    """Put five kinds of bad files beside the good ones."""
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("this is not an image")
    whole = next(folder.glob("000.png")).read_bytes()
    (folder / "half.png").write_bytes(whole[: len(whole) // 2])
    Image.new("L", (2000, 2000)).save(folder / "huge.png")
    (folder / "gone.png").symlink_to("nowhere.png")


def test_bad_files_are_rows_and_change_nothing_else(base_run, tiles, tmp_path):
    """Nor does a category of which nothing can be learnt."""
    root = tmp_path / "tiles"
    shutil.copytree(tiles, root)
    spoil(root / "alpha/train/good")
    spoil(root / "beta/test/good")
    write_category(root, "dead", train=2, good=1, defective=1)
    for path in (root / "dead/train/good").iterdir():
        path.write_bytes(b"")
    options = {"maps": "all", "max_pixels": 1_000_000, "max_errors": "100%", **SMALL}
    result = mvad.run(str(root), str(tmp_path / "out"), **options)
    assert result.exit_code == 0
    rows, expected = scores_of(tmp_path / "out"), scores_of(base_run[0])
    dead = {name: rows.pop(name)["error"] for name in sorted(rows) if name.startswith("dead/")}
    assert list(dead.values()) == 2 * ["no model: none of its 2 training images is usable"] + 2 * ["the file is empty"]
    by_name = {row["category"]: row for row in result.summary}
    assert by_name["dead"]["image_auroc"] is None
    assert by_name["dead"]["note"] == "no model: none of its 2 training images is usable"
    assert by_name["mean"]["note"] == "without dead"
    bad = {name: row for name, row in rows.items() if row["status"] == "error"}
    assert sorted(bad) == sorted(
        f"{folder}/{name}" for folder in ("alpha/train/good", "beta/test/good") for name in REASONS
    )
    for name, row in bad.items():
        assert REASONS[Path(name).name] in row["error"]
        assert row["score"] is row["patch_scores"] is row["width"] is None
        assert row["split"] == name.split("/")[1]
    assert {name: row["score"] for name, row in rows.items() if name not in bad} == {
        name: row["score"] for name, row in expected.items()
    }
    assert sorted(error["image_id"] for error in result.errors) == sorted([*bad, *dead])
    run = json.loads((tmp_path / "out/run.json").read_text())
    assert run["n_errors"] == 14
    assert [by_name[name]["n_error"] for name in ("alpha", "beta", "mean")] == [5, 5, 14]
    assert [by_name[name]["image_auroc"] for name in ("alpha", "beta", "mean")] == [1.0, 1.0, 1.0]


def test_too_many_bad_files(tmp_path, base_run):
    root = tmp_path / "data"
    write_category(root, "alpha", train=0, good=2, defective=3)
    spoil(root / "alpha/test/good")
    models, out = str(base_run[0] / "models"), tmp_path / "out"
    result = mvad.score(str(root), models, str(out), max_errors="20%", max_pixels=1_000_000, actors=1, quiet=True)
    assert result.exit_code == 3
    assert not (out / "_SUCCESS").exists()
    assert json.loads((out / "run.json").read_text())["exit_code"] == 3
    assert len(scores_of(out)) == 10


@pytest.mark.parametrize(("given", "of_ten"), [("0", 0), ("4", 4), ("20%", 2), ("12.5%", 1), ("100%", 10)])
def test_allowed_errors(given, of_ten):
    assert RunOptions(max_errors=given).allowed_errors(10) == of_ten


def test_replacing_an_earlier_run(base_run, tiles, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(base_run[0], out)
    first = json.loads((out / "run.json").read_text())["run_id"]
    with pytest.raises(UsageError, match="another run's results"):
        mvad.run(str(tiles), str(out), **SMALL)
    assert len(scores_of(out)) == 16
    mvad.run(str(tiles), str(out), new_run=True, categories="beta", limit=2, **SMALL)
    rows = scores_of(out)
    assert sorted(rows) == ["beta/test/good/000.png", "beta/test/spot/003.png"]
    assert {row["run_id"] for row in rows.values()} != {first}
    assert not (out / "models/patchcore/alpha").exists()


def test_models_of_other_weights_are_refused(base_run, tiles, tmp_path):
    import safetensors.numpy

    from mvad.features.backbones import describe
    from mvad.features.weights import load_weights

    weights = load_weights(describe("efficientnet_lite0"))
    name = next(iter(weights))
    safetensors.numpy.save_file({**weights, name: weights[name] * 1.5}, tmp_path / "other.safetensors")
    with pytest.raises(UsageError, match="fitted with other weights of efficientnet_lite0"):
        mvad.score(
            str(tiles), str(base_run[0] / "models"), str(tmp_path / "out"), weights=str(tmp_path / "other.safetensors")
        )
    assert not (tmp_path / "out").exists()


def test_resnet50_with_own_weights_and_published_geometry(tmp_path):
    from helpers.weights import random_weights

    write_category(tmp_path / "data", "cap", train=3, good=1, defective=1)
    path = tmp_path / "resnet50.safetensors"
    random_weights("resnet50", path)
    options = {"weights": str(path), "engine": "torch", "folds": 0, "quiet": True}
    result = mvad.run(str(tmp_path / "data"), str(tmp_path / "out"), maps="all", **options)
    assert result.exit_code == 0
    assert all(row["patch_grid"] == [32, 32] for row in scores_of(tmp_path / "out").values())
    model = json.loads((tmp_path / "out/models/patchcore/cap/model.json").read_text())
    bank = np.load(tmp_path / "out/models/patchcore/cap/bank.npy", allow_pickle=False)
    assert bank.shape == (round(0.1 * 3 * 32 * 32), 512 + 1024)
    assert (ImageSize(**model["size"]), model["backbone"]["name"]) == (ImageSize.square(256), "resnet50")


def test_patch_tokens_of_a_transformer(tmp_path):
    import timm
    from safetensors.torch import save_file

    write_category(tmp_path / "data", "cap", train=6, good=2, defective=2)
    torch.manual_seed(0)
    save_file(timm.create_model("vit_tiny_patch16_224").state_dict(), tmp_path / "vit.safetensors")
    options = {"backbone": "timm:vit_tiny_patch16_224", "weights": str(tmp_path / "vit.safetensors"), "quiet": True}
    options |= {"folds": 0, "actors": 1, "engine": "torch"}
    mvad.run(str(tmp_path / "data"), str(tmp_path / "patches"), maps="all", **options)
    assert all(row["patch_grid"] == [16, 16] for row in scores_of(tmp_path / "patches").values())
    with pytest.raises(UsageError, match="needs a Vision Transformer"):
        mvad.run(str(tmp_path / "data"), str(tmp_path / "out"), method="vit-knn", **EMBEDDED)
    with pytest.raises(UsageError, match="multiples of 16, not 100"):
        mvad.run(str(tmp_path / "data"), str(tmp_path / "out"), image_size=100, **options)


@pytest.mark.skipif(not REAL_DATA.exists(), reason="the real images are not on this machine")
def test_bottle(tmp_path):
    """MVTec AD bottle, whole: the accuracy the README states."""
    result = mvad.run(
        str(REAL_DATA / "mvtec"),
        str(tmp_path / "out"),
        image_size=256,
        coreset_ratio=0.02,
        maps="all",
        folds=0,
        **EMBEDDED,
    )
    bottle = result.summary[0]
    assert (bottle["n_train"], bottle["n_good"], bottle["n_defect"], bottle["n_error"]) == (209, 20, 63, 0)
    assert bottle["image_auroc"] >= 0.998
    assert bottle["pixel_auroc"] >= 0.975
