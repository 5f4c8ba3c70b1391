import numpy as np
import pytest
import torch

import mvad
from mvad.benchmarks.floor import Floor
from mvad.benchmarks.references import compare_coresets, compare_searches, plain_greedy
from mvad.coreset import greedy_coreset
from mvad.detectors import PatchCore
from mvad.errors import UsageError
from mvad.options import BenchmarkOptions, ImageSize
from mvad.planning import Costs, predict

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
    one, two = (predict(COSTS, 1e8, gpus=number, cores=8 * number) for number in (1, 2))
    assert two.hours == pytest.approx(one.hours / 2)
    assert two.storage_bytes == one.storage_bytes


def test_a_plan_from_what_images_cost_here(tiles, capsys):
    found = mvad.plan(images=1e6, gpus=4, cores=32, data=str(tiles), image_size=64, coreset_ratio=0.05)
    assert all(value > 0 for value in found["costs"].values())
    expected = predict(Costs(**found["costs"]), 1e6, 4, 32, found["gpu_speedup"])
    assert found["hours"] == expected.hours
    printed = capsys.readouterr()
    assert f"bound by {expected.bound_by}" in printed.out
    assert found["assumed"] == (not torch.cuda.is_available())
    assert ("no GPU here to measure" in printed.err) == found["assumed"]


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


def test_the_floor_decodes_and_runs_the_backbone(tiles):
    from mvad.backbones import describe

    floor = Floor(describe("efficientnet_lite0"), None, ImageSize(resize=64, crop=64), processes=1)
    uris = [f"file://{path}" for path in sorted(tiles.glob("alpha/test/*/*.png"))]
    seconds, stages = floor.measure(uris)
    floor.close()
    assert 0 < (stages.decode + stages.forward) * len(uris) <= seconds


def test_growth_is_a_list_of_numbers():
    assert BenchmarkOptions(growth="10, 20").growth_sizes == [10, 20]
    with pytest.raises(UsageError, match="is not a list of numbers"):
        BenchmarkOptions(growth="many")
