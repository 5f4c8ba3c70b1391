"""Calibration by leaving out: each image is scored as by a bank that lacks its patches."""

import numpy as np
import pytest
import torch

from mvad.data.image_size import ImageSize
from mvad.detectors import PatchCore, State
from mvad.fitting.tasks import extend_and_leave_out, extend_detector, fit_and_leave_out
from mvad.options import FitOptions
from mvad.search.exact_search import ExactSearch
from mvad.search.memory_bank import MemoryBank

SIZE = ImageSize.square(64)
N, SHAPE = 12, (8, 8, 10)


@pytest.fixture
def features():
    return np.random.default_rng(0).standard_normal((N, *SHAPE)).astype(np.float32)


def left_out_one_by_one(options, features, groups):
    """Image scores and maps' grids by detectors whose banks really lack the vectors of each image's group."""
    detector = PatchCore.from_options(options).fit(torch.from_numpy(features))
    scores = []
    for number, group in enumerate(groups):
        kept = ~np.isin(detector.origins[0], np.flatnonzero(groups == group))
        arrays = {**detector.arrays, "bank": np.ascontiguousarray(detector.arrays["bank"][kept])}
        others = PatchCore.from_state(State(detector.settings, arrays))
        scores.append(others.score(torch.from_numpy(features[number : number + 1])).image[0])
    return np.array(scores)


@pytest.mark.parametrize("inverted_file", [True, False])
def test_a_search_without_some_vectors_is_that_of_a_smaller_bank(inverted_file):
    random = np.random.default_rng(1)
    vectors, rows = random.standard_normal((300, 60)).astype(np.float32), random.standard_normal((50, 60))
    rows = torch.from_numpy(np.concatenate([rows.astype(np.float32), vectors[:50]]))
    search = ExactSearch(MemoryBank(vectors), inverted_file=inverted_file)
    for share in (0.02, 0.5, 0.99):
        left_out = random.random(300) < share
        left_out[:40] = True  # all of the first cells
        kept = np.flatnonzero(~left_out)
        smaller = ExactSearch(MemoryBank(vectors[kept]), inverted_file=inverted_file)
        without = search.without(left_out)
        (distances, indices), (expected, among_kept) = without.nearest(rows), smaller.nearest(rows)
        np.testing.assert_array_equal(distances, expected)
        np.testing.assert_array_equal(indices, kept[among_kept])
        neighbours, others = without.bank_neighbours(indices, 9), smaller.bank_neighbours(among_kept, 9)
        np.testing.assert_array_equal(neighbours, kept[others])
        approximate = without.approximate_nearest(without.project(rows))
        assert not left_out[approximate].any()
        assert not left_out[without.approximate_nearest(without.project(rows), quick=True)].any()
        bounds = without.distances(rows, approximate)
        assert (without.closer_bounds(rows, without.project(rows), bounds) >= expected * (1 - 1e-6)).all()
    (unchanged, _), (again, _) = search.nearest(rows), ExactSearch(MemoryBank(vectors)).nearest(rows)
    np.testing.assert_array_equal(unchanged, again)
    with pytest.raises(ValueError, match="no vector of the bank is left"):
        search.without(np.ones(300, bool))


@pytest.mark.parametrize("options", [{}, {"distance": "cosine"}, {"aggregate": "top-5%"}, {"reweight": 0}])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_scores_are_those_of_a_bank_without_the_image(features, options, share):
    chosen = FitOptions(coreset_ratio=0.2, **options)
    groups = np.array([0, 1, 1, 2, 3, 4, 5, 6, 6, 6, 7, 8])
    state, held_out = fit_and_leave_out(chosen, features, np.arange(N), groups, SIZE, share=share)
    np.testing.assert_array_equal(held_out.scores, left_out_one_by_one(chosen, features, groups))
    assert held_out.map_peaks.shape == (N,)
    assert len(held_out.patches) == N
    whole = PatchCore.from_options(chosen).fit(torch.from_numpy(features))
    np.testing.assert_array_equal(state.arrays["bank"], whole.arrays["bank"])
    assert (held_out.scores >= whole.score(torch.from_numpy(features)).image * (1 - 1e-6)).mean() > 0.9


