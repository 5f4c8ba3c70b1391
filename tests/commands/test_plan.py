import numpy as np
import pytest
import torch

import mvad
from benchmarks.floor import Workers, floor_opener, package_opener
from benchmarks.forward import compare_forward_passes
from benchmarks.references import compare_coresets, compare_searches, compare_shards, plain_greedy
from mvad.commands.plan import Costs, predict
from mvad.data.image_size import ImageSize
from mvad.detectors import PatchCore, State
from mvad.errors import UsageError
from mvad.features.extractor import prepare
from mvad.features.weights import Network
from mvad.model_store import find_models, read_arrays
from mvad.options import BenchmarkOptions
from mvad.search.coreset import greedy_coreset

COSTS = Costs(decode=0.010, forward=0.020, search=0.005, file_bytes=100_000, moved_bytes=150_000)


def test_cores_alone_do_both():
    plan = predict(COSTS, images=3600, gpus=0, cores=7)
    assert plan.images_per_second == pytest.approx(200)
    assert plan.hours == pytest.approx(18 / 3600)
    assert plan.bound_by == "inference"
    assert (plan.storage_bytes, plan.network_bytes) == (3.6e8, 5.4e8)


@pytest.mark.parametrize(
    ("gpus", "cores", "rate", "bound_by"),
    [(1, 100, 400, "inference"), (8, 10, 1000, "decoding"), (2, 8, 800, "decoding")],
)
def test_the_slower_of_decoding_and_inference_decides(gpus, cores, rate, bound_by):
    plan = predict(COSTS, images=1e6, gpus=gpus, cores=cores, gpu_speedup=10)
    assert plan.images_per_second == pytest.approx(rate)
    assert plan.bound_by == bound_by


def test_twice_the_machines_take_half_the_time():
    single, double = (predict(COSTS, 1e8, gpus=gpus, cores=8 * gpus) for gpus in (1, 2))
    assert double.hours == pytest.approx(single.hours / 2)
    assert double.storage_bytes == single.storage_bytes


def test_a_plan_from_what_images_cost_here(tiles, capsys):
    estimate = mvad.plan(images=1e6, gpus=4, cores=32, data=str(tiles), image_size=64, coreset_ratio=0.05)
    assert all(value > 0 for value in estimate["costs"].values())
    expected = predict(Costs(**estimate["costs"]), 1e6, 4, 32, estimate["gpu_speedup"])
    assert estimate["hours"] == expected.hours
    printed = capsys.readouterr()
    assert f"bound by {expected.bound_by}" in printed.out
    assert estimate["assumed"] == (not torch.cuda.is_available())
    assert ("no GPU here to measure" in printed.err) == estimate["assumed"]


def test_references_agree_with_what_they_are_references_of():
    random = np.random.default_rng(0)
    features = torch.from_numpy(random.standard_normal((12, 4, 5, 16)).astype(np.float32))
    chosen, _ = plain_greedy(features.flatten(0, 2), 20)
    assert chosen == greedy_coreset(features.flatten(0, 2), 20)[0].tolist()
    assert compare_coresets(features, 0.1, 0)["same_choices"] == "24 of 24"
    bank = PatchCore(0.2, projection=0).fit(features[:6]).bank
    found = compare_searches(features[6:], bank, repeats=1)
    assert found["largest_difference"] < 1e-5
    assert (found["bank"], found["patches"]) == (24, 20)


def test_shards_cover_within_the_bound_they_record():
    random = np.random.default_rng(0)
    features = torch.from_numpy(random.standard_normal((16, 4, 5, 16)).astype(np.float32))
    test = torch.from_numpy(random.standard_normal((4, 4, 5, 16)).astype(np.float32))
    rows = compare_shards(features, test, [0, 1, 0, 1], 0.1)
    assert [row["shards"] for row in rows] == [1, 4, 16]
    assert all(row["vectors"] == 32 and 0 <= row["auroc"] <= 1 for row in rows)
    assert all(row["radius"] <= row["bound"] * (1 + 1e-5) for row in rows)
    assert rows[0]["radius"] == pytest.approx(rows[0]["bound"], rel=1e-5)


@pytest.fixture(scope="module")
def embedded():
    from mvad.features.backbones import describe

    return Network.load(describe("efficientnet_lite0"), None)


@pytest.mark.parametrize("engine", ["torch", "onnx"])
def test_the_floor_decodes_and_runs_the_backbone(tiles, embedded, engine):
    size = ImageSize(resize=64, crop=64)
    workers = Workers(floor_opener(embedded, 64, engine), size, processes=1)
    uris = [f"file://{path}" for path in sorted(tiles.glob("alpha/test/*/*.png"))]
    seconds, stages = workers.measure(uris)
    workers.close()
    assert 0 < (stages.decode + stages.forward) * len(uris) <= seconds
    assert stages.search < stages.forward


def test_all_work_without_ray_scores_too(tiles, embedded, base_run):
    size = ImageSize(resize=64, crop=64)
    found = find_models(base_run[0].as_uri() + "/models")["alpha"]
    model = found.method, State(found.settings, read_arrays(found), 0.0)
    workers = Workers(package_opener(prepare(["patches"], embedded, size, "auto")), size, 1, model)
    _, stages = workers.measure([f"file://{path}" for path in sorted(tiles.glob("alpha/test/*/*.png"))])
    workers.close()
    assert all(value > 0 for value in stages)


def test_ways_of_running_a_network_agree(tiles, embedded):
    uris = [f"file://{path}" for path in sorted(tiles.glob("alpha/test/good/*.png"))]
    rows = compare_forward_passes(embedded, ImageSize(resize=64, crop=64), uris, repeats=1)
    differences = {row["way"]: row["difference"] for row in rows}
    assert differences["PyTorch"] == 0
    assert differences["mvad --engine torch: batch norms folded"] < 1e-4
    assert differences["mvad --engine onnx"] < 1e-4
    assert all(row["milliseconds"] > 0 for row in rows)


def test_parts_that_there_are_not():
    with pytest.raises(UsageError, match="--parts 'all' is unknown"):
        BenchmarkOptions(parts="jobs,all")


def test_growth_is_a_list_of_numbers():
    assert BenchmarkOptions(growth="10, 20").growth_sizes == [10, 20]
    with pytest.raises(UsageError, match="is not a list of numbers"):
        BenchmarkOptions(growth="many")
