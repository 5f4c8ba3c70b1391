"""The subspace of good patches, against a singular value decomposition in float64."""

import numpy as np
import pytest
import torch

from helpers.detectors import through_disk
from mvad.detectors import State, Subspace
from mvad.detectors.subspace import moments_of, principal_components

SHAPE = (4, 5, 12)


def images(count, seed=0, shape=SHAPE):
    """Patches with few strong directions, far from the origin, as those of a network are."""
    random = np.random.default_rng(seed)
    basis = np.random.default_rng(99).standard_normal((shape[-1], shape[-1])) * 0.5 ** np.arange(shape[-1])[:, None]
    values = random.standard_normal((count, *shape)) @ basis + 7
    return values.astype(np.float32)


def reference(good, features, variance, share):
    """Image scores and squared residuals by a singular value decomposition of all patches, and the rank."""
    patches = good.reshape(-1, good.shape[-1]).astype(np.float64)
    mean = patches.mean(axis=0)
    _, singular, directions = np.linalg.svd(patches - mean, full_matrices=False)
    rank = int(np.searchsorted(np.cumsum(singular**2) / (singular**2).sum(), variance)) + 1
    rest = np.eye(len(mean)) - directions[:rank].T @ directions[:rank]
    grid = (((features - mean) @ rest) ** 2).sum(axis=-1)
    ordered = np.sort(grid.reshape(len(grid), -1), axis=1)
    return ordered[:, -max(1, round(share * ordered.shape[1])) :].mean(axis=1), grid, rank


@pytest.mark.parametrize("variance", [0.5, 0.9, 0.99, 0.9999])
@pytest.mark.parametrize(("aggregate", "share"), [("top-1%", 0.01), ("max", 0.0), ("top-10%", 0.1), ("top-100%", 1.0)])
def test_scores_are_those_of_a_singular_value_decomposition(variance, aggregate, share):
    good, others = images(9), images(4, seed=1)
    expected, grid, rank = reference(good, others, variance, share)
    detector = Subspace(variance=variance, aggregate=aggregate).fit(torch.from_numpy(good))
    assert detector.arrays["components"].shape == (rank, SHAPE[-1])
    scores = detector.score(torch.from_numpy(others))
    assert scores.grid.dtype == scores.image.dtype == np.float32
    np.testing.assert_allclose(scores.grid, grid, rtol=1e-6)
    np.testing.assert_allclose(scores.image, expected, rtol=1e-6)


def test_components_are_orthonormal_and_the_strongest_come_first():
    moments = moments_of(torch.from_numpy(images(9)).flatten(0, 2))
    components = principal_components(moments, 0.99)
    np.testing.assert_allclose(components @ components.T, np.eye(len(components)), atol=1e-12)
    strengths = np.einsum("kc,cd,kd->k", components, moments.scatter, components)
    assert (np.diff(strengths) < 0).all()


def test_one_direction_at_least_is_outside_and_none_is_inside_where_nothing_varies():
    isotropic = np.random.default_rng(0).standard_normal((30, 2, 2, 3)).astype(np.float32)
    assert Subspace().fit(torch.from_numpy(isotropic)).arrays["components"].shape == (2, 3)
    same = np.full((3, 2, 2, 3), 0.1, np.float32)
    detector = Subspace().fit(torch.from_numpy(same))
    assert not detector.arrays["components"].any()
    np.testing.assert_allclose(detector.score(torch.from_numpy(same + 1)).image, 3, rtol=1e-6)
    narrow = np.arange(8, dtype=np.float32).reshape(2, 2, 2, 1)
    assert Subspace().fit(torch.from_numpy(narrow)).score(torch.from_numpy(narrow)).image[1] == pytest.approx(12.25)


