"""An image of 100 megapixels is fitted to and scored within the memory limit.

Slow, and skipped by default: run it with MVAD_HUGE=1.
"""

import os

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

import mvad
from benchmarks.peak import peak_memory
from helpers.tiles import EMBEDDED
from mvad import results
from mvad.memory import parse_bytes
from mvad.storage import to_uri

pytestmark = pytest.mark.skipif("MVAD_HUGE" not in os.environ, reason="takes minutes; set MVAD_HUGE=1")
SIDE = 10_000
MEMORY_LIMIT = "2GiB"
SPOT = (slice(7000, 7040), slice(2500, 2540))


@pytest.fixture(scope="module")
def sheets(tmp_path_factory):
    """Two good images to learn from, and one with a dark square of 40 pixels."""
    root, random = tmp_path_factory.mktemp("huge"), np.random.default_rng(0)
    coarse = gaussian_filter(random.normal(size=(500, 500)), 4)
    base = np.asarray(Image.fromarray((128 + 300 * coarse).clip(60, 200).astype(np.uint8)).resize((SIDE, SIDE)))
    for name in ("train/good/0", "train/good/1", "test/spot/0"):
        pixels = base + random.integers(0, 20, (SIDE, SIDE), np.uint8)
        if "spot" in name:
            pixels[SPOT] = 0
        path = root / f"sheet/{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, quality=95)
    return root


def test_memory_does_not_grow_with_the_image(sheets, ray_local, tmp_path):
    with peak_memory() as peak:
        options = {"memory_limit": MEMORY_LIMIT, "max_pixels": SIDE**2}
        mvad.fit(str(sheets), str(tmp_path / "models"), **EMBEDDED, **options, calibration="none")
        mvad.score(str(sheets), str(tmp_path / "models"), str(tmp_path / "out"), **options, maps="all", quiet=True)
    (row,) = results.read_scores(to_uri(tmp_path / "out"), ["error", "patch_scores", "patch_grid"]).to_pylist()
    assert row["error"] is None
    grid = np.reshape(row["patch_scores"], row["patch_grid"])
    stride = SIDE / len(grid)
    at, across = np.unravel_index(grid.argmax(), grid.shape)
    assert SPOT[0].start - 64 < at * stride < SPOT[0].stop + 64
    assert SPOT[1].start - 64 < across * stride < SPOT[1].stop + 64
    assert 0 < peak.actor < parse_bytes(MEMORY_LIMIT)
    assert peak.driver < parse_bytes(MEMORY_LIMIT)
