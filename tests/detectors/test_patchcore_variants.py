"""PatchCore with other image scores, distances, and whitened features: against plain NumPy, alone and together."""

import itertools

import numpy as np
import pytest
import torch

from helpers import reference
from helpers.detectors import check_bounds, through_disk
from mvad.detectors import PatchCore, State

AGGREGATES = {"max": None, "top-3%": 0.03, "top-20%": 0.2, "top-100%": 1.0}
VARIANTS = list(itertools.product(AGGREGATES, ("euclidean", "cosine"), (0.0, 0.05)))
variants = pytest.mark.parametrize(("aggregate", "distance", "whitening"), VARIANTS)


def grids(seed, count=4, shift=0.0):
    """Patches whose channels correlate, and vary to different degrees around a mean."""
    random, mixing = np.random.default_rng(seed), np.random.default_rng(99)
    mixed = random.standard_normal((count, 5, 6, 10)) @ (mixing.standard_normal((10, 10)) * np.geomspace(0.1, 3, 10))
    return torch.from_numpy((mixed + 2 + shift).astype(np.float32))


@variants
def test_scores_are_those_of_the_plain_reference(aggregate, distance, whitening):
    train, test = grids(0), grids(1, shift=0.2)
    detector = PatchCore(
        coreset_ratio=0.25, projection=0, reweight=3, aggregate=aggregate, distance=distance, whitening=whitening
    ).fit(train)
    patches = train.reshape(-1, 10).numpy()
    bring = reference.patch_space(patches, distance, whitening)
    bank = bring(patches)[reference.greedy_coreset(bring(patches), 30)[0]]
    np.testing.assert_allclose(detector.arrays["bank"], bank, rtol=1e-5, atol=1e-5)
    scores = detector.score(test)
    for number, image in enumerate(test.reshape(len(test), -1, 10).numpy()):
        expected, patch_scores = reference.space_score(bring(image), bank, distance, 3, AGGREGATES[aggregate])
        assert scores.image[number] == pytest.approx(expected, rel=1e-4)
        np.testing.assert_allclose(scores.grid[number].ravel(), patch_scores, rtol=1e-4, atol=1e-6)


@variants
def test_bounds_give_the_same_scores_whatever_the_batch(aggregate, distance, whitening):
    detector = PatchCore(aggregate=aggregate, distance=distance, whitening=whitening).fit(grids(0, count=12))
    test = grids(3, count=7)
    test[2, :2] = test[2, 3, 3]  # ties
    check_bounds(detector, test)


@variants
def test_a_model_on_disk_gives_the_same_scores(aggregate, distance, whitening):
    detector = PatchCore(aggregate=aggregate, distance=distance, whitening=whitening).fit(grids(0))
    PatchCore.check_state(detector.state, (5, 6, 10))
    again = through_disk(detector)
    assert again.settings == detector.settings
    assert again.arrays.keys() == detector.arrays.keys()
    np.testing.assert_array_equal(again.bounded(grids(4)).image, detector.score(grids(4)).image)


def test_a_state_of_an_earlier_version_has_the_defaults():
    detector = PatchCore(reweight=4).fit(grids(0))
    later = {"max_vectors", "banks", "channels", "units", "aggregate", "distance", "whitening"}
    later |= {"position_weight", "place_scales"}
    settings = {name: value for name, value in detector.settings.items() if name not in later}
    state = State(settings, detector.arrays)
    PatchCore.check_state(state, (5, 6, 10))
    again = PatchCore.from_state(state)
    assert (again.params.aggregate, again.params.distance, again.params.whitening) == ("max", "euclidean", 0.0)
    np.testing.assert_array_equal(again.score(grids(4)).image, detector.score(grids(4)).image)


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_a_part_of_an_image_settles_what_the_whole_needs(distance):
    detector = PatchCore(aggregate="top-20%", distance=distance).fit(grids(0, count=12))
    test = grids(5, count=1)
    exact = detector.score(test).grid
    at_least = float(np.sort(exact, axis=None)[-4])
    part = detector.bounded(test, at_least, n_patches=60)
    reached = exact >= at_least
    np.testing.assert_array_equal(part.grid[reached], exact[reached])
    assert (part.grid[~reached] < at_least).all()
    assert part.image[0] == -np.inf  # 12 patches decide, of which others may be elsewhere


