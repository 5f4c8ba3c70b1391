import hashlib
import shutil

import numpy as np
import pyarrow as pa
import pytest
import ray
import torch

import mvad
from helpers import reference
from helpers.tiles import EMBEDDED
from mvad import results
from mvad.console import Reporter
from mvad.data.image_size import ImageSize
from mvad.detectors import PatchCore, State
from mvad.errors import UsageError
from mvad.features.backbones import describe
from mvad.features.weights import Network
from mvad.fitting.by_category import CategoryFeatures
from mvad.fitting.jobs import FitJob
from mvad.fitting.scheduler import FitScheduler
from mvad.fitting.sharding import Shards, max_images, patch_step, subsample_categories
from mvad.fitting.tasks import fit_to_shards, subsample_shard
from mvad.memory import MemoryBudget, parse_bytes
from mvad.model_store import find_models, read_arrays, read_calibration
from mvad.options import FitOptions
from mvad.runtime.resources import ActorPool
from mvad.storage import to_uri

SHAPE = (4, 5, 6)
RESNET50_BYTES = 102_545_000


def shard_of(features, shards, number, bad=()):
    first = number * shards.shard_images
    images = np.arange(first, min(first + shards.shard_images, shards.n_images))
    usable = np.setdiff1d(images, list(bad))
    return CategoryFeatures(
        "cap",
        {"patches": features[usable]},
        np.array([f"{image:03}" for image in usable], object),
        np.zeros(len(usable), np.int64),
        [f"{image:03}" for image in images],
        {f"{image:03}": "damaged" for image in images if image in bad},
        number,
    )


def fit_in_process(features, shards, options, size):
    """What the tasks of a fit do, one after the other: state and scores that calibrate."""
    held_out, coresets = [], []
    for number in range(shards.count):
        rows = shard_of(features, shards, number).features["patches"]
        calibrates = shards.is_held_out(number, len(rows))
        if calibrates.any():
            held_out.append(ray.put(rows[calibrates]))
        coreset, seconds = subsample_shard(options, rows, np.flatnonzero(~calibrates), shards.share)
        assert seconds > 0
        coresets.append(ray.put(coreset))
    state, found, _ = fit_to_shards(options, size, held_out, coresets, ImageSize.square(64))
    return state, None if found is None else found.scores


def schedule(features, shards, options, folder, order, bad=()):
    """The outcome of a fit whose shards arrive in some order."""
    network = Network(describe("efficientnet_lite0"), {}, "0" * 64)
    job = FitJob("cap", options, network, to_uri(folder), size=ImageSize.square(64))
    pool = ActorPool(1, {"num_cpus": 0.5}, {"num_cpus": 0.5})
    with Reporter(quiet=True).stage("fit", shards.n_images) as stage:
        scheduler = FitScheduler([job], {"cap": shards}, options.budget, pool, stage, keep_going=False)
        for number in order:
            scheduler.add(shard_of(features, shards, number, bad))
        (outcome,) = scheduler.finish()
    return outcome


def digest(image_ids):
    return hashlib.sha256("\n".join(image_ids).encode()).hexdigest()


def radius(points, centres):
    return torch.cdist(torch.from_numpy(points), torch.from_numpy(centres)).amin(dim=1).max().item()


@pytest.fixture
def features():
    return np.random.default_rng(0).standard_normal((60, *SHAPE)).astype(np.float32)


@pytest.fixture
def options():
    return FitOptions(coreset_ratio=0.05, projection=0)


def test_a_bank_of_shards_covers_nearly_as_well_as_an_exact_one(features, options, ray_local):
    shards = Shards(60, 16, 20, 0.1, np.array([], np.int64))
    state, calibration = fit_in_process(features, shards, options, size=60)
    assert calibration is None
    patches = features.reshape(-1, 6)
    exact = PatchCore(coreset_ratio=0.05, projection=0).fit(torch.from_numpy(features))
    bank = state.arrays["bank"]
    assert len(bank) == len(exact.bank) == 60
    covering = radius(patches, bank)
    assert exact.coverage == pytest.approx(radius(patches, exact.bank.vectors), rel=1e-4)
    assert covering <= state.settings["coverage"] * (1 + 1e-5)
    assert covering <= 1.5 * exact.coverage


