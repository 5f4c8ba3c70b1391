"""PatchCore that weighs the place of a patch: against plain NumPy, and with all that it does without places."""

import itertools

import numpy as np
import pytest
import torch

from helpers import reference
from helpers.detectors import check_bounds, through_disk
from mvad.detectors import PatchCore, State
from mvad.detectors.levels import Levels
from mvad.features.kinds import put_whole
from mvad.search.patch_space import PatchSpace, Spread, distance_from_mean, grid_places

ROWS, COLUMNS, CHANNELS = 5, 6, (3, 5, 2)
WEIGHT = 0.7
KINDS = [("euclidean", 0.0), ("cosine", 0.0), ("euclidean", 0.05), ("cosine", 0.05)]
kinds = pytest.mark.parametrize(("distance", "whitening"), KINDS)
banks = pytest.mark.parametrize("banks", ["joint", "layers"])


def grids(seed, count=4):
    random = np.random.default_rng(seed)
    scales = np.repeat([0.5, 1.0, 3.0], CHANNELS)
    return torch.from_numpy(((random.standard_normal((count, ROWS, COLUMNS, 10)) + 1) * scales).astype(np.float32))


def unfitted(**options):
    defaults = {"coreset_ratio": 1.0, "projection": 0, "reweight": 0, "position_weight": WEIGHT}
    options = defaults | options
    return PatchCore(**options, channels=CHANNELS if options.get("banks") == "layers" else ())


def plain_scores(train, test, distance, whitening):
    """Scores of patches, by a loop over all pairs of patches and their places; every training patch is in the bank."""
    bring = reference.patch_space(train.reshape(-1, train.shape[-1]), distance, whitening)
    if whitening:
        unit = 1.0 if distance == "cosine" else np.sqrt(train.shape[-1])
    else:
        rows = bring(train.reshape(-1, train.shape[-1]))
        unit = np.sqrt(np.mean([np.sum((row - rows.mean(axis=0)) ** 2) for row in rows]))

    def squared(one, place, other, other_place):
        away = (np.array(place) - np.array(other_place)) / max(ROWS, COLUMNS)
        return np.sum((bring(one) - bring(other)) ** 2) + (WEIGHT * unit) ** 2 * np.sum(away**2)

    places = [(row, column) for row in range(ROWS) for column in range(COLUMNS)]
    scores = []
    for image in test:
        nearest = [
            min(squared(image[place], place, other[around], around) for other in train for around in places)
            for place in places
        ]
        scores.append(np.array(nearest) / 2 if distance == "cosine" else np.sqrt(nearest))
    return np.array(scores).reshape(-1, ROWS, COLUMNS)


@kinds
def test_scores_are_those_of_the_plain_reference(distance, whitening):
    train, test = grids(0, count=2), grids(1, count=2)
    detector = unfitted(distance=distance, whitening=whitening).fit(train)
    expected = plain_scores(train.numpy().astype(float), test.numpy().astype(float), distance, whitening)
    np.testing.assert_allclose(detector.score(test).grid, expected, rtol=1e-4)


def test_each_layer_has_the_places():
    train, test = grids(0, count=2), grids(1, count=2)
    detector = unfitted(banks="layers").fit(train)
    layers = zip(np.split(train, [3, 8], axis=3), np.split(test, [3, 8], axis=3), detector.units, strict=True)
    expected = [
        plain_scores(*(np.asarray(one, float) for one in pair), "euclidean", 0.0) / unit for *pair, unit in layers
    ]
    np.testing.assert_allclose(detector.score(test).grid, np.mean(expected, axis=0), rtol=1e-4)