@pytest.mark.parametrize("whitening", [0.0, 0.05])
def test_patches_of_zeros_have_a_cosine_score(whitening):
    train, test = grids(0), grids(1)
    train[0, 0], test[0, 1] = 0, 0
    detector = PatchCore(coreset_ratio=1.0, distance="cosine", whitening=whitening).fit(train)
    scores = detector.score(test)
    assert np.isfinite(scores.image).all()
    assert np.isfinite(scores.grid).all()
    assert (scores.grid[0, 1] == 0).all()
    others = PatchCore(coreset_ratio=1.0, distance="cosine").fit(grids(0)).score(test)
    np.testing.assert_allclose(others.grid[0, 1], 0.5, rtol=1e-6)


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_constant_images_are_only_centred(distance):
    detector = PatchCore(distance=distance, whitening=0.01).fit(torch.full((3, 4, 4, 8), 3.3))
    scores = detector.score(torch.full((1, 4, 4, 8), 5.3))
    expected = 0.5 if distance == "cosine" else 2 * np.sqrt(8)
    np.testing.assert_allclose(scores.grid, expected, rtol=1e-6)


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("whitening", [0.0, 0.05])
def test_shards_give_the_space_of_all_patches(distance, whitening):
    train = grids(0, count=7)
    options = {"coreset_ratio": 1.0, "distance": distance, "whitening": whitening, "aggregate": "top-20%"}
    whole = PatchCore(**options).fit(train)
    shards = [PatchCore(**options).summarise(part, 1.0) for part in train.split(3)]
    merged = PatchCore(**options).fit_shards(shards, 7 * 30)
    for name in merged.arrays.keys() - {"bank"}:
        np.testing.assert_allclose(merged.arrays[name], whole.arrays[name], rtol=1e-6, atol=1e-6)
    test = grids(1)
    np.testing.assert_allclose(merged.score(test).image, whole.score(test).image, rtol=1e-5)
    without = merged.without(merged.origins, {2})
    bank = reference.patch_space(train.reshape(-1, 10), distance, whitening)(train[:6].reshape(-1, 10))
    assert without.search.n_vectors == len(bank)
    expected, _ = reference.space_score(
        reference.patch_space(train.reshape(-1, 10), distance, whitening)(test[0].reshape(-1, 10)),
        bank,
        distance,
        0,
        0.2,
    )
    assert without.score(test).image[0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_extending_keeps_the_whitening(distance):
    train, more = grids(0), grids(6, shift=1.0)
    detector = PatchCore(coreset_ratio=1.0, distance=distance, whitening=0.05, projection=0).fit(train)
    before = {name: array.copy() for name, array in detector.arrays.items()}
    detector.extend(more)
    for name in before.keys() - {"bank"}:
        np.testing.assert_array_equal(detector.arrays[name], before[name])
    bring = reference.patch_space(train.reshape(-1, 10), distance, 0.05)
    expected = np.concatenate([bring(train.reshape(-1, 10)), bring(more.reshape(-1, 10))])
    bank = detector.arrays["bank"]
    np.testing.assert_allclose(bank[np.lexsort(bank.T)], expected[np.lexsort(expected.T)], rtol=1e-4, atol=1e-5)


def test_wrong_whitening_arrays_are_refused():
    state = PatchCore(whitening=0.1).fit(grids(0)).state
    wrong = {
        "lacks the array whitening_mean": {name: state.arrays[name] for name in ("bank", "whitening_matrix")},
        "holds NaN": state.arrays | {"whitening_mean": np.full(10, np.nan)},
        "has the shape 9": state.arrays | {"whitening_mean": np.zeros(9)},
        "holds float32 values": state.arrays | {"whitening_matrix": np.eye(10, dtype=np.float32)},
    }
    for message, arrays in wrong.items():
        with pytest.raises(ValueError, match=message):
            PatchCore.check_state(state._replace(arrays=arrays), (5, 6, 10))
    other = state.arrays | {"whitening_mean": np.zeros(9), "whitening_matrix": np.eye(9)}
    with pytest.raises(ValueError, match="bank has 10 features, and the whitening others"):
        PatchCore.check_state(state._replace(arrays=other))
