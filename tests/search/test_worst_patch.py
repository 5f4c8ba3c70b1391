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
    wide = bank.astype(np.float64)
    between = np.linalg.norm(patches.astype(np.float64)[:, :, None] - wide[None, None], axis=3)
    return between.min(axis=2).max(axis=1)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.integers(0, 2**32 - 1),
    st.integers(1, 90),  # vectors in the bank
    st.integers(1, 4),  # images
    st.integers(1, 30),  # patches of each
    st.integers(1, 60),  # dimensions
    st.booleans(),
)
def test_same_as_comparing_everything(kind, seed, vectors, images, patches, width, in_greedy_order):
    random = np.random.default_rng(seed)
    bank, rows = example(kind, random, vectors, images, patches, width)
    if in_greedy_order:
        bank = bank[greedy_coreset(torch.from_numpy(bank), len(bank))[0]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mvad.search.exact_search.AXES", 3)
        patch.setattr("mvad.search.exact_search.NUMBERS", 500)
        patch.setattr("mvad.search.exact_search.PAIRS", 100)
        found = worst_patches(ExactSearch(MemoryBank(bank)), torch.from_numpy(rows))
    expected = brute_force(bank, rows)
    scale = np.abs(rows).max() + np.abs(bank).max()
    np.testing.assert_allclose(found.distance, expected, rtol=1e-5, atol=1e-6 * scale)
    # The patch and the vector it names are at that distance, and the vector is the patch's nearest.
    chosen = rows[np.arange(images), found.patch]
    np.testing.assert_allclose(np.linalg.norm(chosen - bank[found.nearest], axis=1), found.distance, rtol=1e-5)
    np.testing.assert_allclose(brute_force(bank, chosen[:, None]), expected, rtol=1e-5, atol=1e-6 * scale)


def test_most_patches_are_never_settled(monkeypatch):
    random = np.random.default_rng(0)
    points = random.standard_normal((3000, 4)) @ random.standard_normal((4, 40))
    points = points.astype(np.float32)
    bank = MemoryBank(points[greedy_coreset(torch.from_numpy(points), 1000)[0]])
    settled = []
    plain = ExactSearch.nearest
    monkeypatch.setattr(
        ExactSearch, "nearest", lambda own, rows, *known: settled.append(len(rows)) or plain(own, rows, *known)
    )
    images = random.standard_normal((6, 500, 4)) @ random.standard_normal((4, 40))
    worst_patches(ExactSearch(bank), torch.from_numpy(images.astype(np.float32)))
    assert sum(settled) < 0.05 * 6 * 500


def test_the_answer_for_an_image_does_not_depend_on_its_company():
    random = np.random.default_rng(1)
    bank = random.standard_normal((800, 100)).astype(np.float32)
    images = torch.from_numpy(random.standard_normal((9, 50, 100)).astype(np.float32))
    search = ExactSearch(MemoryBank(bank))
    together = worst_patches(search, images)
    for number in range(9):
        alone = worst_patches(search, images[number : number + 1])
        assert [column[number].item() for column in together] == [column[0].item() for column in alone]


def test_of_equally_far_patches_the_first_is_named():
    bank = np.zeros((3, 5), np.float32)
    images = torch.ones(2, 40, 5)
    images[1, :7] = 0
    found = worst_patches(ExactSearch(MemoryBank(bank)), images)
    assert found.patch.tolist() == [0, 7]
    assert found.nearest.tolist() == [0, 0]
