"""One small data set and one Ray for the whole session; for each of two processes where tests run side by side."""

import os

import pytest

from helpers.tiles import COMPARED, EMBEDDED, write_category

MAX_SETTLE_S = 0.05
# Those that need the fixture `compared`.
COMPARED_FILES = ("test_compare.py", "test_same_as_jobs.py", "test_unreadable.py")
SLOW = (
    "test_faults",
    "test_compare",
    "test_unreadable",
    "test_trained",
    "test_large_images",
    "test_jobs",
    "test_readme",
    "test_golden",
    "test_run",
    "test_tune",
    "test_examples",
    "test_killed_writes",
    "test_watch",
    "test_process",
    "test_wheel",
)


def pytest_collection_modifyitems(items):
    """The slowest files begin, so that no process ends late."""
    items.sort(key=lambda item: SLOW.index(item.path.stem) if item.path.stem in SLOW else len(SLOW))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Tests of a file, and of files that share an expensive fixture, stay in one process."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            return "compared" if file.endswith(COMPARED_FILES) else file

    return Scheduling(config, log)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Exported networks are kept in a folder of this session."""
    folder = tmp_path_factory.getbasetemp() / "cache"
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = tmp_path_factory.getbasetemp().parent / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield


@pytest.fixture(scope="session", autouse=True)
def _files_settle_at_once():
    """Commands wait a moment, not seconds, until files that tests have just written do not change any more."""
    from mvad.data.listing import wait_until_settled

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "mvad.results.run_record.wait_until_settled",
            lambda images, seconds: wait_until_settled(images, min(seconds, MAX_SETTLE_S)),
        )
        yield


@pytest.fixture(scope="session")
def tiles(tmp_path_factory):
    """Two categories, ``alpha`` and ``beta``, of 8 training and 8 test images each."""
    root = tmp_path_factory.mktemp("tiles")
    write_category(root, "alpha", seed=1)
    write_category(root, "beta", seed=2)
    return root


@pytest.fixture(scope="session")
def sample(tmp_path_factory):
    """The generated sample data set; tests only read it."""
    import mvad

    root = tmp_path_factory.mktemp("sample") / "data"
    mvad.sample(str(root))
    return root


@pytest.fixture(scope="session")
def ray_local():
    """Ray, started once; the commands use it as it is. Its idle workers stay: they have imported what tests need."""
    from mvad.runtime.session import ray_session

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_num_workers_soft_limit", "8")
        with ray_session(None):
            yield


@pytest.fixture(scope="session")
def base_run(tiles, ray_local, tmp_path_factory):
    """The main job on ``tiles``: (folder of the results, what `run` returned)."""
    import mvad

    out = tmp_path_factory.mktemp("base") / "out"
    return out, mvad.run(str(tiles), str(out), maps="all", image_size=64, actors=2, batch_size=32, **EMBEDDED)


@pytest.fixture(scope="session")
def compared(tiles, ray_local, tmp_path_factory):
    """All methods on ``tiles``, vit-knn without weights: (folder, what `compare` returned)."""
    from urllib.error import URLError

    import mvad

    def no_network(*args, **kwargs):
        raise URLError("no network")

    out = tmp_path_factory.mktemp("compared") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.hub.load_state_dict_from_url", no_network)
        return out, mvad.compare(str(tiles), str(out), actors=2, **COMPARED)


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium, by Playwright; without one its tests are skipped."""
    from helpers.browser import open_browser

    try:
        with open_browser() as opened:
            yield opened
    except LookupError as reason:
        pytest.skip(str(reason))
