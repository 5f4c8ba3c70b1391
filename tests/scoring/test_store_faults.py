"""Object storage that is asked too much and breaks off: a run loses nothing, and ends with the rows of a quiet one."""

import threading
import time

import pyarrow.fs as pafs
import pytest
from moto.server import ThreadedMotoServer

import mvad
from helpers.faulty_store import FAULTS, FaultyStore
from helpers.tiles import EMBEDDED
from mvad import results, storage
from mvad.data import listing
from mvad.results.store import read_status
from mvad.storage import to_uri

COLUMNS = ["image_id", "score", "status", "error"]


@pytest.fixture(scope="module")
def store(tiles):
    """A bucket with ``tiles`` behind a proxy: the proxy, and ``uri(path)``."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    faulty = FaultyStore(*server.get_host_and_port())

    def uri(path):
        options = f"endpoint_override=127.0.0.1:{faulty.port}&scheme=http&region=us-east-1&allow_bucket_creation=true"
        return f"s3://key:secret@plant/{path}?{options}"

    filesystem, _ = pafs.FileSystem.from_uri(uri("tiles"))
    filesystem.create_dir("plant")
    pafs.copy_files(str(tiles), "plant/tiles", destination_filesystem=filesystem)
    yield faulty, uri
    faulty.close()
    server.stop()


def test_a_run_through_faults_gives_the_same_rows(store, base_run):
    faulty, uri = store
    faulty.rate = 0.15
    try:
        result = mvad.run(uri("tiles"), uri("out"), image_size=64, actors=1, folds=0, **EMBEDDED)
    finally:
        faulty.rate = 0.0
    assert result.exit_code == 0
    assert set(faulty.injected) == set(FAULTS)
    assert set(faulty.signers) == {"key"}  # every worker knows the keys
    scores = results.read_scores(uri("out"), COLUMNS)
    assert scores.equals(results.read_scores(storage.to_uri(base_run[0]), COLUMNS))
    assert storage.exists(storage.join(uri("out"), "_SUCCESS"))


def test_a_small_file_is_one_request(store):
    faulty, uri = store
    before = faulty.requests.copy()
    storage.write(storage.join(uri("small"), "x"), b"x")
    assert faulty.requests - before == {"PUT": 1}


def test_folders_are_listed_side_by_side(store, tiles):
    """Files of other folders come while one folder keeps its listing waiting."""
    faulty, uri = store
    slow = "tiles/beta/test/spot"
    faulty.held = {slow}
    files = []
    try:
        for page in storage.list_pages(uri("tiles")):
            files += page
            if len(files) == 36:  # images and masks of all other folders
                faulty.released.set()
    finally:
        faulty.held = set()
        faulty.released.set()
    faulty.released.clear()
    assert [f"{slow}/" in f"tiles/{file.path}" for file in files] == [False] * 36 + [True] * 4
    assert sorted(file.path for file in files) == sorted(file.path for file in storage.list_files(tiles.as_uri()))


def test_the_first_images_are_scored_while_a_folder_is_still_being_listed(
    store, tiles, base_run, tmp_path, monkeypatch
):
    faulty, uri = store
    monkeypatch.setattr(listing, "FIRST_PORTION_WAIT_S", 0.5)
    monkeypatch.setattr(listing, "FIRST_PORTION_MIN_IMAGES", 1)
    filesystem, _ = pafs.FileSystem.from_uri(uri("dump"))
    for name in ("alpha", "beta"):
        pafs.copy_files(str(tiles / name / "test"), f"plant/dump/{name}", destination_filesystem=filesystem)
    models, out = str(base_run[0] / "models"), to_uri(tmp_path / "out")
    faulty.held = {"dump/beta/spot"}
    scored_before: list[str] = []

    def watch():
        while not scored_before:
            time.sleep(0.05)
            scored_before.extend(read_status(out)["image_id"].to_pylist())
        faulty.released.set()

    threading.Thread(target=watch, daemon=True).start()
    result = mvad.score(uri("dump"), models, str(tmp_path / "out"), actors=1, quiet=True)
    faulty.held = set()
    assert result.exit_code == 0
    assert scored_before
    assert not any(name.startswith("beta/spot/") for name in scored_before)
    expected = results.read_scores(to_uri(base_run[0]), COLUMNS).to_pylist()
    for row in expected:
        row["image_id"] = row["image_id"].replace("/test/", "/")
    assert results.read_scores(out, COLUMNS).to_pylist() == expected
    run = results.read_run(out)
    assert (run["n_rows"], run["stages"]["score"]["images"], run["stages"]["score"]["actors"]) == (16, 16, 2)
