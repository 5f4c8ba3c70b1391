"""Fits that run side by side share the cores of a node."""

import os

import numpy as np
import pytest

from mvad.console import Reporter
from mvad.data.image_size import ImageSize
from mvad.features.known import describe
from mvad.features.weights import Network
from mvad.fitting import tasks
from mvad.fitting.by_category import CategoryFeatures
from mvad.fitting.jobs import FitJob
from mvad.fitting.scheduler import FitScheduler
from mvad.options import FitOptions
from mvad.runtime.resources import ActorPool
from mvad.search.fingerprints import FINGERPRINT_SIDE

GPUS = {"num_gpus": 0.6}


@pytest.mark.parametrize(
    ("n_fits", "nodes", "resources", "share"),
    [(1, 1, {}, 1.0), (3, 1, {}, 1 / 3), (3, 2, {}, 2 / 3), (3, 8, {}, 1.0), (1, 1, GPUS, 0.0)],
)
def test_a_fit_gets_its_share(ray_local, monkeypatch, n_fits, nodes, resources, share):
    shares = []

    class Recorder:
        def remote(self, *_, share):
            shares.append(share)
            raise InterruptedError

    monkeypatch.setattr(FitScheduler, "_remote", lambda *_: Recorder())
    network = Network(describe("efficientnet_lite0"), {}, "0" * 64)
    jobs = [FitJob(f"cap {n}", FitOptions(), network, "file:///m", size=ImageSize.square(64)) for n in range(n_fits)]
    pool = ActorPool(1, resources, {"num_cpus": 0.5}, nodes=nodes)
    random = np.random.default_rng(0)
    unit = CategoryFeatures(
        "cap 0",
        {"patches": random.random((9, 3, 4, 6), np.float32)},
        np.array([str(n) for n in range(9)], object),
        np.zeros(9, np.int64),
        [str(n) for n in range(9)],
        {},
        0,
        random.integers(0, 256, (9, FINGERPRINT_SIDE, FINGERPRINT_SIDE), np.uint8),
    )
    with Reporter(quiet=True).stage("fit", 9) as stage, pytest.raises(InterruptedError):
        FitScheduler(jobs, {}, FitOptions().memory_budget, pool, stage, keep_going=False).add(unit)
    assert shares == [share]


@pytest.mark.parametrize(("share", "threads"), [(0.0, 1), (0.05, 1), (1 / 3, 5), (1.0, 16)])
def test_a_share_is_a_number_of_threads(monkeypatch, share, threads):
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    assert tasks._threads(share) == threads
