"""A dump without folders per product: `mvad score --category auto`."""

import json
import os
import shutil

import pytest

import mvad
from helpers.tiles import EMBEDDED
from mvad.calibration import UNKNOWN_PRODUCT
from mvad.detectors import State, find_method
from mvad.errors import UsageError
from mvad.model_store import (
    FittedModel,
    find_models,
    read_arrays,
    read_calibration,
    read_patch_sample,
    save_model,
)
from mvad.results.schema import SCORES
from mvad.results.store import read_scores
from mvad.storage import to_uri

MODELS = ("bracket", "weave")
SMALL = {"image_size": 96, "coreset_ratio": 0.05, "limit": 16, "folds": 3, **EMBEDDED}
SEEN = ("category", "nearest_category", "margin", "strange_share", "score", "p_value", "is_anomaly", "status", "error")


@pytest.fixture(scope="module")
def models(sample, ray_local, tmp_path_factory):
    """Models of two of the three categories of the sample."""
    folder = tmp_path_factory.mktemp("models") / "models"
    mvad.fit(str(sample), models=str(folder), categories=",".join(MODELS), actors=1, **SMALL)
    return folder


@pytest.fixture(scope="module")
def dump(sample, tmp_path_factory):
    """Good and defective images of three products in one folder, and a file that is no image."""
    folder = tmp_path_factory.mktemp("dump")
    for category in (*MODELS, "perforated"):
        for defect in sorted((sample / category / "test").iterdir()):
            for number, file in enumerate(sorted(defect.iterdir())[:3]):
                shutil.copy(file, folder / f"{category}-{defect.name}-{number}.png")
    (folder / "cut-off.png").write_bytes(b"\x89PNG")
    for file in folder.iterdir():
        os.utime(file, (1e9, 1e9))
    return folder


@pytest.fixture(scope="module")
def scored(models, dump, tmp_path_factory):
    out = tmp_path_factory.mktemp("scored") / "out"
    result = mvad.score(str(dump), str(models), str(out), category="auto", actors=2, quiet=True)
    return out, result


def rows_of(out):
    """The rows of results, by image id, without what differs between runs."""
    names = [name for name in SCORES.names if name not in ("run_id", "scored_at")]
    return {row["image_id"]: row for row in read_scores(to_uri(out), names).to_pylist()}


def test_good_and_defective_images_go_home(scored):
    rows = rows_of(scored[0])
    own = {name: row for name, row in rows.items() if name.startswith(MODELS)}
    assert len(own) > 12
    assert {name: row["category"] for name, row in own.items()} == {name: name.split("-")[0] for name in own}
    assert all(row["nearest_category"] == row["category"] for row in own.values())
    assert all(0.3 < row["margin"] <= 1 and 0 <= row["strange_share"] < 0.8 for row in own.values())
    assert all(row["status"] == "ok" and row["score"] > 0 and row["is_anomaly"] is not None for row in own.values())


def test_an_image_of_another_kind_is_an_unknown_product_and_not_defective(scored):
    rows = [row for name, row in rows_of(scored[0]).items() if name.startswith("perforated")]
    assert {row["category"] for row in rows} == {UNKNOWN_PRODUCT}
    assert {row["status"] for row in rows} == {"ok"}
    assert {row["is_anomaly"] for row in rows} == {row["score"] for row in rows} == {None}
    assert all(row["strange_share"] > 0.8 and row["nearest_category"] in MODELS for row in rows)


def test_a_file_that_cannot_be_read_has_an_error_and_fails_no_category(scored):
    out, result = scored
    row = rows_of(out)["cut-off.png"]
    assert (row["category"], row["status"], row["nearest_category"]) == (UNKNOWN_PRODUCT, "error", None)
    assert row["error"]
    assert result.exit_code == 0


def test_the_summary_counts_unknown_products_apart(scored):
    out, result = scored
    summary = {row["category"]: row for row in result.summary}
    assert list(summary) == [*sorted([*MODELS, UNKNOWN_PRODUCT]), "mean"]
    rows = rows_of(out).values()
    for category in MODELS:
        assert summary[category]["n_scored"] == sum(row["category"] == category for row in rows)
    unknown = summary[UNKNOWN_PRODUCT]
    n_unknown = sum(row["category"] == UNKNOWN_PRODUCT and row["status"] == "ok" for row in rows)
    assert (unknown["n_scored"], unknown["n_error"], unknown["n_flagged"]) == (n_unknown, 1, 0)
    assert unknown["threshold"] is None


