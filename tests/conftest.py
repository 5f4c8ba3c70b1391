"""One small data set and one Ray for the whole session."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
EMBEDDED = {"backbone": "efficientnet_lite0", "quiet": True}
COMPARED = {"image_size": 64, "epochs": 2, "learning_rate": 3e-3, "shots": "2", "shot_repeats": 2, **EMBEDDED}


def paint(random, defect=False, side=96):
    """A grey striped tile, with a dark square if defective; and the mask."""
    columns = np.arange(side)
    pixels = 120 + 40 * np.sin(columns / 5 + random.uniform(0, 6)) + random.normal(0, 4, (side, side))
    mask = np.zeros((side, side), bool)
    if defect:
        y, x = random.integers(20, side - 36, 2)
        mask[y : y + 16, x : x + 16] = True
        pixels[mask] = 15
    return pixels.clip(0, 255).astype(np.uint8), mask


def write_category(root, name, *, train=8, good=4, defective=4, seed=0):
    """A small category in the MVTec layout."""
    random = np.random.default_rng(seed)
    for part, count, defect in (
        ("train/good", train, False),
        ("test/good", good, False),
        ("test/spot", defective, True),
    ):
        folder = root / name / part
        folder.mkdir(parents=True)
        for number in range(count):
            pixels, mask = paint(random, defect)
            Image.fromarray(pixels).save(folder / f"{number:03}.png")
            if defect:
                truth = root / name / "ground_truth" / "spot"
                truth.mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask).save(truth / f"{number:03}_mask.png")


def tree(root, *paths):
    """Empty files below a folder, which is given back."""
    for path in paths:
        place = root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
    return root


@pytest.fixture(scope="session")
def tiles(tmp_path_factory):
    """Two categories, ``alpha`` and ``beta``, of 8 training and 8 test images each."""
    root = tmp_path_factory.mktemp("tiles")
    write_category(root, "alpha", seed=1)
    write_category(root, "beta", seed=2)
    return root


@pytest.fixture(scope="session")
def ray_local():
    """Ray, started once; the commands use it as it is."""
    from mvad.runtime.session import ray_session

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
    from browser import open_browser

    try:
        with open_browser() as opened:
            yield opened
    except LookupError as reason:
        pytest.skip(str(reason))
