import numpy as np
import pytest
import torch

from helpers import reference
from helpers.detectors import through_disk
from mvad.detectors import PatchCore


def grids(seed, count=4, shift=0.0):
    random = np.random.default_rng(seed)
    return torch.from_numpy((random.standard_normal((count, 5, 6, 10)) + shift).astype(np.float32))


@pytest.mark.parametrize("b", [0, 2, 3, 9, 500])
def test_scores_are_those_of_the_plain_reference(b):
    train, test = grids(0), grids(1, shift=0.2)
    detector = PatchCore(coreset_ratio=0.25, projection=0, reweight=b).fit(train)
    patches = train.reshape(-1, 10).numpy()
    bank = patches[reference.greedy_coreset(patches, 30)[0]]
    np.testing.assert_array_equal(detector.arrays["bank"], bank)
    scores = detector.score(test)
    for number in range(len(test)):
        image_score, patch_scores = reference.image_score(test[number].reshape(-1, 10).numpy(), bank, b)
        assert scores.image[number] == pytest.approx(image_score, rel=1e-5)
        np.testing.assert_allclose(scores.grid[number].ravel(), patch_scores, rtol=1e-5)


def test_a_planted_anomaly_scores_above_all_good_images():
    detector = PatchCore().fit(grids(0, count=12))
    test = grids(2, count=8)
    test[3, 2, 4] += 6
    scores = detector.score(test)
    assert scores.image.argmax() == 3
    assert np.unravel_index(scores.grid[3].argmax(), scores.grid[3].shape) == (2, 4)


def test_the_other_images_of_a_batch_change_nothing():
    detector = PatchCore().fit(grids(0))
    test = grids(3, count=7)
    together = detector.score(test)
    alone = [detector.score(test[number : number + 1]) for number in range(7)]
    np.testing.assert_array_equal(together.image, np.concatenate([scores.image for scores in alone]))
    np.testing.assert_array_equal(together.grid, np.concatenate([scores.grid for scores in alone]))


def test_state_is_arrays_and_json_and_gives_the_same_scores():
    detector = PatchCore(coreset_ratio=0.5, reweight=5, seed=3).fit(grids(0))
    again = through_disk(detector)
    assert again.settings == detector.settings
    np.testing.assert_array_equal(again.score(grids(4)).image, detector.score(grids(4)).image)


def test_constant_images_give_a_bank_of_one_vector():
    detector = PatchCore().fit(torch.ones(3, 4, 4, 8))
    assert len(detector.bank) == 1
    scores = detector.score(torch.ones(1, 4, 4, 8) * 2)
    assert scores.image[0] == pytest.approx(np.sqrt(8))


def test_far_patches_do_not_overflow_the_weight():
    detector = PatchCore(coreset_ratio=1.0).fit(grids(0))
    scores = detector.score(grids(1) * 1e4)
    assert np.isfinite(scores.image).all()
    assert (scores.image > 0).all()


def test_scoring_before_fitting_says_so():
    with pytest.raises(RuntimeError, match="not fitted"):
        PatchCore().score(grids(0))
