import json

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from mvad.calibration import threshold
from mvad.detectors import KNN, METHODS, ViTKNN


def vectors(count, channels=40, seed=0):
    random = np.random.default_rng(seed)
    return (random.standard_normal((count, channels)) * np.linspace(0.1, 3, channels)).astype(np.float32)


@pytest.mark.parametrize(("k", "columns"), [(1, 0), (5, 10), (50, 25), (500, 40)])
def test_scores_are_scikit_learns(k, columns):
    train, test = vectors(60), vectors(9, seed=1)
    detector = KNN(k, columns).fit(torch.from_numpy(train))
    kept = np.sort(np.argsort(train.std(axis=0))[-columns:]) if columns else np.arange(40)
    np.testing.assert_array_equal(detector.arrays["columns"], kept)
    plain = NearestNeighbors(n_neighbors=min(k, 60)).fit(train[:, kept])
    expected = plain.kneighbors(test[:, kept])[0].mean(axis=1)
    np.testing.assert_allclose(detector.score(torch.from_numpy(test)).image, expected, rtol=1e-5)
    assert detector.score(torch.from_numpy(test)).grid is None


@pytest.mark.parametrize(("count", "k"), [(60, 50), (60, 3), (12, 50), (2, 1)])
def test_own_scores_are_those_without_oneself(count, k):
    train = vectors(count)
    detector = KNN(k, 0).fit(torch.from_numpy(train))
    own = []
    for number in range(count):
        others = np.delete(train, number, axis=0)
        distances = np.sort(np.linalg.norm(others - train[number], axis=1))
        own.append(distances[: min(k, count - 1)].mean())
    np.testing.assert_allclose(detector.loo_scores, own, rtol=1e-5)
    expected = np.mean(own) + 3 * np.std(own)
    assert threshold(detector.loo_scores, "sigma", 0.01) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("k", [1, 4, 50])
def test_variants_of_an_image_are_not_its_neighbours(k):
    """Seven images of three rows each: the image and two variants, which lie right beside it."""
    train = (vectors(7)[:, None] + 0.01 * vectors(3, seed=8)).reshape(21, -1)
    detector = KNN(k, 0, copies=3).fit(torch.from_numpy(train))
    own = []
    for number in range(7):
        others = np.delete(train, range(3 * number, 3 * number + 3), axis=0)
        distances = np.sort(np.linalg.norm(others - train[3 * number], axis=1))
        own.append(distances[: min(k, 18)].mean())
    np.testing.assert_allclose(detector.loo_scores, own, rtol=1e-5)
    assert len(KNN(k, 0, copies=3).fit(torch.from_numpy(train[:3])).loo_scores) == 0


def test_copies_of_an_image_are_neighbours_like_any_other():
    train = np.concatenate([vectors(5), vectors(5), vectors(5)])
    detector = KNN(1, 0).fit(torch.from_numpy(train))
    np.testing.assert_allclose(detector.loo_scores, 0, atol=1e-6)


def test_one_image_gives_scores_but_has_none_of_its_own():
    detector = KNN().fit(torch.from_numpy(vectors(1)))
    assert len(detector.loo_scores) == 0
    assert detector.score(torch.from_numpy(vectors(3, seed=2))).image.shape == (3,)


def test_a_planted_anomaly_scores_above_all_good_images():
    test = vectors(20, seed=3)
    test[7] += 9
    detector = KNN().fit(torch.from_numpy(vectors(100)))
    scores = detector.score(torch.from_numpy(test)).image
    assert scores.argmax() == 7
    limit = threshold(detector.loo_scores, "sigma", 0.01)
    assert scores[7] > limit
    assert (np.delete(scores, 7) < limit).all()


@pytest.mark.parametrize("kind", [KNN, ViTKNN])
def test_state_is_arrays_and_json_and_gives_the_same_scores(kind):
    detector = kind(7, 12).fit(torch.from_numpy(vectors(30)))
    again = METHODS[kind.method].from_state(json.loads(json.dumps(detector.settings)), detector.arrays)
    assert again.settings == detector.settings
    test = torch.from_numpy(vectors(5, seed=4))
    np.testing.assert_array_equal(again.score(test).image, detector.score(test).image)


def test_company_in_a_batch_changes_nothing():
    detector = KNN(5, 0).fit(torch.from_numpy(vectors(50)))
    test = torch.from_numpy(vectors(6, seed=5))
    alone = [detector.score(test[number : number + 1]).image[0] for number in range(6)]
    np.testing.assert_array_equal(detector.score(test).image, alone)
