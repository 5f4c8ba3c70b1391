import numpy as np
import torch

import reference
from mvad.patches import patch_features


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