def test_moments_merge_to_those_of_all_patches():
    patches = images(50).reshape(-1, SHAPE[-1])
    whole = moments_of(torch.from_numpy(patches))
    merged = moments_of(torch.from_numpy(patches[:7])).merge(moments_of(torch.from_numpy(patches[7:])))
    assert merged.n_patches == whole.n_patches == len(patches)
    np.testing.assert_allclose(whole.mean, patches.mean(axis=0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-12)
    expected = np.cov(patches.T.astype(np.float64), bias=True) * len(patches)
    for moments in (whole, merged):
        np.testing.assert_allclose(moments.scatter, expected, rtol=1e-10, atol=1e-9)


def test_moments_of_patches_far_from_the_origin_lose_nothing():
    patches = torch.from_numpy(images(50).reshape(-1, SHAPE[-1])).double()
    near, far = moments_of(patches), moments_of(patches + 1e5)
    np.testing.assert_allclose(far.scatter, near.scatter, rtol=1e-6)


def test_more_chunks_than_one_give_the_same(monkeypatch):
    good, others = (torch.from_numpy(images(9, seed)) for seed in (0, 1))
    expected = Subspace().fit(good).score(others)
    monkeypatch.setattr("mvad.detectors.subspace.PATCHES_PER_CHUNK", 7)
    found = Subspace().fit(good).score(others)
    np.testing.assert_allclose(found.grid, expected.grid, rtol=1e-6)


def test_each_image_is_scored_by_itself():
    detector, others = Subspace().fit(torch.from_numpy(images(9))), torch.from_numpy(images(6, seed=1))
    together = detector.score(others)
    for number in range(6):
        alone = detector.bounded(others[number : number + 1])
        assert alone.image[0] == together.image[number]
        np.testing.assert_array_equal(alone.grid[0], together.grid[number])
    np.testing.assert_array_equal(detector.image_scores(others), together.image)
    everywhere = np.ones(SHAPE[:2], bool)
    np.testing.assert_array_equal(detector.settle(others[2], together.grid[2], everywhere), together.grid[2])
    assert detector.top_count(200) == 2


def test_extending_gives_the_fit_to_all_images():
    good, others = images(12), torch.from_numpy(images(3, seed=1))
    detector = through_disk(Subspace().fit(torch.from_numpy(good[:5]))).extend(torch.from_numpy(good[5:]))
    at_once = Subspace().fit(torch.from_numpy(good))
    assert detector.settings == at_once.settings == {"variance": 0.99, "aggregate": "top-1%", "seed": 0, "count": 240}
    np.testing.assert_allclose(detector.score(others).grid, at_once.score(others).grid, rtol=1e-6)


def test_shards_give_the_fit_to_all_images_and_leave_out_folds():
    good, others = images(8), torch.from_numpy(images(3, seed=1))
    detector = Subspace()
    shards = [detector.summarise(torch.from_numpy(image[None]), 0.1) for image in good]
    folds = np.array([0, 1, 2, 0, 1, 2, 0, 1])
    detector.fit_shards(iter(shards), good[..., 0].size, folds=folds)
    at_once = Subspace().fit(torch.from_numpy(good))
    np.testing.assert_allclose(detector.score(others).grid, at_once.score(others).grid, rtol=1e-6)
    left_out = detector.without(detector.origins, frozenset({2, 5}))
    exact = Subspace().fit(torch.from_numpy(good[folds != 2]))
    np.testing.assert_allclose(left_out.score(others).grid, exact.score(others).grid, rtol=1e-6)
    assert detector.shortfall is None


def test_a_model_on_disk_scores_the_same():
    detector, others = Subspace(aggregate="top-10%").fit(torch.from_numpy(images(9))), torch.from_numpy(images(3, 1))
    again = through_disk(detector)
    assert again.settings == detector.settings
    np.testing.assert_array_equal(again.score(others).image, detector.score(others).image)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"settings": {"count": 0}}, "it has learnt from no patch"),
        ({"settings": {"aggregate": "top-101%"}}, "the setting aggregate is 'top-101%'"),
        ({"arrays": {"mean": np.zeros(3)}}, "different widths"),
        ({"arrays": {"mean": np.zeros(12, np.float32)}}, "mean holds float32 values, not float64"),
        ({"arrays": {"scatter": np.full((12, 12), np.nan)}}, "scatter holds NaN or infinity"),
    ],
)
def test_a_damaged_state_is_refused(change, message):
    state = Subspace().fit(torch.from_numpy(images(9))).state
    Subspace.check_state(state, SHAPE)
    damaged = State(state.settings | change.get("settings", {}), state.arrays | change.get("arrays", {}))
    with pytest.raises(ValueError, match=message):
        Subspace.check_state(damaged)
