"""Object storage that is asked too much and breaks off: a run loses nothing, and ends with the rows of a quiet one."""

import pyarrow.fs as pafs
import pytest
from moto.server import ThreadedMotoServer

import mvad
from conftest import EMBEDDED
from faulty_store import FAULTS, FaultyStore
from mvad import results, storage

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
    found = results.read_scores(uri("out"), COLUMNS)
    assert found.equals(results.read_scores(storage.to_uri(base_run[0]), COLUMNS))
    assert storage.exists(storage.join(uri("out"), "_SUCCESS"))


def test_a_small_file_is_one_request(store):
    faulty, uri = store
    before = faulty.requests.copy()
    storage.write(storage.join(uri("small"), "x"), b"x")
    assert faulty.requests - before == {"PUT": 1}


def test_folders_are_listed_side_by_side(store, tiles):
    _, uri = store
    found = sorted(file.path for file in storage.list_files(uri("tiles")))
    assert found == sorted(file.path for file in storage.list_files(tiles.as_uri()))
