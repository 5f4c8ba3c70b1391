"""Scores of an image through windows are those of all its patches at once."""

import numpy as np
import pytest
import torch

from mvad.data.image_size import tiled_size
from mvad.detectors import PatchCore
from mvad.features.extractor import FeatureExtractor
from mvad.runtime.threads import Threads
from mvad.scoring import windows
from mvad.scoring.windows import score_windows

SIZE = tiled_size(96, 160, side=32, overlap=0.25, cell=8)
CELL = 4


class PixelBlocks(FeatureExtractor):
    """The features of a patch are its pixels: 4 x 4 of them."""

    def run(self, pixels):
        n, height, width, _ = pixels.shape
        blocks = pixels.reshape(n, height // CELL, CELL, width // CELL, CELL, 3).transpose(0, 1, 3, 2, 4, 5)
        return [torch.from_numpy(blocks.reshape(n, height // CELL, width // CELL, -1).astype(np.float32))]


@pytest.fixture(scope="module")
def images():
    """Grey images with a brighter corner, of which the last has patches that are all alike."""
    random = np.random.default_rng(0)
    images = random.integers(100, 130, (5, 96, 160, 3)).astype(np.uint8)
    images[:, 70:, 120:] += random.integers(0, 90, (5, 26, 40, 3)).astype(np.uint8)
    images[-1] = 7
    return images


@pytest.mark.parametrize(
    ("aggregate", "distance", "whitening", "position_weight", "threads"),
    [
        ("max", "euclidean", 0.0, 0.0, 1),
        ("max", "cosine", 0.1, 0.0, 3),
        ("max", "euclidean", 0.0, 1.0, 3),
        ("top-0.1%", "euclidean", 0.0, 0.0, 1),
        ("top-1%", "euclidean", 0.1, 0.0, 1),
        ("top-1%", "cosine", 0.0, 3.0, 3),
        ("top-20%", "cosine", 0.1, 0.0, 1),
        ("top-100%", "euclidean", 0.0, 0.0, 1),
    ],
)
@pytest.mark.parametrize("floats_per_group", [1, 4 * 64 * 48, 1 << 20])  # one window, a few, all
def test_the_score_is_that_of_all_patches(
    images, aggregate, distance, whitening, position_weight, threads, floats_per_group, monkeypatch
):
    monkeypatch.setattr(windows, "FLOATS_PER_GROUP", floats_per_group)
    extract = PixelBlocks(["patches"], SIZE)
    ingredients = {"aggregate": aggregate, "distance": distance, "whitening": whitening}
    detector = PatchCore(coreset_ratio=0.05, position_weight=position_weight, **ingredients)
    detector.fit(extract(images[:2])["patches"])
    for image in images[2:]:
        whole = detector.score(extract(image[None])["patches"])
        for threshold in (-np.inf, float(np.median(whole.grid)), np.inf):
            found = score_windows(image, extract, {7: detector}, {7: threshold}, Threads(threads))[7]
            assert found.score == whole.image[0]
            assert (found.grid >= whole.grid[0] * (1 - 1e-5)).all()
            assert found.grid.max() == whole.grid.max()
            if threshold == -np.inf:
                np.testing.assert_array_equal(found.grid, whole.grid[0])


def test_few_patches_of_later_windows_are_settled(images):
    extract, settled = PixelBlocks(["patches"], SIZE), []
    detector = PatchCore(coreset_ratio=0.05, aggregate="top-1%").fit(extract(images[:2])["patches"])
    nearest = detector.search.nearest

    def count(rows, *bounds):
        settled.append(len(rows))
        return nearest(rows, *bounds)

    detector.search.nearest = count
    score_windows(images[2], extract, {0: detector}, {0: np.inf}, Threads(1))
    assert 10 <= sum(settled) < 0.5 * 24 * 40
