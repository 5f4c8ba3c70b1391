import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mvad.coreset import greedy_coreset
from mvad.farthest import FarthestSearch, principal_axes
from mvad.neighbours import MemoryBank

KINDS = ("random", "clustered", "far from the origin", "integers", "duplicates", "constant", "one point", "in the bank")


def brute_force(bank, patches):
    """Distance of the farthest patch of each image, in double precision, every patch against every vector."""
    wide = bank.astype(np.float64)
    between = np.linalg.norm(patches.astype(np.float64)[:, :, None] - wide[None, None], axis=3)
    return between.min(axis=2).max(axis=1)


def example(kind, random, vectors, images, patches, width):
    bank = random.standard_normal((vectors, width))
    rows = random.standard_normal((images, patches, width))
    if kind == "clustered":
        centres = random.standard_normal((5, width)) * 10
        bank = bank * 0.1 + centres[random.integers(0, 5, vectors)]
        rows = rows * 0.1 + centres[random.integers(0, 5, (images, patches))]
    if kind == "far from the origin":
        bank, rows = bank + 300, rows + 300
    if kind == "integers":
        bank, rows = random.integers(0, 3, bank.shape), random.integers(0, 3, rows.shape)
    if kind == "duplicates":
        bank, rows = bank[random.integers(0, 2, vectors) % vectors], rows[:, random.integers(0, 2, patches) % patches]
    if kind == "constant":
        bank, rows = np.ones_like(bank), np.full_like(rows, 3)
    if kind == "one point":
        bank = bank[:1]
    if kind == "in the bank":
        rows = bank[random.integers(0, vectors, (images, patches))]
    return bank.astype(np.float32), rows.astype(np.float32)


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
        patch.setattr("mvad.farthest.LEVELS", (7, 40))
        patch.setattr("mvad.farthest.CHUNK", 500)
        patch.setattr("mvad.neighbours.PAIRS", 100)
        found = FarthestSearch(MemoryBank(bank))(torch.from_numpy(rows))
    expected = brute_force(bank, rows)
    scale = np.abs(rows).max() + np.abs(bank).max()
    np.testing.assert_allclose(found.distance, expected, rtol=1e-5, atol=1e-6 * scale)
    # The patch and the vector it names are at that distance, and the vector is the patch's nearest.
    chosen = rows[np.arange(images), found.patch]
    np.testing.assert_allclose(np.linalg.norm(chosen - bank[found.nearest], axis=1), found.distance, rtol=1e-5)
    np.testing.assert_allclose(brute_force(bank, chosen[:, None]), expected, rtol=1e-5, atol=1e-6 * scale)


def test_most_patches_are_never_compared_with_the_whole_bank(monkeypatch):
    random = np.random.default_rng(0)
    points = random.standard_normal((3000, 4)) @ random.standard_normal((4, 40))
    points = points.astype(np.float32)
    bank = MemoryBank(points[greedy_coreset(torch.from_numpy(points), 1000)[0]])
    compared = []
    plain = MemoryBank.nearest
    monkeypatch.setattr(MemoryBank, "nearest", lambda own, rows: compared.append(len(rows)) or plain(own, rows))
    images = random.standard_normal((6, 500, 4)) @ random.standard_normal((4, 40))
    FarthestSearch(bank)(torch.from_numpy(images.astype(np.float32)))
    assert sum(compared) < 0.05 * 6 * 500


def test_the_answer_for_an_image_does_not_depend_on_its_company():
    random = np.random.default_rng(1)
    bank = random.standard_normal((800, 100)).astype(np.float32)
    images = torch.from_numpy(random.standard_normal((9, 50, 100)).astype(np.float32))
    search = FarthestSearch(MemoryBank(bank))
    together = search(images)
    for number in range(9):
        alone = search(images[number : number + 1])
        assert [column[number].item() for column in together] == [column[0].item() for column in alone]


def test_axes_are_those_of_principal_components():
    random = np.random.default_rng(2)
    rows = (random.standard_normal((200, 6)) * [9, 5, 3, 1, 0.5, 0.1] + 7).astype(np.float32)
    axes = principal_axes(torch.from_numpy(rows), 3).numpy()
    expected = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)[2][:3]
    np.testing.assert_allclose(np.abs((axes * expected).sum(axis=1)), 1, rtol=1e-4)
