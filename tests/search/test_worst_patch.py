import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.vectors import KINDS, example
from mvad.search.coreset import greedy_coreset
from mvad.search.exact_search import ExactSearch
from mvad.search.memory_bank import MemoryBank
from mvad.search.worst_patch import worst_patches


def brute_force(bank, patches):
    """Distance of the farthest patch of each image, in double precision, every patch against every vector."""
    exact = bank.astype(np.float64)
    between = np.linalg.norm(patches.astype(np.float64)[:, :, None] - exact[None, None], axis=3)
    return between.min(axis=2).max(axis=1)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.integers(0, 2**32 - 1),
    st.integers(1, 90),  # vectors in the bank
    st.integers(1, 4),  # images
    st.integers(1, 30),  # patches per image
    st.integers(1, 60),  # dimensions
    st.booleans(),
)
def test_same_as_comparing_everything(kind, seed, vectors, images, patches, width, in_greedy_order):
    random = np.random.default_rng(seed)
    bank, rows = example(kind, random, vectors, images, patches, width)
    if in_greedy_order:
        bank = bank[greedy_coreset(torch.from_numpy(bank), len(bank))[0]]
    search = ExactSearch(MemoryBank(bank), n_axes=3, floats_per_chunk=500, pairs_per_chunk=100)
    worst = worst_patches(search, torch.from_numpy(rows))
    expected = brute_force(bank, rows)
    scale = np.abs(rows).max() + np.abs(bank).max()
    np.testing.assert_allclose(worst.distance, expected, rtol=1e-5, atol=1e-6 * scale)
    # The patch and the vector named are at that distance, and the vector is the patch's nearest.
    patch = rows[np.arange(images), worst.patch]
    np.testing.assert_allclose(np.linalg.norm(patch - bank[worst.nearest], axis=1), worst.distance, rtol=1e-5)
    np.testing.assert_allclose(brute_force(bank, patch[:, None]), expected, rtol=1e-5, atol=1e-6 * scale)


def n_searched(**options):
    """How many of 6 x 500 patches are searched exactly, near a bank of 1,000 vectors."""
    searched = []

    class CountingSearch(ExactSearch):
        def nearest(self, rows, *bounds):
            searched.append(len(rows))
            return super().nearest(rows, *bounds)

    random = np.random.default_rng(0)
    points = random.standard_normal((3000, 4)) @ random.standard_normal((4, 40))
    points = points.astype(np.float32)
    bank = MemoryBank(points[greedy_coreset(torch.from_numpy(points), 1000)[0]])
    images = random.standard_normal((6, 500, 4)) @ random.standard_normal((4, 40))
    worst_patches(CountingSearch(bank), torch.from_numpy(images.astype(np.float32)), **options)
    return sum(searched)


def test_most_patches_are_never_searched_exactly():
    assert 0 < n_searched() < 0.05 * 6 * 500


def test_the_result_of_an_image_does_not_depend_on_the_other_images():
    random = np.random.default_rng(1)
    bank = random.standard_normal((800, 100)).astype(np.float32)
    images = torch.from_numpy(random.standard_normal((9, 50, 100)).astype(np.float32))
    search = ExactSearch(MemoryBank(bank))
    together = worst_patches(search, images)
    for number in range(9):
        alone = worst_patches(search, images[number : number + 1])
        assert [column[number].item() for column in together[:3]] == [column[0].item() for column in alone[:3]]


@pytest.mark.parametrize("at_least", [-torch.inf, 0.0, 4.0, 1e6])
def test_bounds_are_upper_ones_and_none_is_above_the_farthest(at_least):
    random = np.random.default_rng(2)
    bank = random.standard_normal((800, 20)).astype(np.float32)
    images = torch.from_numpy(random.standard_normal((5, 300, 20)).astype(np.float32))
    search = ExactSearch(MemoryBank(bank))
    exact = torch.stack([search.nearest(image)[0] for image in images])
    found = worst_patches(search, images, at_least)
    assert (found.bounds >= exact * (1 - 1e-5)).all()
    reached = exact.amax(dim=1) >= at_least
    assert (found.distance[reached] == exact.amax(dim=1)[reached]).all()
    assert (found.bounds.amax(dim=1)[reached] <= found.distance[reached] * (1 + 1e-5)).all()
    assert (found.bounds.amax(dim=1) < at_least)[found.distance.isneginf()].all()