def test_variants_of_an_image_are_left_out_with_it(features):
    options = FitOptions(coreset_ratio=1.0, projection=0, reweight=0, augmentations=["brightness"], variant_count=2)
    rows = np.arange(N).reshape(4, 3)  # an image, and two variants that are the same
    features[rows[:, 1]] = features[rows[:, 0]]
    _, held_out = fit_and_leave_out(options, features, rows.ravel(), np.arange(4), SIZE)
    for image in range(4):
        others = features[np.delete(rows, image, axis=0).ravel()].reshape(-1, 10)
        patches = features[rows[image, 0]].reshape(-1, 10)
        distances = np.linalg.norm(patches[:, None] - others, axis=2).min(axis=1)
        assert held_out.scores[image] == pytest.approx(distances.max(), rel=1e-5)


def test_an_image_that_fills_the_bank_is_scored_by_another_one(features):
    features[3] *= 100
    options = FitOptions(max_vectors=4, projection=0, reweight=0)
    state, held_out = fit_and_leave_out(options, features, np.arange(N), np.arange(N), SIZE)
    assert (np.abs(state.arrays["bank"]).max(axis=1) > 20).all()
    others = PatchCore.from_options(options).fit(torch.from_numpy(np.delete(features, 3, axis=0)))
    assert held_out.scores[3] == others.score(torch.from_numpy(features[3:4])).image[0]
    assert np.isfinite(held_out.scores).all()


@pytest.mark.parametrize("options", [{}, {"distance": "cosine", "whitening": 0.1}, {"aggregate": "top-5%"}])
def test_new_images_of_an_update_are_scored_as_by_a_bank_without_them(features, options):
    chosen = FitOptions(coreset_ratio=0.3, **options)
    before = PatchCore.from_options(chosen).fit(torch.from_numpy(features[:6])).state
    new, groups = np.array([7, 8, 9, 11]), np.array([0, 1, 1, 2])
    extension, left_out = extend_and_leave_out("patchcore", before, features, new, np.array([10]), groups, SIZE)
    extended = PatchCore.from_state(before).extend(torch.from_numpy(features[new]))
    np.testing.assert_array_equal(extension.state.arrays["bank"], extended.arrays["bank"])
    (origins,) = extended.origins
    assert {*origins.tolist()} == {-1, 0, 1, 2, 3}
    for number, group in enumerate(groups):
        kept = ~np.isin(origins, np.flatnonzero(groups == group))
        arrays = {**extended.arrays, "bank": np.ascontiguousarray(extended.arrays["bank"][kept])}
        others = PatchCore.from_state(State(extended.settings, arrays))
        assert left_out.scores[number] == others.score(torch.from_numpy(features[new[number]][None])).image[0]
    assert left_out.map_peaks.shape == (4,)
    plain = extend_detector("patchcore", before, features, new, np.array([10]))
    np.testing.assert_array_equal(extension.held_out.scores, plain.held_out.scores)
    np.testing.assert_array_equal(extension.scores_before, plain.scores_before)


def test_a_new_image_that_fills_the_bank_is_scored_by_another_extension(features):
    options = FitOptions(max_vectors=4, projection=0, reweight=0)
    before = PatchCore.from_options(options).fit(torch.from_numpy(features[:6])).state
    features[7] *= 100
    new = np.array([7, 8, 9])
    extension, left_out = extend_and_leave_out("patchcore", before, features, new, new[:0], np.arange(3), SIZE)
    assert (np.abs(extension.state.arrays["bank"]).max(axis=1) > 20).sum() >= 3
    assert np.isfinite(left_out.scores).all()
    assert left_out.scores[0] > 20
