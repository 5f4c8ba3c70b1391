"""Near duplicates are held out together, n is the number of their groups, and a fit says what it cannot promise."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

import mvad
from helpers.tiles import EMBEDDED
from mvad.calibration import fold_splits, one_per_group
from mvad.commands.false_alarms import achieved
from mvad.comparison import splits
from mvad.comparison.splits import SplitScores
from mvad.console import Reporter
from mvad.data.image_size import ImageSize
from mvad.detectors import KNN, PatchCore
from mvad.errors import UsageError
from mvad.features.backbones import describe
from mvad.features.weights import Network
from mvad.fitting.by_category import CategoryFeatures
from mvad.fitting.jobs import FitJob
from mvad.fitting.scheduler import FitScheduler
from mvad.fitting.sharding import Shards
from mvad.model_store import read_calibration
from mvad.options import FalseAlarmOptions, FitOptions
from mvad.runtime.resources import ActorPool
from mvad.search.fingerprints import FINGERPRINT_SIDE
from mvad.storage import to_uri

SCENES, FRAMES = 6, 5
SCENE_OF = np.tile(np.arange(SCENES), FRAMES)  # frames of one scene do not stand next to each other


def category(kind, bad=(), shard=None):
    """Features and fingerprints of frames of scenes; those of one scene are nearly the same."""
    random = np.random.default_rng(0)
    shape = {"patches": (3, 4, 6), "pooled": (12,)}[kind]
    features = random.standard_normal((SCENES, *shape))[SCENE_OF]
    features += 0.001 * random.standard_normal(features.shape)
    fingerprints = (120 + 30 * random.standard_normal((SCENES, FINGERPRINT_SIDE, FINGERPRINT_SIDE)))[SCENE_OF]
    ids = [f"{image:03}" for image in range(len(SCENE_OF))]
    rows = np.arange(len(ids)) if shard is None else np.arange(shard * 10, shard * 10 + 10)
    usable = np.setdiff1d(rows, bad)
    return CategoryFeatures(
        "cap",
        {kind: features[usable].astype(np.float32)},
        np.array(ids, object)[usable],
        np.zeros(len(usable), np.int64),
        [ids[row] for row in rows],
        {ids[row]: "damaged" for row in rows if row in bad},
        shard or 0,
        fingerprints[usable].clip(0, 255).astype(np.uint8),
    )


def fitted(folder, options, units, shards=None):
    network = Network(describe("efficientnet_lite0"), {}, "0" * 64)
    job = FitJob("cap", options, network, to_uri(folder), size=ImageSize.square(64))
    pool = ActorPool(1, {"num_cpus": 0.5}, {"num_cpus": 0.5})
    with Reporter(quiet=True).stage("fit", len(SCENE_OF)) as stage:
        scheduler = FitScheduler([job], shards or {}, options.memory_budget, pool, stage, keep_going=False)
        for unit in units:
            scheduler.add(unit)
        (outcome,) = scheduler.finish()
    return outcome.model


def test_folds_keep_frames_of_a_scene_together(ray_local, tmp_path):
    options = FitOptions(coreset_ratio=0.5, projection=0, calibration="folds", folds=3, seed=4)
    unit = category("patches", bad=[7])
    model, features = fitted(tmp_path, options, [unit]), torch.from_numpy(unit.features["patches"])
    assert (model.record["n_train"], model.record["n_groups"]) == (29, SCENES)
    groups, scores = np.delete(SCENE_OF, 7), np.empty(29, np.float32)
    for others, held_out in fold_splits(groups, 3, 4):
        scores[held_out] = PatchCore.from_options(options).fit(features[others]).image_scores(features[held_out])
    assert scores.min() > 0.1  # a frame of the same scene in the bank would give 0.01
    np.testing.assert_allclose(read_calibration(model), one_per_group(scores, groups, 4), rtol=1e-5)


def test_leaving_an_image_out_of_the_bank_leaves_out_its_scene(ray_local, tmp_path):
    options = FitOptions(coreset_ratio=0.5, projection=0, seed=4)
    unit = category("patches", bad=[7])
    model, features = fitted(tmp_path, options, [unit]), unit.features["patches"]
    assert (model.record["n_train"], model.record["n_groups"]) == (29, SCENES)
    groups, bank = np.delete(SCENE_OF, 7), PatchCore.from_options(options).fit(torch.from_numpy(features))
    scores = np.empty(29, np.float32)
    for number, group in enumerate(groups):
        others = bank.without(bank.origins, np.flatnonzero(groups == group).tolist())
        scores[number] = others.image_scores(torch.from_numpy(features[number : number + 1]))[0]
    assert scores.min() > 0.1
    np.testing.assert_array_equal(read_calibration(model), one_per_group(scores, groups, 4))


def test_leaving_one_out_leaves_out_its_scene(ray_local, tmp_path):
    unit = category("pooled")
    model = fitted(tmp_path, FitOptions(method="knn", neighbours=3), [unit])
    assert (model.record["n_groups"], model.record["groups"]) == (SCENES, SCENE_OF.tolist())
    detector = KNN(neighbours=3)
    detector.groups = SCENE_OF
    detector.fit(torch.from_numpy(unit.features["pooled"]))
    np.testing.assert_array_equal(read_calibration(model), detector.loo_scores)
    assert len(detector.loo_scores) == SCENES
    assert detector.loo_scores.min() > 0.1


@pytest.mark.parametrize(
    ("held_out", "n"),
    [([0, 6], 0), ([*range(0, 30, 6), 1], 1), ([*range(0, 30, 6), *range(1, 30, 6)], 2)],
    ids=["a part of a scene", "a scene and a part", "two scenes"],
)
def test_images_of_shards_calibrate_if_their_scene_is_not_fitted_to(held_out, n, ray_local, tmp_path):
    options = FitOptions(coreset_ratio=0.5, projection=0)
    shards = {"cap": Shards(30, 10, 12, 1.0, np.sort(held_out))}
    model = fitted(tmp_path, options, [category("patches", shard=number) for number in (2, 0, 1)], shards)
    assert model.record["n_groups"] == SCENES
    scores = read_calibration(model)
    assert (0 if scores is None else len(scores)) == n
    assert n == 0 or scores.min() > 0.1


def test_splits_put_a_scene_on_one_side(ray_local):
    options = FalseAlarmOptions(coreset_ratio=0.5, projection=0, splits=3, folds=2)
    is_good = np.arange(30) % 6 != 5  # the last scene is defective
    pool = ActorPool(1, {"num_cpus": 0.5}, {"num_cpus": 0.5})
    scores = splits._of_category(category("patches"), is_good, options, pool)
    assert [part.shape for part in scores[1:]] == [(3, 3), (3, 2), (3, 5)]
    assert all(part.min() > 0.1 for part in scores[1:])
    with pytest.raises(UsageError, match="'cap' has too few good images that differ from each other: 2"):
        splits._of_category(category("patches"), np.arange(30) % 6 < 2, options, pool)


@pytest.mark.parametrize("n_defect", [0, 4])
def test_achieved_rates_and_defects_found(n_defect):
    calibration = np.tile(np.arange(1, 20, dtype=np.float32), (2, 1))
    fresh, defective = np.float32([[5, 19.5], [5, 6]]), np.full((2, n_defect), 30, np.float32)
    defective[:, :1] = 3
    row = achieved(SplitScores("cap", calibration, fresh, defective), 0.05, FalseAlarmOptions())
    assert {name: row[name] for name in ("rule", "n", "n_fresh", "n_defect", "mean", "largest", "expected")} == {
        "rule": "conformal",
        "n": 19,
        "n_fresh": 2,
        "n_defect": n_defect,
        "mean": 0.25,
        "largest": 0.5,
        "expected": 0.05,
    }
    assert row["found"] == (0.75 if n_defect else None)


@pytest.fixture
def scenes(tmp_path):
    """Category ``still``: 40 frames of 8 scenes, one more scene to score; category ``blank``: one picture, 5 times."""
    random = np.random.default_rng(0)
    for folder in ("still/train/good", "still/test/good", "blank/train/good", "blank/test/good"):
        (tmp_path / folder).mkdir(parents=True)
    for scene in range(9):
        rough = gaussian_filter(random.normal(size=(64, 64)), 4)
        picture = 120 + 30 * rough / rough.std()
        for frame in range(5):
            pixels = (picture + random.normal(0, 2, (64, 64))).clip(0, 255).astype(np.uint8)
            part = "train" if scene < 8 else "test"
            Image.fromarray(pixels).save(tmp_path / f"still/{part}/good/{scene}_{frame}.png")
    for name in ("train/good/1", "train/good/2", "train/good/3", "train/good/4", "train/good/5", "test/good/1"):
        Image.new("RGB", (64, 64), (9, 9, 9)).save(tmp_path / f"blank/{name}.png")
    return tmp_path


def test_a_run_on_frames_of_few_scenes_promises_what_it_can(scenes, tmp_path, ray_local, capsys):
    options = {"image_size": 64, "coreset_ratio": 0.1, "actors": 1, **EMBEDDED}
    mvad.fit(str(scenes), str(tmp_path / "models"), **options)
    few = (
        "still: its 40 good images are frames of 8 scenes (frames of one scene count once); 1 % false alarms cannot be "
        "promised from 8 (99 needed): expect about 11.1 % (0.6 to 31.2 %)"
    )
    none = (
        "blank: no threshold, and so no verdicts: its 5 good images are frames of 1 scene (frames of one scene count "
        "once), too few to calibrate"
    )
    for command in ("fit", "score"):
        if command == "score":
            mvad.score(str(scenes), str(tmp_path / "models"), str(tmp_path / "out"), actors=1, quiet=True)
        said = capsys.readouterr().err.replace("\n", " ")
        assert [said.count(text) for text in (few, none, "too few for 1 %")] == [1, 1, 0]
    facts = json.loads((tmp_path / "out/run.json").read_text())["categories"]
    assert {name: facts["still"][name] for name in ("n_train", "n_groups", "n_calibration")} == {
        "n_train": 40,
        "n_groups": 8,
        "n_calibration": 8,
    }
    assert facts["still"]["promise"].startswith(
        "8 calibration scenes guarantee a false-alarm rate of 11.1 % on average"
    )
    assert (facts["blank"]["n_groups"], facts["blank"]["promise"]) == (1, None)
