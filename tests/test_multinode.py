"""Jobs on clusters of several nodes, one of which is killed on the way, write the same rows as a local run.

These tests are slow and skipped by default: run them with MVAD_MULTINODE=1.
"""

import os
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
from helpers.waits import wait_until
from mvad import results, storage
from mvad.storage import to_uri

pytestmark = pytest.mark.skipif("MVAD_MULTINODE" not in os.environ, reason="takes minutes; set MVAD_MULTINODE=1")
IMAGES_PER_CATEGORY = 160
WAIT_S = 200
DAY = "2026-11-23"
SAME = ["image_id", "category", "score", "p_value", "threshold", "is_anomaly", "status", "error", "model_id"]


def rows(out, columns=SAME):
    """Score rows, sorted by image id; each image must have exactly one."""
    table = results.read_scores(to_uri(out), columns)
    assert max(Counter(table["image_id"].to_pylist()).values()) == 1
    return table


@pytest.fixture(scope="module")
def dump(tmp_path_factory):
    """One day's images of ``alpha`` and ``beta``, one of them broken."""
    root = tmp_path_factory.mktemp("dump")
    random = np.random.default_rng(7)
    for name in ("alpha", "beta"):
        (root / name).mkdir()
        for number in range(IMAGES_PER_CATEGORY):
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
    local = {"image_size": 64, "maps": "all", "folds": 0, "engine": "torch", **EMBEDDED}  # the engine that GPUs use
    mvad.run(str(tiles), str(tmp_path / "local"), **local)
    for name in ("gpu-1", "gpu-2"):  # declared GPUs: the actors reserve them, find none, and compute on the CPU
        nodes.add(name, "--num-cpus=1", "--num-gpus=1")
    out = tmp_path / "out"
    options = ["--backbone", "efficientnet_lite0", "--image-size", "64", "--maps", "all", "--folds", "0"]
    job = nodes.submit("jobs/run.py", tiles, "--out", out, *options)
    for name in ("gpu-1", "gpu-2"):  # an actor on each
        wait_until(lambda name=name: any("MapWorker" in line for line in nodes.processes(name)), "an actor", WAIT_S)
    assert not (out / "_SUCCESS").exists()
    nodes.kill("gpu-2")
    nodes.add("gpu-3", "--num-cpus=1", "--num-gpus=1")  # as the autoscaler would
    status, log = nodes.outcome(job)
    assert status == JobStatus.SUCCEEDED, log
    assert (out / "_SUCCESS").exists()
    columns = ["image_id", "score", "patch_scores", "status"]
    assert rows(out, columns).equals(rows(tmp_path / "local", columns))


@pytest.fixture(scope="module")
def nightly(dump, base_run, tmp_path_factory):
    """The folder of models, the folder of a nightly run on this machine, and its result."""
    models, out = base_run[0] / "models", tmp_path_factory.mktemp("local")
    return models, out / f"date={DAY}", mvad.nightly(str(dump), str(models), str(out), DAY, actors=1, quiet=True)


def test_a_nightly_run_continues_on_the_remaining_node(nodes, dump, nightly, tmp_path):
    models, local, expected = nightly
    for name in ("cpu-1", "cpu-2"):
        nodes.add(name, "--num-cpus=2")
    out = tmp_path / "nightly"
    scores = out / f"date={DAY}" / "scores"
    options = ["--date", DAY, "--actors", "2", "--batch-size", "4"]
    for wrong in ("f" * 64, ""):
        with pytest.raises(AuthenticationError):
            nodes.client(wrong)
    job = nodes.submit("jobs/nightly.py", "--dump", dump, "--models", models, "--out", out, *options)
    wait_until(lambda: len(list(scores.glob("*/*.parquet"))) > 1, "the first rows", WAIT_S)
    scoring = [name for name in ("cpu-1", "cpu-2") if any("MapWorker" in line for line in nodes.processes(name))]
    nodes.kill(scoring[-1])
    assert not (out / f"date={DAY}" / "_SUCCESS").exists()
    status, log = nodes.outcome(job)
    assert (status == JobStatus.SUCCEEDED) == (expected.exit_code == 0), log
    assert (out / f"date={DAY}" / "_SUCCESS").exists(), log
    assert '"event": "stage", "stage": "score"' in log
    scored = rows(out / f"date={DAY}")
    assert len(scored) == 2 * IMAGES_PER_CATEGORY + 1
    assert scored.equals(rows(local))


def test_a_nightly_run_in_a_store_that_fails_with_a_node_that_is_killed(nodes, dump, nightly):
    models, local, expected = nightly
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
        folders = ["--dump", uri("dump"), "--models", uri("models"), "--out", uri("nightly")]
        job = nodes.submit("jobs/nightly.py", *folders, "--date", DAY, "--actors", "2", "--batch-size", "4")
        scores = storage.join(uri("nightly"), f"date={DAY}", "scores")
        wait_until(lambda: len(storage.list_folder(scores)) > 1, "the first rows", WAIT_S)
        scoring = [name for name in ("cpu-1", "cpu-2") if any("MapWorker" in line for line in nodes.processes(name))]
        nodes.kill(scoring[-1])
        status, log = nodes.outcome(job)
        store.rate = 0.0
        assert (status == JobStatus.SUCCEEDED) == (expected.exit_code == 0), log
        assert set(store.injected) == set(FAULTS)
        scored = results.read_scores(storage.join(uri("nightly"), f"date={DAY}"), SAME)
        assert len(scored) == len(set(scored["image_id"].to_pylist())) == 2 * IMAGES_PER_CATEGORY + 1
        index = scored.schema.get_field_index("error")  # the messages contain the URIs, which differ
        assert scored.remove_column(index).equals(rows(local).remove_column(index))
    finally:
        store.close()
        server.stop()
