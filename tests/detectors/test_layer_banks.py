"""PatchCore with a memory bank for each layer: against plain NumPy, and with all that a single bank can do."""

import numpy as np
import pytest
import torch

from helpers import reference
from helpers.detectors import check_bounds, through_disk
from mvad.detectors import PatchCore
from mvad.search.layer_banks import layer_unit
from mvad.search.memory_bank import MemoryBank
from mvad.search.patch_space import PatchSpace

CHANNELS = (3, 5, 2)
STARTS = (0, 3, 8)
KINDS = [("euclidean", 0.0), ("cosine", 0.0), ("euclidean", 0.05)]
kinds = pytest.mark.parametrize(("distance", "whitening"), KINDS)
aggregates = pytest.mark.parametrize(("aggregate", "share"), [("max", None), ("top-20%", 0.2)])


def grids(seed, count=4):
    """Patches of three layers, each of another magnitude."""
    random = np.random.default_rng(seed)
    scales = np.repeat([0.1, 1.0, 30.0], CHANNELS)
    return torch.from_numpy(((random.standard_normal((count, 5, 6, 10)) + 1) * scales).astype(np.float32))


def fitted(features, **options):
    defaults = {"coreset_ratio": 0.25, "projection": 0, "channels": CHANNELS}
    return PatchCore(banks="layers", **defaults | options).fit(features)


def layers_of(features):
    return np.split(features.reshape(-1, 10).numpy(), STARTS[1:], axis=1)


def patch_scores(train, test, banks_of, distance, whitening):
    """The mean over layers of each patch's score, relative to the mean score between neighbours in the layer's bank."""
    scores = []
    for learnt, patches in zip(layers_of(train), layers_of(test), strict=True):
        bring = reference.patch_space(learnt, distance, whitening)
        bank = banks_of(bring(learnt))
        _, found = reference.space_score(bring(patches), bank, distance, 0, 1.0)
        others = [np.delete(bank, number, axis=0) for number in range(len(bank))]
        between = [
            reference.space_score(one[None], rest, distance, 0, 1.0)[0] for one, rest in zip(bank, others, strict=True)
        ]
        scores.append(found / np.mean(between))
    return np.mean(scores, axis=0)


@kinds
@aggregates
def test_scores_are_those_of_the_plain_reference(aggregate, share, distance, whitening):
    train, test = grids(0), grids(1)
    detector = fitted(train, aggregate=aggregate, distance=distance, whitening=whitening)
    scores = detector.score(test)
    assert [len(one.bank) for one in detector.layer_banks] == [30, 30, 30]

    def coreset(points):
        return points[reference.greedy_coreset(points, 30)[0]]

    for number in range(len(test)):
        expected = patch_scores(train, test[number], coreset, distance, whitening)
        np.testing.assert_allclose(scores.grid[number].ravel(), expected, rtol=1e-4)
        count = 1 if share is None else round(share * 30)
        assert scores.image[number] == pytest.approx(np.sort(expected)[-count:].mean(), rel=1e-4)


@kinds
@aggregates
def test_bounds_give_the_same_scores_whatever_the_batch(aggregate, share, distance, whitening):
    detector = fitted(grids(0, count=12), aggregate=aggregate, distance=distance, whitening=whitening)
    test = grids(3, count=7)
    test[2, :2] = test[2, 3, 3]  # ties
    check_bounds(detector, test)


def test_few_patches_are_searched_exactly():
    detector, test = fitted(grids(0, count=40)), grids(1, count=8)
    nearest, searched = detector.search.nearest, []

    def count(rows, *bounds):
        searched.append(len(rows))
        return nearest(rows, *bounds)

    detector.search.nearest = count
    detector.bounded(test)
    assert 8 <= sum(searched) <= 0.5 * 8 * 30


@kinds
def test_a_model_on_disk_gives_the_same_scores(distance, whitening):
    detector = fitted(grids(0), distance=distance, whitening=whitening)
    PatchCore.check_state(detector.state, (5, 6, 10))
    again = through_disk(detector)
    assert again.settings == detector.settings
    assert again.arrays.keys() == detector.arrays.keys()
    np.testing.assert_array_equal(again.bounded(grids(4)).image, detector.score(grids(4)).image)