def test_the_report_shows_unknown_products(scored, tmp_path):
    mvad.report(str(scored[0]), to=str(tmp_path / "report.html"), quiet=True)
    page = (tmp_path / "report.html").read_text()
    _, _, gallery = page.partition("<h3>Unknown products")
    gallery, _, _ = gallery.partition("</ul>")
    unknown = [row for row in rows_of(scored[0]).values() if row["category"] == UNKNOWN_PRODUCT and not row["error"]]
    assert gallery.count("<img") == gallery.count("of it is unlike") == len(unknown) > 10
    assert all(f">{row['image_id']}<" in gallery for row in unknown)
    first = max(unknown, key=lambda row: row["strange_share"])
    assert f"{100 * first['strange_share']:.0f}" in gallery.partition("of it is unlike")[0]


def test_other_commands_read_the_results(scored, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(scored[0], out)
    before = rows_of(out)
    again = mvad.evaluate(str(out), quiet=True)
    assert [row["n_scored"] for row in again.summary] == [row["n_scored"] for row in scored[1].summary]
    assert rows_of(out) == before
    mvad.report(str(out), to=str(tmp_path / "report.html"), quiet=True)
    assert UNKNOWN_PRODUCT in (tmp_path / "report.html").read_text()
    mvad.regions(str(out), to=str(tmp_path / "regions.csv"), quiet=True)


def test_scores_are_those_of_the_image_in_the_folder_of_its_category(scored, models, dump, tmp_path):
    by_folder = tmp_path / "dump"
    for file in dump.glob("weave-*"):
        (by_folder / "weave").mkdir(parents=True, exist_ok=True)
        shutil.copy(file, by_folder / "weave" / file.name)
    mvad.score(str(by_folder), str(models), str(tmp_path / "out"), quiet=True)
    rows = rows_of(scored[0])
    for name, row in rows_of(tmp_path / "out").items():
        assert (row["score"], row["p_value"]) == tuple(
            rows[name.removeprefix("weave/")][key] for key in ("score", "p_value")
        )
        assert row["margin"] is row["strange_share"] is row["nearest_category"] is None


def test_rows_are_the_same_for_any_number_of_actors_batch_size_and_after_an_interruption(
    scored, models, dump, tmp_path
):
    out = tmp_path / "out"
    shutil.copytree(scored[0], out)
    run = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps({**run, "status": "running"}))
    for part in sorted(out.glob("scores/*/*.parquet"))[::2]:
        part.unlink()
    options = {"category": "auto", "actors": 1, "batch_size": 3, "quiet": True}
    mvad.score(str(dump), str(models), str(out), **options)
    assert rows_of(out) == rows_of(scored[0])
    fresh = tmp_path / "fresh"
    mvad.score(str(dump), str(models), str(fresh), **options)
    assert rows_of(fresh) == rows_of(scored[0])


def test_results_of_a_mixed_dump_are_not_gone_on_with_otherwise(scored, models, dump):
    with pytest.raises(UsageError, match="begun with --category auto"):
        mvad.score(str(dump), str(models), str(scored[0]), category="weave", quiet=True)
    with pytest.raises(UsageError, match="begun with --categories"):
        mvad.score(str(dump), str(models), str(scored[0]), category="auto", categories="weave", quiet=True)


def test_a_night_expects_categories_that_have_a_model(models, dump, tmp_path):
    only_weave = tmp_path / "dump"
    only_weave.mkdir()
    for file in sorted(dump.glob("weave-good-*")):
        shutil.copy(file, only_weave / file.name)
    night = {"models": str(models), "out": str(tmp_path / "nights"), "date": "2026-11-23", "quiet": True}
    assert mvad.nightly(str(only_weave), category="auto", expect="weave", **night).exit_code == 0
    run = json.loads((tmp_path / "nights/date=2026-11-23/run.json").read_text())
    assert list(run["categories"]) == ["weave"]
    assert mvad.nightly(str(only_weave), category="auto", **night).exit_code == 4


def test_a_model_without_scores_of_patches_is_refused(models, dump, tmp_path):
    other = tmp_path / "models"
    shutil.copytree(models, other)
    (folder,) = (other / "patchcore").glob("weave*")
    shutil.rmtree(folder)
    model = find_models(to_uri(models))["weave"]
    assert read_patch_sample(model).shape == (len(read_calibration(model)), 64)
    old = FittedModel(
        "weave",
        find_method(model.method),
        State(model.settings, read_arrays(model)),
        model.backbone,
        model.weights_sha256,
        model.size,
        model.record,
        read_calibration(model),
    )
    save_model(to_uri(other), old)
    with pytest.raises(UsageError, match=r"1 model does not say it \(weave\): fit again"):
        mvad.score(str(dump), str(other), str(tmp_path / "out"), category="auto", quiet=True)
    assert not (tmp_path / "out").exists()
    assert mvad.score(str(dump), str(other), str(tmp_path / "one"), category="auto", categories="bracket", quiet=True)