@pytest.mark.parametrize("at_least", [-torch.inf, 3.0, 4.0, 1e6])
@pytest.mark.parametrize("close_from", [0.0, 3.5, torch.inf])
def test_bounds_are_close_where_that_is_asked_for_and_else_are_bounds(at_least, close_from):
    random = np.random.default_rng(4)
    bank = random.standard_normal((800, 20)).astype(np.float32)
    images = torch.from_numpy(random.standard_normal((5, 300, 20)).astype(np.float32))
    search = ExactSearch(MemoryBank(bank))
    rows = images.flatten(0, 1)
    exact = search.nearest(rows)[0].view(5, 300)
    close = search.distances(rows, search.approximate_nearest(search.project(rows))).view(5, 300)
    found = worst_patches(search, images, at_least, close_from=close_from)
    assert (found.bounds >= exact * (1 - 1e-5)).all()
    compared = found.bounds >= close_from
    assert (found.bounds[compared] <= close[compared] * (1 + 1e-5)).all()
    expected = worst_patches(search, images, at_least)
    assert (found.distance == expected.distance).all()
    assert (found.patch == expected.patch).all()


def test_quick_bounds_leave_little_to_look_at_more_closely(monkeypatch):
    random = np.random.default_rng(5)
    mix = random.standard_normal((4, 40))
    points = (random.standard_normal((4000, 4)) @ mix).astype(np.float32)
    search = ExactSearch(MemoryBank(points[greedy_coreset(torch.from_numpy(points), 2000)[0]]))
    images = torch.from_numpy(random.standard_normal((3, 500, 4)) @ mix).float()
    typical = float(search.nearest(images.flatten(0, 1))[0].quantile(0.99))
    looked_at = []

    def counting(projections, *, quick=False):
        looked_at.append((quick, len(projections)))
        return ExactSearch.approximate_nearest(search, projections, quick=quick)

    monkeypatch.setattr(search, "approximate_nearest", counting)
    worst_patches(search, images, at_least=typical, close_from=2 * typical)
    assert looked_at[0] == (True, 1500)
    assert 0 < sum(count for _, count in looked_at[1:]) < 300


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.integers(0, 2**32 - 1),
    st.integers(1, 90),  # vectors in the bank
    st.integers(1, 3),  # images
    st.integers(1, 60),  # patches per image
    st.sampled_from([1, 2, 3, 10, 70]),  # of which there may be fewer patches
)
def test_the_largest_distances_are_those_of_searching_every_patch(kind, seed, vectors, images, patches, k):
    random = np.random.default_rng(seed)
    bank, rows = (torch.from_numpy(part) for part in example(kind, random, vectors, images, patches, 20))
    search = ExactSearch(MemoryBank(bank.numpy()), n_axes=3)
    exact = torch.stack([search.nearest(image)[0] for image in rows])
    found = worst_patches(search, rows, k=k)
    expected = exact.sort(dim=1, descending=True).values[:, :k]
    assert found.largest.shape == (images, k)
    assert (found.largest[:, : expected.shape[1]] == expected).all()
    assert found.largest[:, expected.shape[1] :].isneginf().all()
    # The largest of the bounds are these distances too, and the others are bounds.
    assert (found.bounds.sort(dim=1, descending=True).values[:, :k] == expected).all()
    assert (found.bounds >= exact * (1 - 1e-5)).all()


@pytest.mark.parametrize("k", [3, 40])
def test_distances_below_what_is_asked_for_are_not_settled(k):
    random = np.random.default_rng(3)
    bank = random.standard_normal((800, 20)).astype(np.float32)
    images = torch.from_numpy(random.standard_normal((5, 300, 20)).astype(np.float32))
    search = ExactSearch(MemoryBank(bank))
    exact = torch.stack([search.nearest(image)[0] for image in images]).sort(dim=1, descending=True).values[:, :k]
    at_least = float(exact.median())
    found = worst_patches(search, images, at_least, k)
    reached = exact >= at_least
    assert reached.any()
    assert not reached.all()
    assert (found.largest[reached] == exact[reached]).all()
    assert (found.largest[~reached] < at_least).all()


def test_few_patches_are_searched_for_the_largest_distances():
    assert 60 <= n_searched(k=10) < 0.1 * 6 * 500


def test_of_equally_far_patches_the_first_is_named():
    bank = np.zeros((3, 5), np.float32)
    images = torch.ones(2, 40, 5)
    images[1, :7] = 0
    worst = worst_patches(ExactSearch(MemoryBank(bank)), images)
    assert worst.patch.tolist() == [0, 7]
    assert worst.nearest.tolist() == [0, 0]
