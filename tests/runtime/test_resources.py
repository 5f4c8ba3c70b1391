"""How processors are shared out among actors and tasks."""

import pytest
import ray

from mvad.errors import UsageError
from mvad.runtime.resources import MIN_IMAGES_PER_TASK, TASK_CPUS, actor_pool, cpu_share


def resources(monkeypatch, **amounts):
    monkeypatch.setattr(ray, "cluster_resources", lambda: amounts)
    nodes = [{"Alive": True, "Resources": amounts}, {"Alive": False, "Resources": {}}]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)


@pytest.mark.parametrize(
    ("cpus", "actors_asked", "actors", "threads"),
    [
        (1, None, 1, 1),
        (2, None, 1, 2),
        (6, None, 2, 3),
        (64, None, 16, 4),
        (64, 1, 1, 4),
        (4, 2, 2, 2),
        (2, 6, 6, 1),
    ],
)
def test_cpu_actors_leave_half_of_the_cpus_for_decoding(monkeypatch, cpus, actors_asked, actors, threads):
    resources(monkeypatch, CPU=float(cpus))
    pool = actor_pool(actors_asked, n_images=10_000)
    assert (pool.actors, pool.threads) == (actors, threads)
    assert not pool.gpus
    assert 0 < pool.actors * pool.actor_resources["num_cpus"] <= cpus / 2 + 0.01


def test_one_actor_per_gpu(monkeypatch):
    resources(monkeypatch, CPU=96.0, GPU=8.0)
    pool = actor_pool(None, n_images=10_000)
    assert (pool.actors, pool.threads) == (8, 1)
    assert pool.gpus
    assert 2 * pool.actor_resources["num_gpus"] > 1  # two never share one
    assert pool.actor_resources["num_cpus"] == 0  # one, Ray Data's default, may leave none to decode with
    assert pool.actor_resources["num_gpus"] + pool.task_resources["num_gpus"] <= 1  # a fit runs next to an actor
    assert actor_pool(3, n_images=10_000).actors == 3
    with pytest.raises(UsageError, match="more than the 8 GPUs"):
        actor_pool(9, n_images=10_000)


def test_no_actors_for_nothing(monkeypatch):
    resources(monkeypatch, CPU=64.0)
    assert actor_pool(None, n_images=5).actors == 1
    assert actor_pool(None, n_images=80).actors == 10


def test_no_processes_to_decode_a_handful(monkeypatch):
    resources(monkeypatch, CPU=64.0)
    pools = [actor_pool(None, n_images) for n_images in (1, MIN_IMAGES_PER_TASK * 3, 10_000)]
    assert [pool.tasks for pool in pools] == [1, 3, 64]
    assert [pool.cores for pool in pools] == [64, 64, 64]  # fits are as many as ever


def test_every_node_has_actors(monkeypatch):
    nodes = [{"Alive": True, "Resources": {"CPU": cpus}} for cpus in (2.0, 2.0, 8.0)]
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 12.0})
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    pool = actor_pool(None, n_images=10_000)
    assert (pool.actors, pool.threads) == (4, 3)


@pytest.mark.parametrize("cpus", [0.4, 1, 4])
@pytest.mark.parametrize("nodes", [{1.0}, {2.0, 3.0}, {1.0, 4.0, 16.0, 64.0}], ids=len)
def test_no_number_of_actors_fills_a_node(cpus, nodes):
    share = cpu_share(cpus, nodes)
    assert 0 < share <= min(0.5, cpus / 2)
    for node in nodes:
        actors = int(round(node / share, 6))
        assert node - actors * share >= TASK_CPUS - 1e-9
