import pytest
import torch

import mvad
from mvad.commands.plan import Costs, predict

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
