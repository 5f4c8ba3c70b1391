import numpy as np
import torch

from helpers import reference
from mvad.features.backbones import patch_features


def test_same_as_the_plain_reference():
    random = np.random.default_rng(0)
    maps = [random.standard_normal((2, 3, 6, 8)), random.standard_normal((2, 5, 3, 4))]
    features = patch_features([torch.from_numpy(level) for level in maps])
    assert features.shape == (2, 6, 8, 8)
    np.testing.assert_allclose(features, reference.patch_features(maps), rtol=1e-12)


def test_grids_that_do_not_divide():
    random = np.random.default_rng(1)
    maps = [random.standard_normal((1, 2, 7, 5)), random.standard_normal((1, 2, 4, 3))]
    features = patch_features([torch.from_numpy(level) for level in maps])
    np.testing.assert_allclose(features, reference.patch_features(maps), rtol=1e-12)


def test_on_the_grid_of_the_middle_level():
    random = np.random.default_rng(2)
    maps = [random.standard_normal((1, channels, side, side)) for channels, side in ((2, 8), (3, 4), (4, 2))]
    features = patch_features([torch.from_numpy(level) for level in maps], reference=1)
    assert features.shape == (1, 4, 4, 9)
    # The first level is averaged over cells of 2 x 2; the others are the same as without it.
    smooth = reference.patch_features(maps[:1])
    cells = smooth.reshape(1, 4, 2, 4, 2, 2).mean(axis=(2, 4))
    np.testing.assert_allclose(features[..., :2], cells, rtol=1e-12)
    np.testing.assert_allclose(features[..., 2:], reference.patch_features(maps[1:]), rtol=1e-12)
