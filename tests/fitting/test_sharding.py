import shutil

import numpy as np
import pyarrow as pa
import pytest
import torch

import mvad
from helpers.tiles import EMBEDDED
from mvad import results
from mvad.detectors import PatchCore
from mvad.errors import UsageError
from mvad.fitting.by_category import CategoryFeatures
from mvad.fitting.sharding import ShardedFit, Shards, most_images, thin
from mvad.memory import MemoryBudget, parse_bytes
from mvad.model_store import find_models, read_arrays, read_calibration
from mvad.options import FitOptions
from mvad.storage import to_uri

SHAPE = (4, 5, 6)
RESNET50_BYTES = 102_545_000


def shard_of(features, shards, number, bad=()):
    first = number * shards.images
    places = np.arange(first, min(first + shards.images, shards.n_images))
    ids = [f"{place:03}" for place in places]
    kept = np.array([row for row, place in enumerate(places) if place not in bad], np.int64)
    errors = {f"{place:03}": "damaged" for place in places if place in bad}
    rows = features[places[kept]]
    return CategoryFeatures("cap", {"patches": rows}, kept, ids, errors, 0.5, number)


def fitted(features, shards, options, order, bad=()):
    fit = ShardedFit(options, shards)
    for number in order:
        assert not fit.complete
        fit.add(shard_of(features, shards, number, bad))
    assert fit.complete
    state = fit.fit()
    return fit, state, fit.calibrate(state)


def radius(points, centres):
    return torch.cdist(torch.from_numpy(points), torch.from_numpy(centres)).amin(dim=1).max().item()


@pytest.fixture
def features():
    return np.random.default_rng(0).standard_normal((60, *SHAPE)).astype(np.float32)


@pytest.fixture
def options():
    return FitOptions(coreset_ratio=0.05, projection=0)


def test_a_bank_of_shards_covers_nearly_as_well_as_an_exact_one(features, options):
    shards = Shards(60, 16, 20, 0.1, np.array([], np.int64))
    _, state, _ = fitted(features, shards, options, range(4))
    patches = features.reshape(-1, 6)
    exact = PatchCore(coreset_ratio=0.05, projection=0).fit(torch.from_numpy(features))
    bank = state.arrays["bank"]
    assert len(bank) == len(exact.bank) == 60
    found = radius(patches, bank)
    assert exact.coverage == pytest.approx(radius(patches, exact.bank.vectors), rel=1e-4)
    assert found <= state.settings["coverage"] * (1 + 1e-5)
    assert found <= 1.5 * exact.coverage


def test_shards_may_come_in_any_order(features, options):
    shards = Shards(60, 16, 20, 0.1, np.array([0, 17, 59]))
    _, state, calibration = fitted(features, shards, options, [0, 1, 2, 3])
    again, other, same = fitted(features, shards, options, [2, 0, 3, 1])
    np.testing.assert_array_equal(state.arrays["bank"], other.arrays["bank"])
    np.testing.assert_array_equal(calibration, same)
    assert again.image_ids == [f"{place:03}" for place in range(60)]


def test_held_out_images_are_not_fitted_to_and_bad_ones_do_not_count(features, options):
    shards = Shards(60, 16, 20, 1.0, np.array([3, 20, 40]))
    whole = FitOptions(coreset_ratio=1.0, projection=0)
    fit, state, calibration = fitted(features, shards, whole, range(4), bad={4, 20, 59})
    rest = np.setdiff1d(np.arange(60), [3, 4, 20, 40, 59])
    bank = {row.tobytes() for row in state.arrays["bank"]}
    assert bank == {row.tobytes() for row in features[rest].reshape(-1, 6)}
    assert (fit.n_fitted, fit.n_held, sorted(fit.errors)) == (55, 2, ["004", "020", "059"])
    plain = PatchCore(coreset_ratio=1.0, projection=0).fit(torch.from_numpy(features[rest]))
    np.testing.assert_allclose(calibration, plain.score(torch.from_numpy(features[[3, 40]])).image, rtol=1e-6)