def test_shards_may_come_in_any_order(features, options, ray_local, tmp_path):
    shards = Shards(60, 16, 20, 0.1, np.array([0, 17, 59]))
    state, calibration = fit_in_process(features, shards, options, size=57)
    for name, order in (("in order", [0, 1, 2, 3]), ("mixed", [2, 0, 3, 1])):
        outcome = schedule(features, shards, options, tmp_path / name, order)
        np.testing.assert_array_equal(read_arrays(outcome.model)["bank"], state.arrays["bank"])
        np.testing.assert_array_equal(read_calibration(outcome.model), calibration)
        assert outcome.model.settings == state.settings
        assert outcome.model.record["training_sha256"] == digest([f"{image:03}" for image in range(60)])


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_a_whitened_bank_of_shards_is_the_same_in_any_order(features, distance, ray_local, tmp_path):
    options = FitOptions(
        coreset_ratio=0.05, projection=0, aggregate="top-10%", distance=distance, whitening=0.02, folds=2
    )
    shards = Shards(60, 16, 20, 0.1, np.arange(16, 33))  # of the second shard all images calibrate
    outcomes = [
        schedule(features, shards, options, tmp_path / str(order[0]), order) for order in ([0, 1, 2, 3], [3, 2, 1, 0])
    ]
    fitted = np.setdiff1d(np.arange(60), shards.held_out)
    patches = features[fitted].reshape(-1, 6).astype(np.float64)
    first, other = (read_arrays(outcome.model) for outcome in outcomes)
    for name in ("bank", "whitening_mean", "whitening_matrix"):
        np.testing.assert_array_equal(first[name], other[name])
    np.testing.assert_array_equal(*(read_calibration(outcome.model) for outcome in outcomes))
    np.testing.assert_allclose(first["whitening_mean"], patches.mean(axis=0), rtol=1e-5)
    covariance = np.cov(patches.T, bias=True)
    regularised = covariance + 0.02 * np.trace(covariance) / 6 * np.eye(6)
    matrix = first["whitening_matrix"]
    np.testing.assert_allclose(matrix @ regularised @ matrix, np.eye(6), atol=1e-6)
    bring = reference.patch_space(patches, distance, 0.02)
    found = PatchCore.from_state(State(outcomes[0].model.settings, first))
    image = features[20].reshape(-1, 6)
    expected, _ = reference.space_score(bring(image), first["bank"].astype(np.float64), distance, 9, 0.1)
    assert found.score(torch.from_numpy(features[20:21])).image[0] == pytest.approx(expected, rel=1e-4)


def test_held_out_images_are_not_fitted_to_and_bad_ones_do_not_count(features, ray_local, tmp_path):
    shards = Shards(60, 16, 20, 1.0, np.array([3, 20, 40]))
    options = FitOptions(coreset_ratio=1.0, projection=0)
    outcome = schedule(features, shards, options, tmp_path, range(4), bad={4, 20, 59})
    fitted = np.setdiff1d(np.arange(60), [3, 4, 20, 40, 59])
    bank = read_arrays(outcome.model)["bank"]
    assert {row.tobytes() for row in bank} == {row.tobytes() for row in features[fitted].reshape(-1, 6)}
    assert len(bank) == 55 * 20
    assert outcome.model.record["n_train"] == 57  # with the two images that calibrate
    assert outcome.errors == dict.fromkeys(("004", "020", "059"), "damaged")
    assert [error["image_id"] for error in outcome.model.record["errors"]] == ["004", "020", "059"]
    assert outcome.note is None
    plain = PatchCore(coreset_ratio=1.0, projection=0).fit(torch.from_numpy(features[fitted]))
    calibration = read_calibration(outcome.model)
    np.testing.assert_allclose(calibration, plain.score(torch.from_numpy(features[[3, 40]])).image, rtol=1e-6)


def test_shards_without_a_usable_image_give_no_model(features, options, ray_local, tmp_path):
    shards = Shards(60, 16, 20, 0.1, np.array([3]))
    outcome = schedule(features, shards, options, tmp_path, range(4), bad=range(60))
    assert outcome.model is None
    assert outcome.failure == "no model: none of its 60 training images is usable"
    assert len(outcome.errors) == 60


def test_a_bank_smaller_than_asked_for_is_noted(features, options, ray_local, tmp_path):
    shards = Shards(60, 16, 20, 0.01, np.array([], np.int64))
    outcome = schedule(features, shards, options, tmp_path, range(4))
    assert outcome.note == "the bank holds 15 patches, not 60: --memory-limit is 2,048 MiB"
    assert len(read_arrays(outcome.model)["bank"]) == 15
    assert read_calibration(outcome.model) is None


def test_a_plan_keeps_to_the_memory_however_many_images_there_are():
    options = FitOptions(memory_limit="2GiB")
    for shape, images in (((32, 32, 152), 10**4), ((32, 32, 152), 10**8), ((28, 28, 1536), 10**6)):
        shards = Shards.plan(images, shape, options, options.budget)
        patch = 4 * (shape[-1] + 128)
        patches = shape[0] * shape[1]
        assert shards.shard_images * patches * patch < options.budget.bytes / 3
        assert shards.share * images * patches * patch < options.budget.bytes / 2
        assert len(shards.held_out) * patches * patch < options.budget.bytes / 4
    assert Shards.plan(10**3, (8, 8, 152), options, options.budget).share == pytest.approx(0.2)
    limited = FitOptions(memory_limit="2GiB", max_vectors=1000)
    assert Shards.plan(10**3, (8, 8, 152), limited, limited.budget).share == pytest.approx(2 * 1000 / 64_000)
    alone = Shards.plan(10, (384, 512, 152), options, options.budget, alone=True)
    assert (alone.shard_images, len(alone.held_out), alone.left_out) == (1, 0, True)


