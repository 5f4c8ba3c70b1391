import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.vectors import KINDS, example
from mvad.search.exact_search import ExactSearch, principal_axes
from mvad.search.memory_bank import MemoryBank

# Few axes and small chunks, so that small arrays take every path.
SmallSearch = functools.partial(ExactSearch, n_axes=4, floats_per_chunk=300, pairs_per_chunk=150)
SIZES = (st.integers(0, 2**32 - 1), st.integers(1, 90), st.integers(1, 40), st.integers(1, 60))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(KINDS), *SIZES, st.booleans(), st.sampled_from([1e-3, 1.0, 1e6]))
def test_nearest_is_that_of_comparing_everything(kind, seed, vectors, queries, width, inverted_file, scale):
    random = np.random.default_rng(seed)
    bank, (rows,) = (values * np.float32(scale) for values in example(kind, random, vectors, 1, queries, width))
    search = SmallSearch(MemoryBank(bank), inverted_file=inverted_file)
    distances, indices = search.nearest(torch.from_numpy(rows))
    between = np.sqrt(np.square(rows[:, None].astype(np.float64) - bank[None]).sum(axis=2))
    np.testing.assert_allclose(distances, between.min(axis=1), rtol=1e-6)
    # The last digit of a sum in double precision depends on its order, so nearly equal vectors count as one.
    first = (between <= between.min(axis=1, keepdims=True) * (1 + 1e-12)).argmax(axis=1)
    np.testing.assert_allclose(between[np.arange(queries), indices], between[np.arange(queries), first], rtol=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(KINDS), *SIZES, st.integers(1, 12))
def test_bank_neighbours_are_those_of_comparing_everything(kind, seed, vectors, count, width, k):
    random = np.random.default_rng(seed)
    bank, _ = example(kind, random, vectors, 1, 1, width)
    indices = random.integers(0, len(bank), count)
    neighbours = SmallSearch(MemoryBank(bank)).bank_neighbours(torch.from_numpy(indices), k)
    between = np.sqrt(np.square(bank[indices][:, None].astype(np.float64) - bank[None]).sum(axis=2))
    assert (neighbours[:, 0] == indices).all()
    assert all(len(set(row)) == min(k, len(bank)) for row in neighbours)
    expected = np.sort(between, axis=1)[:, : neighbours.shape[1]]
    np.testing.assert_allclose(np.take_along_axis(between, neighbours, axis=1), expected, rtol=1e-12)


@pytest.mark.parametrize("inverted_file", [True, False])
def test_a_bad_approximation_only_costs_time(inverted_file):
    random = np.random.default_rng(3)
    bank = MemoryBank(random.standard_normal((300, 20)).astype(np.float32))
    rows = torch.from_numpy(random.standard_normal((30, 20)).astype(np.float32))
    expected = SmallSearch(bank).nearest(rows)
    search = SmallSearch(bank, inverted_file=inverted_file)
    assert all(torch.equal(*pair) for pair in zip(search.nearest(rows), expected, strict=True))
    bounds = search.distances(rows, torch.zeros(len(rows), dtype=torch.int64))
    nearest = search.nearest(rows, upper_bounds=bounds)
    assert all(torch.equal(*pair) for pair in zip(nearest, expected, strict=True))


def test_most_vectors_are_never_compared_in_full():
    compared = []

    class CountingBank(MemoryBank):
        def rows(self, indices):
            compared.append(len(indices))
            return super().rows(indices)

    random = np.random.default_rng(4)
    mixing = random.standard_normal((6, 200))
    bank = (random.standard_normal((2000, 6)) @ mixing + 0.01 * random.standard_normal((2000, 200))).astype(np.float32)
    rows = torch.from_numpy((random.standard_normal((50, 6)) @ mixing).astype(np.float32))
    search = SmallSearch(CountingBank(bank), n_axes=48)
    compared.clear()
    search.nearest(rows)
    assert 0 < sum(compared) < 0.05 * 50 * 2000


def test_axes_are_those_of_principal_components():
    random = np.random.default_rng(2)
    rows = (random.standard_normal((200, 6)) * [9, 5, 3, 1, 0.5, 0.1] + 7).astype(np.float32)
    axes = principal_axes(torch.from_numpy(rows), 3).numpy()
    expected = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)[2][:3]
    np.testing.assert_allclose(np.abs((axes * expected).sum(axis=1)), 1, rtol=1e-4)


@pytest.mark.parametrize("rows", [np.ones((9, 6)), np.eye(9, 6), np.zeros((1, 6)), np.outer(np.arange(9), np.ones(6))])
def test_axes_are_orthonormal_for_any_data(rows):
    axes = principal_axes(torch.from_numpy(rows.astype(np.float32)), 5).numpy()
    np.testing.assert_allclose(axes @ axes.T, np.eye(len(axes)), atol=1e-5)
