import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import reference
from mvad.search.coreset import greedy_coreset, random_projection


def covering_radius(points, chosen):
    distances = np.linalg.norm(points[:, None, :].astype(np.float64) - points[chosen][None], axis=2)
    return distances.min(axis=1).max()


@pytest.mark.parametrize("candidates", [1, 2, 7, 128])
@pytest.mark.parametrize("kind", ["even", "clustered"])
def test_chooses_the_points_of_plain_greedy(kind, candidates):
    random = np.random.default_rng(3)
    points = random.standard_normal((600, 6)).astype(np.float32)
    if kind == "clustered":
        points = points * 0.05 + random.standard_normal((9, 6)).astype(np.float32)[random.integers(0, 9, 600)]
    chosen, radius = greedy_coreset(torch.from_numpy(points), 80, candidates)
    expected, expected_radius = reference.greedy_coreset(points, 80)
    np.testing.assert_array_equal(chosen, expected)
    assert radius == pytest.approx(expected_radius, rel=1e-4)


def test_more_rows_than_one_chunk():
    points = np.random.default_rng(4).standard_normal((333, 4)).astype(np.float32)
    np.testing.assert_array_equal(
        greedy_coreset(torch.from_numpy(points), 40, rows_per_chunk=50)[0], reference.greedy_coreset(points, 40)[0]
    )


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 60),
    st.integers(1, 40),
    st.integers(1, 8),
    st.integers(0, 2**32 - 1),
    st.sampled_from(["integers", "duplicates", "line"]),
)
def test_ties_and_duplicates_cover_as_well_as_plain_greedy(count, size, candidates, seed, kind):
    random = np.random.default_rng(seed)
    points = random.integers(0, 4, (count, 2)).astype(np.float32)
    if kind == "duplicates":
        points = points[random.integers(0, count, count)]
    if kind == "line":
        points[:, 1] = 0
    chosen, radius = greedy_coreset(torch.from_numpy(points), size, candidates)
    assert len(set(chosen.tolist())) == len(chosen) <= min(size, count)
    assert radius == pytest.approx(covering_radius(points, chosen), abs=2e-3)
    # With ties plain greedy is one of several equally good choices; all obey the bound of Gonzalez (1985): no set of
    # the same size covers better than half the smallest distance between the chosen points and the remaining radius.
    if len(chosen) > 1:
        between = np.linalg.norm(points[chosen][:, None] - points[chosen][None], axis=2)
        assert between[~np.eye(len(chosen), dtype=bool)].min() >= radius - 2e-3
    distinct = len(np.unique(points, axis=0))
    assert len(chosen) == min(size, distinct)


def test_stops_when_all_points_are_covered():
    points = torch.ones(50, 3)
    chosen, radius = greedy_coreset(points, 10)
    assert len(chosen) == 1
    assert radius == 0


def test_projection_keeps_distances_and_follows_the_seed():
    features = torch.from_numpy(np.random.default_rng(5).standard_normal((100, 2000)).astype(np.float32))
    projected = random_projection(features, 400, seed=7)
    assert projected.shape == (100, 400)
    ratio = torch.pdist(projected) / torch.pdist(features)
    assert 0.8 < ratio.min() < ratio.max() < 1.2
    assert torch.equal(projected, random_projection(features, 400, seed=7))
    assert not torch.equal(projected, random_projection(features, 400, seed=8))


@pytest.mark.parametrize("dimensions", [0, 20, 50])
def test_no_projection_to_zero_or_more_dimensions(dimensions):
    features = torch.randn(10, 20, generator=torch.Generator().manual_seed(0))
    assert random_projection(features, dimensions, seed=0) is features
