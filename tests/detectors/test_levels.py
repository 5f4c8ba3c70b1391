"""Two levels of an image, windows and the whole: scores in ranks of good images, and one detector of both."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mvad.data.image_size import ImageSize
from mvad.detectors import PatchCore, State
from mvad.detectors.levels import Levels, with_units
from mvad.detectors.levels.units import combined_left_out, combined_scores, in_first_unit, in_ranks
from mvad.errors import UsageError
from mvad.features.kinds import put_whole, split_levels
from mvad.model_checks import check_size
from mvad.options import CompareOptions, FalseAlarmOptions, FitOptions, TuneOptions, build

BOTH = "whole,tiles"


def plain_ranks(score, good):
    """The definition, by a loop over the sorted good scores, without ties."""
    ordered, count = sorted(float(value) for value in good), len(good)
    slope = 0.4 / (np.quantile(ordered, 0.9) - np.median(ordered))
    if score <= ordered[0]:
        return 1 / (count + 1) + slope * (score - ordered[0])
    for number in range(1, count):
        low, high = ordered[number - 1], ordered[number]
        if score <= high:
            return (number + (score - low) / (high - low)) / (count + 1)
    return count / (count + 1) + slope * (score - ordered[-1])


@pytest.fixture
def good():
    """Scores of ten good images at two levels, of very different size: (2, 10)."""
    random = np.random.default_rng(0)
    return np.stack([random.normal(20, 2, 10), random.normal(0.3, 0.01, 10)]).astype(np.float32)


def test_ranks_are_those_of_the_definition(good):
    for level in good:
        scores = np.linspace(level.min() - level.std(), level.max() + 5 * level.std(), 101)
        expected = [plain_ranks(score, level) for score in scores]
        np.testing.assert_allclose(in_ranks(scores, level), expected, rtol=1e-6)


def test_ranks_rise_strictly_and_without_end(good):
    scores = np.linspace(0, 1e4, 100_001)
    assert (np.diff(in_ranks(scores, good[0])) > 0).all()
    assert in_ranks(1e4, good[0]) > 100


def test_equal_good_scores_leave_the_ranks_rising():
    scores = np.array([0.5, 1, 1.5, 2, 3])
    assert (np.diff(in_ranks(scores, np.float32([1, 1, 1, 2]))) > 0).all()
    assert np.isfinite(in_ranks(scores, np.ones(4, np.float32))).all()


def test_the_combined_score_is_the_largest_rank_and_monotone_in_each_level(good):
    random = np.random.default_rng(1)
    scores = np.stack([random.normal(20, 8, 500), random.normal(0.3, 0.04, 500)]).astype(np.float32)
    expected = [max(map(plain_ranks, image, good)) for image in scores.T.astype(np.float64)]
    found = combined_scores(scores, good)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    for level in range(2):
        higher = scores.copy()
        higher[level] += np.float32(0.5 * good[level].std())
        assert (combined_scores(higher, good) >= found).all()
    assert np.isnan(combined_scores(np.float32([[20], [np.nan]]), good)).all()


def test_strong_anomalies_have_no_ties(good):
    scores = np.stack([np.linspace(100, 1000, 5000), np.full(5000, 0.3)]).astype(np.float32)
    assert len(np.unique(combined_scores(scores, good))) == 5000


def test_neither_level_decides_because_its_distances_are_larger(good):
    of_small = combined_scores(np.float32([[good[0].mean()], [good[1].max() + 0.1]]), good)
    of_large = combined_scores(np.float32([[good[0].max() + 0.1], [good[1].mean()]]), good)
    assert of_small > 2 > of_large


def test_good_images_are_compared_with_the_other_groups(good):
    groups = np.array([0, 1, 2, 2, *range(3, 9)])
    drawn = good[:, [0, 1, 3, *range(4, 10)]]
    scores, peaks = combined_left_out(good, 2 * good, groups, drawn, 2 * drawn)
    for image, group in enumerate(groups):
        others = np.delete(drawn, group, axis=1)
        expected = max(plain_ranks(float(value), level) for value, level in zip(good[:, image], others, strict=True))
        assert scores[image] == pytest.approx(expected, rel=1e-5)
        assert peaks[image] == max(2 * good[0, image], in_first_unit(2 * good[1, image], 2 * others))


def test_values_of_the_second_level_get_the_median_and_the_spread_of_the_first(good):
    brought = in_first_unit(good[1], good)
    for quantile in (0.5, 0.9):
        assert np.quantile(brought, quantile) == pytest.approx(np.quantile(good[0], quantile), rel=1e-5)


@pytest.fixture
def features():
    """Twelve images of 6 x 8 patches of windows, and 3 x 4 of the whole: (12, 10, 8, 5)."""
    torch.manual_seed(0)
    both = torch.empty(12, 10, 8, 5)
    both[:, :6] = torch.rand(12, 6, 8, 5)
    for image in both:
        put_whole(image, 30 * torch.rand(3, 4, 5))
    return both


def fitted(features, **params):
    """A detector with the units that the held-out scores of its images give."""
    detector = Levels(coreset_ratio=0.5, **params).fit(features)
    tiles, whole = split_levels(features)
    found = []
    for number in range(len(features)):
        others = detector.without(detector.origins, [number])
        of_image = slice(number, number + 1)
        parts = others.tiles.score(tiles[of_image]), others.whole.score(whole[of_image])
        found.append([*(part.image[0] for part in parts), *(part.grid.max() for part in parts)])
    columns = np.float32(found).T
    state, *combined = with_units(detector.state, columns[:2], columns[2:], np.arange(len(features)), seed=0)
    return PatchCore.from_state(State(state.settings, state.arrays)), state, combined


def test_both_levels_are_split_as_they_were_put_together(features):
    tiles, whole = split_levels(features)
    assert tiles.shape == (12, 6, 8, 5)
    assert whole.shape == (12, 3, 4, 5)
    assert not tiles.isnan().any()
    assert whole.max() > 20 > 1 >= tiles.max()
    with pytest.raises(ValueError, match="no patches of images as a whole"):
        split_levels(tiles)


@pytest.mark.parametrize("params", [{}, {"aggregate": "top-10%"}, {"whitening": 0.1, "distance": "cosine"}])
def test_each_level_is_a_patchcore_of_its_own(features, params):
    detector, state, _ = fitted(features[:8], **params)
    assert isinstance(detector, Levels)
    PatchCore.check_state(State(state.settings, state.arrays), features.shape[1:])
    tiles, whole = split_levels(features)
    alone = [PatchCore(coreset_ratio=0.5, **params).fit(part[:8]).score(part[8:]) for part in (tiles, whole)]
    found = detector.score(features[8:])
    expected = combined_scores(np.stack([one.image for one in alone]), state.arrays["good_scores"])
    np.testing.assert_array_equal(found.image, expected)
    np.testing.assert_array_equal(found.grid, alone[0].grid)
    np.testing.assert_array_equal(detector.image_scores(features[8:]), expected)


def test_what_decides_is_named_by_the_bank_that_it_is_in(features):
    detector, _, _ = fitted(features[:8])
    for level, row, column in ((0, 2, 3), (1, 8, 2)):
        image = features[:1].clone()
        image[0, row, column] = 500
        nearest = detector.nearest(image)
        assert (nearest.vector >= len(detector.tiles.bank)) == bool(level)
        assert (nearest.patch is None) == bool(level)


def test_vectors_of_both_banks_are_numbered_by_their_patch(features):
    detector = Levels(coreset_ratio=0.5).fit(features[:8])
    bank = np.concatenate([detector.tiles.bank.vectors, detector.whole.bank.vectors])
    np.testing.assert_array_equal(features[:8].flatten(0, 2).numpy()[detector.chosen], bank)
    detector.extend(features[8:])
    after = np.concatenate([detector.tiles.bank.vectors, detector.whole.bank.vectors])
    is_old = detector.chosen < 0
    np.testing.assert_array_equal(bank[-1 - detector.chosen[is_old]], after[is_old])
    np.testing.assert_array_equal(features[8:].flatten(0, 2).numpy()[detector.chosen[~is_old]], after[~is_old])


def test_nothing_is_scored_before_the_levels_are_calibrated(features):
    with pytest.raises(RuntimeError, match="not fitted"):
        Levels(coreset_ratio=0.5).fit(features).score(features)


def test_a_damaged_state_is_refused(features):
    _, state, _ = fitted(features)
    for name in state.arrays:
        fewer = {other: array for other, array in state.arrays.items() if other != name}
        with pytest.raises(ValueError, match="lacks"):
            PatchCore.check_state(State(state.settings, fewer))
    for whole in (3, state.settings, {}):
        with pytest.raises(ValueError, match=r"setting|lacks"):
            PatchCore.check_state(State({**state.settings, "whole": whole}, state.arrays))
    with pytest.raises(ValueError, match="no level"):
        PatchCore.check_state(State(state.settings, {**state.arrays, "more": np.ones(1, np.float32)}))


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (FitOptions, {"method": "subspace"}, "is for patchcore, not for subspace; leave it out"),
        (FitOptions, {"folds": 0}, "leave out --calibration none and --folds 0"),
        (FitOptions, {"calibration": "none"}, "leave out --calibration none and --folds 0"),
        (FitOptions, {"tile_size": "none"}, "needs windows; leave out --tile-size none"),
        (FitOptions, {"crop": 64}, "needs windows; leave out --crop"),
        (TuneOptions, {}, "are not tuned; leave out --tile-levels whole,tiles"),
        (FalseAlarmOptions, {}, "at one level alone; leave out --tile-levels whole,tiles"),
    ],
)
def test_what_cannot_see_both_levels_says_so(kind, values, message):
    with pytest.raises(UsageError, match=message):
        build(kind, {"tile_levels": BOTH, **values})


def test_a_comparison_calibrates_methods_that_see_both_levels():
    assert build(CompareOptions, {"tile_levels": BOTH}).fit_options("patchcore").calibrates
    assert not build(CompareOptions, {}).fit_options("patchcore").calibrates


@pytest.mark.parametrize(
    ("height", "width", "values", "whole"),
    [
        (3072, 4096, {}, (224, 288)),
        (1024, 8192, {}, (96, 736)),
        (300, 300, {}, None),  # not large: it is seen as a whole
        (128, 192, {"tile_size": 64}, (128, 192)),  # never larger than it is
        (3072, 4096, {"tile_levels": "tiles"}, None),
    ],
)
def test_the_whole_image_is_squeezed_as_one_without_windows(height, width, values, whole):
    options = build(FitOptions, {"tile_levels": BOTH, **values})
    size = options.size_for(height, width, 32, windows=True)
    check_size(size)
    assert size.whole == whole
    squeezed = build(FitOptions, {"tile_size": "none"}).size_for(height, width, 32, windows=True)
    assert whole in (None, squeezed.crop, size.crop)


def test_a_size_of_a_whole_that_no_input_has_is_refused():
    size = ImageSize(resize=(512, 512), crop=(512, 512), window=(128, 128), whole=(256, 256))
    check_size(size)
    for wrong in ({"window": None}, {"whole": (512, 544)}):
        with pytest.raises(ValueError, match="for images as a whole"):
            check_size(replace(size, **wrong))
