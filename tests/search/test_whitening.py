import functools

import numpy as np
import pytest
import torch

from mvad.search.whitening import PatchSums, Whitening, patch_sums


def patches_like(seed, count, width, spread=3.0):
    """Patches of features that correlate, some much larger than others."""
    random = np.random.default_rng(seed)
    mixing = np.random.default_rng(width).standard_normal((width, width)) * np.logspace(-spread, 0, width)
    return torch.from_numpy((random.standard_normal((count, width)) @ mixing + 1).astype(np.float32))


@pytest.mark.parametrize(("count", "width"), [(1, 1), (3, 7), (1500, 33), (5000, 64)])
def test_sums_are_those_of_numpy(count, width):
    patches = patches_like(0, count, width)
    rows = patches.numpy().astype(np.float64)
    sums = patch_sums(patches)
    assert sums.n_patches == count
    np.testing.assert_allclose(sums.total, rows.sum(axis=0), rtol=1e-6)
    np.testing.assert_allclose(sums.products, rows.T @ rows, rtol=1e-6)


def test_sums_are_the_same_with_more_threads():
    patches, before = patches_like(1, 5000, 64), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(patch_sums(patches))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        np.testing.assert_array_equal(other.total, found[0].total)
        np.testing.assert_array_equal(other.products, found[0].products)


@pytest.mark.parametrize("regularisation", [1e-4, 0.01, 1.0])
@pytest.mark.parametrize("width", [1, 5, 60])
def test_whitening_is_that_of_numpy(width, regularisation):
    train, test = patches_like(2, 2000, width), patches_like(3, 50, width)
    whitening = Whitening.learn([patch_sums(part) for part in train.split(700)], regularisation, "cpu")
    rows = train.numpy().astype(np.float64)
    covariance = np.atleast_2d(np.cov(rows.T, bias=True))
    values, vectors = np.linalg.eigh(covariance + regularisation * np.trace(covariance) / width * np.eye(width))
    matrix = vectors @ np.diag(values**-0.5) @ vectors.T
    np.testing.assert_allclose(whitening.mean, rows.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(whitening.matrix, matrix, rtol=1e-4, atol=1e-5 * np.abs(matrix).max())
    expected = (test.numpy().astype(np.float64) - whitening.mean) @ whitening.matrix
    np.testing.assert_allclose(whitening(test), expected, rtol=1e-6, atol=1e-6 * np.abs(matrix).max())


def test_whitened_training_patches_have_the_identity_as_covariance():
    train = patches_like(4, 3000, 12, spread=1.0)
    whitened = Whitening.learn([patch_sums(train)], 1e-6, "cpu")(train).numpy()
    np.testing.assert_allclose(np.cov(whitened.T, bias=True), np.eye(12), atol=1e-2)
    np.testing.assert_allclose(whitened.mean(axis=0), 0, atol=1e-5)


@pytest.mark.parametrize("width", [1, 31, 448])
def test_a_patch_is_whitened_to_the_same_bits_whichever_the_others_are(width):
    train = patches_like(5, 600, width)
    whitening = Whitening.learn([patch_sums(train)], 0.01, "cpu")
    together = whitening(train)
    order = np.random.default_rng(0).permutation(len(train))
    assert (whitening(train[order]) == together[order]).all()
    for start, stop in ((0, 1), (599, 600), (5, 12), (17, 117)):
        assert (whitening(train[start:stop]) == together[start:stop]).all()


def test_sums_of_parts_add_up_in_their_order():
    parts = [patch_sums(part) for part in patches_like(6, 900, 8).split(200)]
    whole = functools.reduce(PatchSums.plus, parts)
    found = [Whitening.learn(sums, 0.1, "cpu") for sums in (parts, [whole])]
    np.testing.assert_array_equal(found[0].mean, found[1].mean)
    np.testing.assert_array_equal(found[0].matrix, found[1].matrix)
    assert whole.n_patches == 900


@pytest.mark.parametrize("value", [0.0, 3.3, 1e20, 1e-30])
def test_patches_that_are_all_alike_are_only_centred(value):
    whitening = Whitening.learn([patch_sums(torch.full((70, 5), value))], 1e-6, "cpu")
    np.testing.assert_array_equal(whitening.matrix, np.eye(5))
    np.testing.assert_allclose(whitening.mean, np.float32(value), rtol=1e-6)