def test_a_plan_keeps_to_the_memory_however_many_images_there_are():
    options = FitOptions(memory_limit="2GiB")
    for shape, images in (((32, 32, 152), 10**4), ((32, 32, 152), 10**8), ((28, 28, 1536), 10**6)):
        shards = Shards.plan(images, shape, options, options.budget)
        patch = 4 * (shape[-1] + 128)
        patches = shape[0] * shape[1]
        assert shards.images * patches * patch < options.budget.bytes / 3
        assert shards.kept * images * patches * patch < options.budget.bytes / 2
        assert len(shards.held) * patches * patch < options.budget.bytes / 4
    assert Shards.plan(10**4, (8, 8, 152), options, options.budget).kept == pytest.approx(0.2)


def test_how_many_images_fit():
    options = FitOptions()
    budget = MemoryBudget(2 << 30).after_weights(RESNET50_BYTES)
    shapes = {"patches": (28, 28, 1536)}
    bottle = most_images(shapes, options, budget)
    assert 209 < bottle < 2 * (2 << 30) / (4 * 28 * 28 * 1536)
    assert most_images(shapes, options, MemoryBudget(4 << 30)) > 2 * bottle
    assert most_images(shapes | {"stages": (14, 14, 3584)}, options, budget) < bottle
    assert most_images(shapes, options, MemoryBudget(2 << 30)) > bottle


def test_thinned_categories_keep_images_from_all_over():
    table = pa.table({"category": ["a"] * 9 + ["b"] * 3, "image_id": [str(number) for number in range(12)]})
    kept, thinned = thin(table, 3)
    assert kept["image_id"].to_pylist() == ["0", "4", "8", "9", "10", "11"]
    assert thinned == ["a"]


def test_too_little_memory_for_a_backbone_is_said_before_anything_is_replaced(base_run, tiles, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(base_run[0], out)
    limited = {"memory_limit": "1GiB", "new_run": True}
    with pytest.raises(UsageError, match="which a process needs with this backbone"):
        mvad.run(str(tiles), str(out), **limited, **EMBEDDED)
    with pytest.raises(UsageError, match="which a process needs with this backbone"):
        mvad.score(str(tiles), str(base_run[0] / "models"), str(out), **limited)
    assert (out / "_SUCCESS").exists()
    assert results.count_scores(to_uri(out)) == results.count_scores(to_uri(base_run[0]))


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
    monkeypatch.setattr("mvad.pipeline.flow.most_images", lambda shapes, options, room: 5)
    monkeypatch.setattr("mvad.fitting.sharding.SHARD_PATCHES", 3 * 64)
    monkeypatch.setattr("mvad.fitting.sharding.HELD_SHARE_OF_IMAGES", 4)
    options = {"image_size": 64, "coreset_ratio": 0.1, "folds": 2, **EMBEDDED}
    for actors, batch_size in ((1, 32), (2, 3)):
        folder = tmp_path / str(actors)
        mvad.fit(str(tiles), str(folder), actors=actors, batch_size=batch_size, **options)
    models = [find_models(to_uri(tmp_path / name), None) for name in ("1", "2")]
    for name in ("alpha", "beta"):
        one, two = (found[name] for found in models)
        assert one.model_id == two.model_id
        assert one.record["n_train"] == 8
        assert len(read_calibration(one)) == 2
        assert len(read_arrays(one)["bank"]) == round(0.1 * 6 * 64)


def test_other_methods_learn_from_as_many_images_as_fit(tiles, ray_local, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("mvad.pipeline.flow.most_images", lambda shapes, options, room: 5)
    mvad.fit(str(tiles), str(tmp_path), method="knn", image_size=64, actors=1, **EMBEDDED)
    assert {model.record["n_train"] for model in find_models(to_uri(tmp_path), None).values()} == {5}
    assert "alpha: fitted to 5 of its 8 images: --memory-limit holds no more" in capsys.readouterr().err