def test_patches_of_an_image_that_memory_does_not_hold_are_thinned():
    options = FitOptions(memory_limit="2GiB")
    assert patch_step({"patches": (32, 32, 152)}, options, options.budget) == 1
    for rows, columns in ((384, 512), (1250, 1250), (128, 8192)):
        step = patch_step({"patches": (rows, columns, 152)}, options, options.budget)
        kept = -(-rows // step) * -(-columns // step)
        assert kept * 4 * (152 + 128) < options.budget.bytes / 3
        assert kept * 4 * (152 + 128) > options.budget.bytes / 40


def test_how_many_images_fit():
    options = FitOptions()
    budget = MemoryBudget(2 << 30).after_weights(RESNET50_BYTES)
    shapes = {"patches": (28, 28, 1536)}
    bottle = max_images(shapes, options, budget)
    assert 209 < bottle < 2 * (2 << 30) / (4 * 28 * 28 * 1536)
    assert max_images(shapes, options, MemoryBudget(4 << 30)) > 2 * bottle
    assert max_images(shapes | {"stages": (14, 14, 3584)}, options, budget) < bottle
    assert max_images(shapes, options, MemoryBudget(2 << 30)) > bottle


def test_large_categories_keep_images_from_all_over():
    table = pa.table({"category": ["a"] * 9 + ["b"] * 3, "image_id": [str(number) for number in range(12)]})
    kept, large = subsample_categories(table, 3)
    assert kept["image_id"].to_pylist() == ["0", "4", "8", "9", "10", "11"]
    assert large == ["a"]


def test_too_little_memory_for_a_backbone_is_said_before_anything_is_replaced(base_run, tiles, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(base_run[0], out)
    limited = {"memory_limit": "1GiB", "new_run": True}
    with pytest.raises(UsageError, match="which a process needs with this backbone"):
        mvad.run(str(tiles), str(out), **limited, **EMBEDDED)
    with pytest.raises(UsageError, match="which a process needs with this backbone"):
        mvad.score(str(tiles), str(base_run[0] / "models"), str(out), **limited)
    assert (out / "_SUCCESS").exists()
    assert len(results.read_scores(to_uri(out))) == len(results.read_scores(to_uri(base_run[0])))


@pytest.mark.parametrize(("text", "size"), [("2GiB", 2 << 30), ("1500M", 1500 << 20), ("3e9", None), ("", None)])
def test_sizes(text, size):
    if size is None:
        with pytest.raises(UsageError, match="not a size in memory"):
            parse_bytes(text)
    else:
        assert parse_bytes(text) == size


def test_too_little_memory_says_so():
    with pytest.raises(UsageError, match="--memory-limit is less than 1024 MiB"):
        FitOptions(memory_limit="1MB")
    with pytest.raises(UsageError, match=r"--memory-limit is less than 1220 MiB, .* with this backbone"):
        MemoryBudget(1 << 30).after_weights(RESNET50_BYTES)


def test_batches_of_large_features_are_small():
    assert MemoryBudget(2 << 30).batch_size(32, {"patches": (32, 32, 152)}) == 32
    assert MemoryBudget(2 << 30).batch_size(32, {"patches": (128, 128, 1536)}) == 1


def test_a_model_fitted_in_shards(tiles, ray_local, tmp_path, monkeypatch, capsys):
    """A run whose memory holds five images: each category comes in shards, and one image in ten calibrates."""
    monkeypatch.setattr("mvad.fitting.fit.max_images", lambda shapes, options, budget: 5)
    monkeypatch.setattr("mvad.fitting.sharding.MAX_SHARD_PATCHES", 3 * 64)
    monkeypatch.setattr("mvad.fitting.sharding.CALIBRATION_IMAGES_FRACTION", 4)
    options = {"image_size": 64, "coreset_ratio": 0.1, "folds": 2, **EMBEDDED}
    for actors, batch_size in ((1, 32), (2, 3)):
        folder = tmp_path / str(actors)
        mvad.fit(str(tiles), str(folder), actors=actors, batch_size=batch_size, **options)
    models = [find_models(to_uri(tmp_path / name), None) for name in ("1", "2")]
    for name in ("alpha", "beta"):
        model, other = (by_category[name] for by_category in models)
        assert model.model_id == other.model_id
        assert model.record["n_train"] == 8
        assert len(read_calibration(model)) == 2
        assert len(read_arrays(model)["bank"]) == round(0.1 * 6 * 64)


def test_other_methods_learn_from_as_many_images_as_fit(tiles, ray_local, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("mvad.fitting.fit.max_images", lambda shapes, options, budget: 5)
    mvad.fit(str(tiles), str(tmp_path), method="knn", image_size=64, actors=1, **EMBEDDED)
    assert {model.record["n_train"] for model in find_models(to_uri(tmp_path), None).values()} == {5}
    assert "alpha: fitted to 5 of its 8 images: --memory-limit holds no more" in capsys.readouterr().err
