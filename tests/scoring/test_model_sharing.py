"""Models on their way to actors: shared while they are few, read when needed if they are many."""

import shutil

import numpy as np
import pytest
import ray

import mvad
from mvad import results
from mvad.errors import UsageError
from mvad.model_store import find_models, map_arrays, read_arrays
from mvad.scoring import model_sharing
from mvad.storage import to_uri


def test_what_fits_is_shared_and_the_rest_is_read(base_run, monkeypatch):
    models = find_models(to_uri(base_run[0] / "models"))
    sizes = sorted(model.record["bytes"] for model in models.values())
    budget = {"all": sum(sizes), "one": sum(sizes) - 1, "none": 0}
    put = ray.put
    for name, count in (("all", 2), ("one", 1), ("none", 0)):
        stores = [(budget[name] + 0.5) / model_sharing.STORE_FRACTION, 1e12]
        monkeypatch.setattr(model_sharing, "_stores", lambda stores=stores: stores)
        shared = []
        monkeypatch.setattr(ray, "put", lambda arrays, shared=shared: shared.append(arrays) or put(arrays))
        broadcast = model_sharing.Broadcast(models.values())
        assert len(shared) == count, name
        for model in models.values():
            arrays, expected = broadcast.arrays(model), read_arrays(model)
            assert arrays.keys() == expected.keys()
            assert all(np.array_equal(arrays[key], expected[key]) for key in expected)


def test_what_is_not_shared_stays_in_its_file(base_run, tmp_path):
    shutil.copytree(base_run[0] / "models", tmp_path / "models")
    model = find_models(to_uri(tmp_path / "models"))["alpha"]
    expected = read_arrays(model)["bank"]
    assert isinstance(map_arrays(model)["bank"], np.memmap)
    np.testing.assert_array_equal(map_arrays(model)["bank"], expected)
    bank = tmp_path / "models/patchcore/alpha/bank.npy"
    bank.write_bytes(bank.read_bytes()[:-1])
    with pytest.raises(UsageError, match=r"bank.npy is damaged"):
        map_arrays(model)
    bank.unlink()
    with pytest.raises(UsageError, match=r"bank.npy cannot be read"):
        map_arrays(model)


def test_scores_are_the_same_either_way(base_run, tiles, tmp_path, monkeypatch):
    out, _ = base_run
    monkeypatch.setattr(model_sharing, "STORE_FRACTION", 0.0)
    mvad.score(str(tiles), str(out / "models"), str(tmp_path / "out"), actors=1, quiet=True)
    columns = ["image_id", "score", "p_value", "is_anomaly"]
    assert results.read_scores(to_uri(tmp_path / "out"), columns).equals(results.read_scores(to_uri(out), columns))


def test_many_categories_in_one_run(ray_local, tmp_path):
    from benchmarks.many_categories import measure, write_categories

    n_images = write_categories(tmp_path / "data", categories=20, images=2, size=64)
    measured = measure(tmp_path / "data", tmp_path / "out", n_images, size=64, folds=0, actors=1)
    assert (measured["categories"], measured["rows"], measured["exit_code"]) == (20, 40, 0)
