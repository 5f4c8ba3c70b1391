"""Jobs submitted to clusters of several nodes, one of which is lost on the way, give the rows of a local run.

Not among the quick tests: run them with MVAD_MULTINODE=1.
"""

import os
import time
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus

import mvad
from conftest import paint
from mvad import results
from mvad.storage import to_uri
from nodes import Nodes

pytestmark = pytest.mark.skipif("MVAD_MULTINODE" not in os.environ, reason="takes minutes; set MVAD_MULTINODE=1")
IMAGES = 160  # of the dump, a category
DAY = "2026-11-23"
SAME = ["image_id", "category", "score", "p_value", "threshold", "is_anomaly", "status", "error", "model_id"]


def rows(out, columns=SAME):
    """Score rows, sorted by image id; each image must be there once."""
    table = results.read_scores(to_uri(out), columns)
    assert max(Counter(table["image_id"].to_pylist()).values()) == 1
    return table


def wait_until(true, what, seconds=200):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


@pytest.fixture(scope="module")
def dump(tmp_path_factory):
    """A night's images of ``alpha`` and ``beta``, one of them broken."""
    root = tmp_path_factory.mktemp("dump")
    random = np.random.default_rng(7)
    for name in ("alpha", "beta"):
        (root / name).mkdir()
        for number in range(IMAGES):
            Image.fromarray(paint(random, defect=number % 8 == 0)[0]).save(root / name / f"{number:03}.png")
    (root / "alpha" / "broken.png").write_bytes(b"\x89PNG\r\n")
    return root


@pytest.fixture
def nodes():
    cluster = Nodes()
    try:
        yield cluster
    finally:
        cluster.close()


def test_a_run_on_gpus_of_two_nodes_one_of_which_is_replaced(nodes, tiles, base_run, tmp_path):
    for name in ("gpu-1", "gpu-2"):  # GPUs by name alone: the actors hold them, find none, and compute on the CPU
        nodes.add(name, "--num-cpus=1", "--num-gpus=1")
    out = tmp_path / "out"
    options = ["--backbone", "efficientnet_lite0", "--image-size", "64", "--maps", "all", "--folds", "0"]
    job = nodes.submit("jobs/run.py", tiles, "--out", out, *options)
    for name in ("gpu-1", "gpu-2"):  # an actor on each
        wait_until(lambda name=name: any("MapWorker" in line for line in nodes.processes(name)), "no actor")
    assert not (out / "_SUCCESS").exists()
    nodes.lose("gpu-2")
    nodes.add("gpu-3", "--num-cpus=1", "--num-gpus=1")  # as the autoscaler would
    status, log = nodes.outcome(job)
    assert status == JobStatus.SUCCEEDED, log
    assert (out / "_SUCCESS").exists()
    columns = ["image_id", "score", "patch_scores", "status"]
    assert rows(out, columns).equals(rows(base_run[0], columns))


def test_a_night_goes_on_with_the_node_that_is_left(nodes, dump, base_run, tmp_path):
    models = base_run[0] / "models"
    expected = mvad.nightly(str(dump), str(models), str(tmp_path / "local"), DAY, actors=1, quiet=True)
    for name in ("cpu-1", "cpu-2"):
        nodes.add(name, "--num-cpus=2")
    out = tmp_path / "nights"
    scores = out / f"date={DAY}" / "scores"
    options = ["--date", DAY, "--actors", "2", "--batch-size", "4"]
    for wrong in ("f" * 64, ""):
        with pytest.raises(AuthenticationError):
            nodes.client(wrong)
    job = nodes.submit("jobs/nightly.py", "--dump", dump, "--models", models, "--out", out, *options)
    wait_until(lambda: len(list(scores.glob("*/*.parquet"))) > 1, "no rows")
    scoring = [name for name in ("cpu-1", "cpu-2") if any("MapWorker" in line for line in nodes.processes(name))]
    nodes.lose(scoring[-1])
    assert not (out / f"date={DAY}" / "_SUCCESS").exists()
    status, log = nodes.outcome(job)
    assert (status == JobStatus.SUCCEEDED) == (expected.exit_code == 0), log
    assert (out / f"date={DAY}" / "_SUCCESS").exists(), log
    found = rows(out / f"date={DAY}")
    assert len(found) == 2 * IMAGES + 1
    assert found.equals(rows(tmp_path / "local" / f"date={DAY}"))
