import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from mvad.search.memory_bank import MemoryBank, nearest_in_chunks


def search_in_chunks(bank, queries, k):
    """Search as a GPU does, here on the CPU and in several chunks."""
    vectors = torch.from_numpy(bank)
    indices = nearest_in_chunks(queries, vectors, (vectors**2).sum(1), min(k, len(bank)), vectors_per_chunk=37)
    return torch.linalg.vector_norm(queries[:, None] - vectors[indices], dim=2).numpy(), indices.numpy()


def search_with_faiss(bank, queries, k):
    return MemoryBank(bank).search(queries, k)


@pytest.fixture(params=[search_with_faiss, search_in_chunks])
def search(request):
    return request.param


@pytest.mark.parametrize(("count", "k"), [(100, 1), (100, 9), (5, 9), (1, 1)])
def test_same_as_scikit_learn(search, count, k):
    random = np.random.default_rng(0)
    bank = random.standard_normal((count, 12)).astype(np.float32)
    queries = random.standard_normal((40, 12)).astype(np.float32)
    distances, indices = search(bank, torch.from_numpy(queries), k)
    expected = NearestNeighbors(n_neighbors=min(k, count), algorithm="brute").fit(bank.astype(np.float64))
    expected_distances, expected_indices = expected.kneighbors(queries.astype(np.float64))
    np.testing.assert_array_equal(indices, expected_indices)
    np.testing.assert_allclose(distances, expected_distances, rtol=1e-5)


def test_small_distances_far_from_the_origin_stay_accurate(search):
    """The expanded form |x|^2 - 2xy + |y|^2 alone loses them to cancellation."""
    random = np.random.default_rng(1)
    bank = (1000 + 50 * random.standard_normal((60, 8))).astype(np.float32)
    queries = bank[:20] + np.float32(0.01)
    distances, indices = search(bank, torch.from_numpy(queries), 1)
    np.testing.assert_array_equal(indices[:, 0], np.arange(20))
    exact = np.linalg.norm(queries.astype(np.float64) - bank[:20], axis=1)
    np.testing.assert_allclose(distances[:, 0], exact, rtol=1e-4)


def test_a_read_only_array_is_used_in_place():
    vectors = np.random.default_rng(2).standard_normal((30, 4)).astype(np.float32)
    vectors.setflags(write=False)
    bank = MemoryBank(vectors)
    assert bank.vectors is vectors
    assert bank.search(torch.from_numpy(vectors[:3].copy()), 1)[1].ravel().tolist() == [0, 1, 2]
