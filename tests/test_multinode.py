"""Jobs submitted to clusters of several nodes, one of which is lost on the way, give the rows of a local run.

Not among the quick tests: run them with MVAD_MULTINODE=1.
"""

import os
import time
from collections import Counter

import numpy as np
import pyarrow.fs as pafs
import pytest
from moto.server import ThreadedMotoServer
from PIL import Image
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus

import mvad
from helpers.faulty_store import FAULTS, FaultyStore
from helpers.nodes import Nodes
from helpers.tiles import EMBEDDED, paint
from mvad import results, storage
from mvad.storage import to_uri

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


def test_a_run_on_gpus_of_two_nodes_one_of_which_is_replaced(nodes, tiles, ray_local, tmp_path):
    local = {"image_size": 64, "maps": "all", "folds": 0, "engine": "torch", **EMBEDDED}  # what GPUs take
    mvad.run(str(tiles), str(tmp_path / "local"), **local)
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
    assert rows(out, columns).equals(rows(tmp_path / "local", columns))


@pytest.fixture(scope="module")
def night(dump, base_run, tmp_path_factory):
    """The folder of models, and of a night that was scored here; and what came of it."""
    models, out = base_run[0] / "models", tmp_path_factory.mktemp("local")
    return models, out / f"date={DAY}", mvad.nightly(str(dump), str(models), str(out), DAY, actors=1, quiet=True)


def test_a_night_goes_on_with_the_node_that_is_left(nodes, dump, night, tmp_path):
    models, local, expected = night
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
    assert '"event": "stage", "stage": "score"' in log
    found = rows(out / f"date={DAY}")
    assert len(found) == 2 * IMAGES + 1
    assert found.equals(rows(local))


def test_a_night_in_a_store_that_fails_with_a_node_that_is_lost(nodes, dump, night):
    models, local, expected = night
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    store = FaultyStore(*server.get_host_and_port())
    options = f"endpoint_override=127.0.0.1:{store.port}&scheme=http&region=us-east-1&allow_bucket_creation=true"

    def uri(path):
        return f"s3://key:secret@plant/{path}?{options}"

    try:
        filesystem, _ = pafs.FileSystem.from_uri(uri("dump"))
        filesystem.create_dir("plant")
        for name, source in (("dump", dump), ("models", models)):
            pafs.copy_files(str(source), f"plant/{name}", destination_filesystem=filesystem)
        for name in ("cpu-1", "cpu-2"):
            nodes.add(name, "--num-cpus=2")
        store.rate = 0.1
        where = ["--dump", uri("dump"), "--models", uri("models"), "--out", uri("nights")]
        job = nodes.submit("jobs/nightly.py", *where, "--date", DAY, "--actors", "2", "--batch-size", "4")
        scores = storage.join(uri("nights"), f"date={DAY}", "scores")
        wait_until(lambda: len(storage.list_folder(scores)) > 1, "no rows")
        scoring = [name for name in ("cpu-1", "cpu-2") if any("MapWorker" in line for line in nodes.processes(name))]
        nodes.lose(scoring[-1])
        status, log = nodes.outcome(job)
        store.rate = 0.0
        assert (status == JobStatus.SUCCEEDED) == (expected.exit_code == 0), log
        assert set(store.injected) == set(FAULTS)
        found = results.read_scores(storage.join(uri("nights"), f"date={DAY}"), SAME)
        assert len(found) == len(set(found["image_id"].to_pylist())) == 2 * IMAGES + 1
        changed = found.schema.get_field_index("error")  # which says where a file was looked for
        assert found.remove_column(changed).equals(rows(local).remove_column(changed))
    finally:
        store.close()
        server.stop()
