"""Training images that are not good are named, and with --drop-suspects a fit is what it would be without them."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

import mvad
from helpers.tiles import EMBEDDED
from mvad.calibration import threshold
from mvad.console import Reporter
from mvad.data.image_size import ImageSize
from mvad.data.synthetic import CATEGORIES, _photograph
from mvad.errors import UsageError
from mvad.features.backbones import describe
from mvad.features.weights import Network
from mvad.fitting.by_category import CategoryFeatures
from mvad.fitting.fitted import identify
from mvad.fitting.jobs import FitJob
from mvad.fitting.scheduler import FitScheduler
from mvad.fitting.sharding import Shards
from mvad.model_store import find_models, read_arrays, read_calibration
from mvad.options import FitOptions
from mvad.runtime.resources import ActorPool
from mvad.search.fingerprints import FINGERPRINT_SIDE
from mvad.storage import to_uri

N, BAD = 40, [3, 17]
OPTIONS = {"coreset_ratio": 0.2, "projection": 0, "seed": 1}
KNN = {"method": "knn", "neighbours": 3, "seed": 1}


def category(kind, rows=range(N), *, bad=BAD, copies=(), shard=0):
    """Features of images of which some are far from the others, each in a way of its own; ``copies`` of the first."""
    random = np.random.default_rng(0)
    shape = {"patches": (3, 4, 6), "pooled": (12,)}[kind]
    features = random.standard_normal((N, *shape))
    prints = 120 + 30 * random.standard_normal((N, FINGERPRINT_SIDE, FINGERPRINT_SIDE))
    for number, image in enumerate(bad):
        features[image, ..., number] += 12 if kind == "pooled" else 12 * (np.arange(12).reshape(3, 4) == number)[:, :]
    for image in copies:
        features[image], prints[image] = features[bad[0]], prints[bad[0]]
    rows = np.array(rows)
    ids = [f"{row:03}" for row in rows]
    return CategoryFeatures(
        "cap",
        {kind: features[rows].astype(np.float32)},
        np.array(ids, object),
        np.zeros(len(rows), np.int64),
        ids,
        {},
        shard,
        prints[rows].clip(0, 255).astype(np.uint8),
    )


def fitted(folder, units, shards=None, **options):
    options = FitOptions(**options)
    network = Network(describe("efficientnet_lite0"), {}, "0" * 64)
    job = FitJob("cap", options, network, to_uri(folder), size=ImageSize.square(64))
    pool = ActorPool(1, {"num_cpus": 0.5}, {"num_cpus": 0.5})
    with Reporter(quiet=True).stage("fit", N) as stage:
        scheduler = FitScheduler([job], shards or {}, options.memory_budget, pool, stage, keep_going=False)
        for unit in units:
            scheduler.add(unit)
        (outcome,) = scheduler.finish()
    return outcome.model


def names(model, *, dropped=None):
    return [one["image_id"] for one in model.record["suspects"] if dropped in (None, one["dropped"])]


@pytest.mark.parametrize(("kind", "options"), [("patches", OPTIONS), ("pooled", KNN)], ids=["patchcore", "knn"])
def test_suspects_are_named_and_a_fit_that_drops_them_is_one_without_them(kind, options, ray_local, tmp_path):
    named = fitted(tmp_path / "named", [category(kind)], **options)
    assert names(named, dropped=False) == ["003", "017"]
    assert (named.record["n_train"], named.record["suspects_examined"]) == (N, N)
    dropped = fitted(tmp_path / "dropped", [category(kind)], drop_suspects=True, **options)
    without = fitted(tmp_path / "without", [category(kind, np.delete(np.arange(N), BAD))], **options)
    assert (names(dropped), names(without)) == (["003", "017"], [])
    assert names(dropped, dropped=False) == []
    assert dropped.model_id == without.model_id != named.model_id  # a hash of all that it learnt
    assert dropped.record["training_sha256"] == without.record["training_sha256"]
    assert dropped.record["n_train"] == dropped.record["n_groups"] == N - 2
    scores = {one["image_id"]: one["score"] for one in named.record["suspects"]}
    np.testing.assert_allclose([scores["003"], scores["017"]], read_calibration(named)[BAD], rtol=1e-4)


@pytest.mark.parametrize(("kind", "options"), [("patches", OPTIONS), ("pooled", KNN)], ids=["patchcore", "knn"])
def test_near_duplicates_of_a_suspect_go_with_it(kind, options, ray_local, tmp_path):
    model = fitted(tmp_path, [category(kind, copies=[25])], drop_suspects=True, **options)
    assert names(model, dropped=True) == ["003", "017", "025"]
    assert (model.record["n_train"], model.record["n_groups"]) == (N - 3, N - 3)


def test_good_images_have_no_suspects(ray_local, tmp_path):
    assert names(fitted(tmp_path / "patchcore", [category("patches", bad=[])], **OPTIONS)) == []
    assert names(fitted(tmp_path / "knn", [category("pooled", bad=[])], **KNN)) == []


def test_of_shards_those_that_calibrate_are_looked_at(ray_local, tmp_path):
    """The others are in the bank; those that calibrate are not, so that nothing is fitted again."""
    held_out = np.arange(1, N, 2)
    shards = {"cap": Shards(N, 10, 12, 1.0, held_out)}
    units = [category("patches", range(10 * n, 10 * n + 10), bad=[3, 17, 20], shard=n) for n in range(4)]
    named = fitted(tmp_path / "named", units, shards, **OPTIONS)
    dropped = fitted(tmp_path / "dropped", units, shards, drop_suspects=True, **OPTIONS)
    assert names(named, dropped=False) == names(dropped, dropped=True) == ["003", "017"]
    assert named.record["suspects_examined"] == 20
    np.testing.assert_array_equal(read_arrays(named)["bank"], read_arrays(dropped)["bank"])
    kept = ~np.isin(held_out, [3, 17])
    np.testing.assert_array_equal(read_calibration(dropped), read_calibration(named)[kept])


@pytest.mark.parametrize("uncalibrated", [{"folds": 0}, {"calibration": "none"}])
def test_without_calibration_nothing_can_be_said(ray_local, tmp_path, uncalibrated):
    model = fitted(tmp_path, [category("patches")], **uncalibrated, **OPTIONS)
    assert (names(model), model.record["suspects_examined"]) == ([], 0)
    with pytest.raises(UsageError, match="--drop-suspects needs scores that calibrate"):
        FitOptions(**uncalibrated, drop_suspects=True)


def test_a_fit_that_drops_suspects_is_another_one():
    jobs = [
        FitJob(
            "cap", FitOptions(drop_suspects=drop), Network(describe("efficientnet_lite0"), {}, "0" * 64), "file:///m"
        )
        for drop in (False, True)
    ]
    images = pa.table({"image_id": ["a"], "file_size": [1], "file_mtime": [1], "category": ["cap"]})
    first, second = identify(jobs, images)
    assert first.fit_id != second.fit_id


@pytest.fixture(scope="module")
def weave(tmp_path_factory):
    """Folders ``clean``, ``5`` and ``10``: 40 good images of a weave and so many percent more that are not."""
    root, random = tmp_path_factory.mktemp("weave"), np.random.default_rng(0)
    paint, defects = CATEGORIES["weave"]
    kinds = [defects[name] for name in ("hole", "thread", "cut", "distortion")]

    def draw(place, defect=None):
        surface, structure = paint(random)
        row, column = random.integers(64, 192, 2)
        if defect is not None:
            surface, alpha = defect(surface, structure, random)
            row, column = (int(np.clip(np.average(axis, weights=alpha), 64, 192)) for axis in np.indices(alpha.shape))
        pixels = _photograph(surface, random)[row - 64 : row + 64, column - 64 : column + 64]
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8)).save(place)

    for number in range(40):
        draw(root / f"clean/weave/train/good/{number:03}.png")
    for number in range(8):
        draw(root / f"clean/weave/test/good/{number:03}.png")
        draw(root / f"clean/weave/test/bad/{number:03}.png", kinds[number % 4])
    for number in range(4):
        draw(root / f"bad/{number}.png", kinds[number])
    for percent, count in ((5, 2), (10, 4)):
        shutil.copytree(root / "clean", root / str(percent))
        for number in range(count):
            shutil.copy(root / f"bad/{number}.png", root / f"{percent}/weave/train/good/{10 * number + 5:03}x.png")
    return root


WEAVE = {**EMBEDDED, "image_size": 128, "coreset_ratio": 0.1, "actors": 1}


def model_of(out):
    return find_models(to_uri(out / "models"))["weave"]


@pytest.fixture(scope="module")
def clean(weave, ray_local, tmp_path_factory):
    """A folder with ``models`` of the clean images."""
    folder = tmp_path_factory.mktemp("clean")
    mvad.fit(str(weave / "clean"), str(folder / "models"), **WEAVE)
    return folder


def test_a_clean_set_has_nearly_no_suspects(clean):
    assert len(names(model_of(clean))) <= 1


def test_a_model_that_is_kept_names_its_suspects_again(weave, clean, tmp_path, capsys):
    shutil.copytree(clean / "models", tmp_path / "models")
    path = tmp_path / "models/patchcore/weave/model.json"
    content = json.loads(path.read_text())
    content["record"]["suspects"] = [{"image_id": "weave/train/good/000.png", "score": 9.0, "dropped": False}]
    path.write_text(json.dumps(content))
    mvad.fit(str(weave / "clean"), str(tmp_path / "models"), **WEAVE)
    assert "may not be good: 'weave/train/good/000.png' (9)" in capsys.readouterr().err
    assert json.loads(path.read_text()) == content
    (row,) = mvad.models(str(tmp_path / "models"), quiet=True)
    assert row["suspects"] == content["record"]["suspects"]
    with pytest.raises(UsageError, match="of other images or options"):
        mvad.fit(str(weave / "clean"), str(tmp_path / "models"), drop_suspects=True, **WEAVE)


@pytest.mark.parametrize("drop", [False, True])
def test_new_images_unlike_those_of_the_model_are_named_before_they_join(drop, weave, clean, tmp_path, capsys):
    shutil.copytree(clean / "models", tmp_path / "models")
    folder = tmp_path / "data/weave/train/good"
    folder.mkdir(parents=True)
    for number in range(4):
        shutil.copy(weave / f"clean/weave/test/good/{number:03}.png", folder / f"new{number}.png")
    shutil.copy(weave / "bad/0.png", folder / "hole.png")
    (row,) = mvad.update(str(tmp_path / "data"), str(tmp_path / "models"), quiet=True, drop_suspects=drop).summary
    assert [(one["image_id"], one["dropped"]) for one in row["suspects"]] == [("weave/train/good/hole.png", drop)]
    assert (row["n_new"], row["n_after"]) == ((4, 44) if drop else (5, 45))
    record = model_of(tmp_path).record
    assert record["suspects"][-1] == row["suspects"][0]
    assert "weave/train/good/hole.png" in capsys.readouterr().err


def test_an_update_with_nothing_but_suspects_changes_nothing(weave, clean, tmp_path):
    shutil.copytree(clean / "models", tmp_path / "models")
    folder = tmp_path / "data/weave/train/good"
    folder.mkdir(parents=True)
    shutil.copy(weave / "bad/0.png", folder / "hole.png")
    (row,) = mvad.update(str(tmp_path / "data"), str(tmp_path / "models"), quiet=True, drop_suspects=True).summary
    assert row["note"] == "not updated: all of its new images are suspects"
    assert model_of(tmp_path).model_id == model_of(clean).model_id


@pytest.mark.parametrize(("percent", "count"), [("5", 2), ("10", 4)])
def test_most_images_that_are_not_good_are_found_and_dropping_them_finds_more_defects(
    percent, count, weave, ray_local, tmp_path, capsys
):
    named = mvad.run(str(weave / percent), str(tmp_path / "named"), **WEAVE)
    dropped = mvad.run(str(weave / percent), str(tmp_path / "dropped"), drop_suspects=True, **WEAVE)
    models = model_of(tmp_path / "named"), model_of(tmp_path / "dropped")
    for model, is_dropped in zip(models, (False, True), strict=True):
        found = names(model, dropped=is_dropped)
        assert sum(name.endswith("x.png") for name in found) > count / 2
        assert sum(not name.endswith("x.png") for name in found) <= 1
    before, after = (threshold(read_calibration(model), "conformal", 0.01) for model in models)
    assert after < before
    assert dropped.summary[0]["n_found"] > named.summary[0]["n_found"]
    assert "may not be good" in capsys.readouterr().err
    if percent == "5":
        mvad.report(str(tmp_path / "dropped"), quiet=True)
        assert ">Suspects<" in (tmp_path / "dropped/report.html").read_text()