def test_a_good_part_in_the_wrong_place_is_found():
    random = np.random.default_rng(0)
    parts = random.standard_normal((4, 1, 1, 10)).repeat(ROWS, 1).repeat(COLUMNS // 2, 2)
    noise = random.normal(0, 0.01, (12, ROWS, COLUMNS, 10))
    good = np.concatenate([parts[:1], parts[1:2]], axis=2) + noise
    swapped = np.concatenate([parts[1:2], parts[:1]], axis=2) + noise[:1]
    good, swapped = (torch.from_numpy(one.astype(np.float32)) for one in (good, swapped))
    scores = {}
    for weight in (0.0, 1.0):
        detector = unfitted(position_weight=weight).fit(good[:10])
        scores[weight] = float(detector.image_scores(swapped)[0]), float(detector.image_scores(good[10:]).max())
    assert scores[0.0][0] < 2 * scores[0.0][1]
    assert scores[1.0][0] > 5 * scores[1.0][1]


def test_places_can_only_raise_scores():
    train, test = grids(0, count=8), grids(1)
    scores = [unfitted(position_weight=weight).fit(train).score(test).grid for weight in (0.0, 0.3, 1.0, 3.0)]
    for less, more in itertools.pairwise(scores):
        assert (more >= less * (1 - 1e-6)).all()
        assert (more > less).any()


@kinds
@banks
def test_bounds_give_the_same_scores_whatever_the_batch(banks, distance, whitening):
    options = {"banks": banks, "distance": distance, "whitening": whitening, "coreset_ratio": 0.2, "reweight": 3}
    check_bounds(unfitted(**options).fit(grids(0, count=12)), grids(3, count=7))


@kinds
@banks
def test_a_model_on_disk_gives_the_same_scores(banks, distance, whitening):
    detector = unfitted(banks=banks, distance=distance, whitening=whitening, coreset_ratio=0.3).fit(grids(0))
    PatchCore.check_state(detector.state, (ROWS, COLUMNS, 10))
    again = through_disk(detector)
    assert again.settings == detector.settings
    np.testing.assert_array_equal(again.score(grids(4)).grid, detector.score(grids(4)).grid)


@pytest.mark.parametrize("scales", [[], [0.0], [-1.0], [1.0, 1.0], [float("nan")], "1.0", [1]])
def test_a_state_with_wrong_scales_is_refused(scales):
    detector = unfitted().fit(grids(0))
    settings = detector.settings | {"place_scales": scales}
    with pytest.raises(ValueError, match="scale"):
        PatchCore.check_state(State(settings, detector.arrays), (ROWS, COLUMNS, 10))


@banks
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_shards_give_what_all_patches_give(banks, distance):
    train, test = grids(5, count=7), grids(1)
    whole = unfitted(banks=banks, distance=distance).fit(train)
    shards = [unfitted(banks=banks, distance=distance).summarise(part, 1.0) for part in train.split(3)]
    merged = unfitted(banks=banks, distance=distance).fit_shards(iter(shards), 7 * ROWS * COLUMNS)
    np.testing.assert_allclose(merged.settings["place_scales"], whole.settings["place_scales"], rtol=1e-6)
    np.testing.assert_allclose(merged.score(test).grid, whole.score(test).grid, rtol=1e-4)
    others = merged.without(merged.origins, [1])
    without = unfitted(banks=banks, distance=distance).fit(torch.cat([train[:3], train[6:]]))
    if banks == "joint":  # the units of layers are those of all shards
        ratio = others.score(test).grid / without.score(test).grid
        assert ratio == pytest.approx(np.ones_like(ratio), rel=0.1)  # the scale is that of all shards, too


@banks
def test_extending_keeps_the_scale(banks):
    detector, more = unfitted(banks=banks).fit(grids(0)), grids(6)
    scales = detector.settings["place_scales"]
    detector.extend(more)
    assert detector.settings["place_scales"] == scales
    assert len(scales) == len(detector.layer_banks)
    assert detector.score(more).grid.max() < 1e-2
    assert detector.score(more.flip(2)).grid.min() > 1e-2


def test_both_levels_weigh_places_in_their_own_grids():
    windows, whole = grids(0), grids(1)[:, :3, :4]
    both = torch.empty(len(windows), ROWS + 1 + 3, COLUMNS, 10)
    for features, of_whole, together in zip(windows, whole, both, strict=True):
        together[:ROWS] = features
        put_whole(together, of_whole)
    levels = Levels(coreset_ratio=1.0, projection=0, position_weight=WEIGHT).fit(both)
    for level, features in ((levels.tiles, windows), (levels.whole, whole)):
        alone = PatchCore(coreset_ratio=1.0, projection=0, position_weight=WEIGHT).fit(features)
        np.testing.assert_array_equal(level.bank.vectors, alone.bank.vectors)
        assert level.settings["place_scales"] == alone.settings["place_scales"]


def test_places_are_shares_of_the_longer_side():
    np.testing.assert_allclose(grid_places(2, 4)[:, :, 0], [[0.125] * 4, [0.375] * 4])
    np.testing.assert_allclose(grid_places(2, 4)[:, :, 1], [[0.125, 0.375, 0.625, 0.875]] * 2)


def test_the_spread_of_sets_is_that_of_all_of_them():
    patches = grids(0, count=9).reshape(-1, 10)
    parts = [Spread.measure(part, PatchSpace()) for part in patches.split([100, 70, 100])]
    values = patches.double().numpy()
    expected = np.sqrt(((values - values.mean(axis=0)) ** 2).sum(axis=1).mean())
    assert distance_from_mean(parts) == pytest.approx(expected, rel=1e-9)
    assert distance_from_mean([Spread.measure(torch.ones(20, 10), PatchSpace())]) == 1.0