@kinds
def test_shards_give_the_banks_of_all_patches(distance, whitening):
    train, test = grids(0, count=7), grids(1)
    options = {"banks": "layers", "coreset_ratio": 1.0, "distance": distance, "whitening": whitening}
    whole = PatchCore(**options, channels=CHANNELS).fit(train)
    shards = [PatchCore(**options, channels=CHANNELS).summarise(part, 1.0) for part in train.split(3)]
    merged = PatchCore(**options).fit_shards(iter(shards), 7 * 30)
    np.testing.assert_allclose(merged.score(test).grid, whole.score(test).grid, rtol=1e-5)
    without = merged.without(merged.origins, {2})
    assert [search.n_vectors for search in without.search.searches] == [180, 180, 180]
    assert without.units == merged.units
    if not whitening:
        others = PatchCore(**options, channels=CHANNELS).fit(train[:6])
        scale = np.divide(others.units, merged.units)
        assert without.score(test).image == pytest.approx(others.score(test).image, rel=max(abs(scale - 1)) + 1e-5)


@kinds
def test_extending_keeps_spaces_and_units(distance, whitening):
    detector, more = fitted(grids(0), distance=distance, whitening=whitening), grids(6)
    units, before = detector.units, detector.arrays
    detector.extend(more)
    assert detector.units == units
    assert [len(one.bank) for one in detector.layer_banks] == [60, 60, 60]
    for name, array in detector.arrays.items():
        if not name.startswith("bank"):
            np.testing.assert_array_equal(array, before[name])
    assert detector.score(more).image.mean() < fitted(grids(0)).score(more).image.mean() * (
        1 if (distance, whitening) == KINDS[0] else np.inf
    )


def test_the_coverage_bounds_the_scores_of_training_images():
    train = grids(0, count=12)
    detector = fitted(train)
    assert detector.score(train).grid.max() <= detector.coverage * (1 + 1e-5)


def test_without_channels_all_features_are_one_layer():
    train, test = grids(0), grids(1)
    single, joint = fitted(train, channels=()), PatchCore(coreset_ratio=0.25, projection=0).fit(train)
    assert single.settings["channels"] == [10]
    np.testing.assert_allclose(single.score(test).grid * single.units[0], joint.score(test).grid, rtol=1e-6)


@pytest.mark.parametrize("count", [1, 5])
def test_a_bank_of_copies_has_the_unit_one(count):
    assert layer_unit(MemoryBank(np.ones((count, 3), np.float32)), PatchSpace()) == 1.0


def test_a_state_whose_layers_do_not_fit_is_refused():
    state = fitted(grids(0)).state
    wrong = [
        ({"channels": [3, 5]}, "it has 2 layers, units of 3"),
        ({"channels": [3, 5, 4]}, "12 channels together, and features have 10"),
        ({"channels": [3, 5, True]}, "channels is not a list of positive whole numbers"),
        ({"channels": [10], "units": [1.0]}, "has a array .bank_2. that its method does not know"),
        ({"units": [1.0, 1.0, 0.0]}, "units is not a list of positive numbers"),
        ({"units": [1.0, 1.0, float("nan")]}, "units is not a list of positive numbers"),
        ({"units": "abc"}, "units is not a list of positive numbers"),
        ({"banks": "joint"}, "3 layers, units of 3, and banks of joint"),
        ({"channels": [], "units": []}, "0 layers, units of 0, and banks of layers"),
    ]
    for changes, message in wrong:
        with pytest.raises(ValueError, match=message):
            PatchCore.check_state(state._replace(settings=state.settings | changes), (5, 6, 10))
    for name in state.arrays:
        arrays = {other: array for other, array in state.arrays.items() if other != name}
        with pytest.raises(ValueError, match=f"lacks the array {name}"):
            PatchCore.check_state(state._replace(arrays=arrays), (5, 6, 10))
