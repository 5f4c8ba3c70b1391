import numpy as np
import torch

from helpers import reference
from mvad.features.patches import patch_features


def test_same_as_the_plain_reference():
    random = np.random.default_rng(0)
    stages = [random.standard_normal((2, 3, 6, 8)), random.standard_normal((2, 5, 3, 4))]
    found = patch_features([torch.from_numpy(stage) for stage in stages])
    assert found.shape == (2, 6, 8, 8)
    np.testing.assert_allclose(found, reference.patch_features(stages), rtol=1e-12)


def test_grids_that_do_not_divide():
    random = np.random.default_rng(1)
    stages = [random.standard_normal((1, 2, 7, 5)), random.standard_normal((1, 2, 4, 3))]
    found = patch_features([torch.from_numpy(stage) for stage in stages])
    np.testing.assert_allclose(found, reference.patch_features(stages), rtol=1e-12)


def test_on_the_grid_of_the_middle_stage():
    random = np.random.default_rng(2)
    stages = [random.standard_normal((1, channels, side, side)) for channels, side in ((2, 8), (3, 4), (4, 2))]
    found = patch_features([torch.from_numpy(stage) for stage in stages], reference=1)
    assert found.shape == (1, 4, 4, 9)
    # The first is averaged over cells of 2 x 2; the others are as they are without it.
    smooth = reference.patch_features(stages[:1])
    cells = smooth.reshape(1, 4, 2, 4, 2, 2).mean(axis=(2, 4))
    np.testing.assert_allclose(found[..., :2], cells, rtol=1e-12)
    np.testing.assert_allclose(found[..., 2:], reference.patch_features(stages[1:]), rtol=1e-12)
