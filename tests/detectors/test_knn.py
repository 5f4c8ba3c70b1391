import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from helpers.detectors import through_disk
from mvad.calibration import one_per_group, threshold
from mvad.detectors import KNN, ViTKNN


def vectors(count, channels=40, seed=0):
    random = np.random.default_rng(seed)
    return (random.standard_normal((count, channels)) * np.linspace(0.1, 3, channels)).astype(np.float32)


@pytest.mark.parametrize(("k", "top_features"), [(1, 0), (5, 10), (50, 25), (500, 40)])
def test_scores_are_scikit_learns(k, top_features):
    train, test = vectors(60), vectors(9, seed=1)
    detector = KNN(neighbours=k, top_features=top_features).fit(torch.from_numpy(train))
    columns = np.sort(np.argsort(train.std(axis=0))[-top_features:]) if top_features else np.arange(40)
    np.testing.assert_array_equal(detector.arrays["columns"], columns)
    plain = NearestNeighbors(n_neighbors=min(k, 60)).fit(train[:, columns])
    expected = plain.kneighbors(test[:, columns])[0].mean(axis=1)
    np.testing.assert_allclose(detector.score(torch.from_numpy(test)).image, expected, rtol=1e-5)
    assert detector.score(torch.from_numpy(test)).grid is None


@pytest.mark.parametrize(("count", "k"), [(60, 50), (60, 3), (12, 50), (2, 1)])
def test_loo_scores_are_those_of_the_other_images(count, k):
    train = vectors(count)
    detector = KNN(neighbours=k, top_features=0).fit(torch.from_numpy(train))
    expected_scores = []
    for number in range(count):
        others = np.delete(train, number, axis=0)
        distances = np.sort(np.linalg.norm(others - train[number], axis=1))
        expected_scores.append(distances[: min(k, count - 1)].mean())
    np.testing.assert_allclose(detector.loo_scores, expected_scores, rtol=1e-5)
    expected = np.mean(expected_scores) + 3 * np.std(expected_scores)
    assert threshold(detector.loo_scores, "sigma", 0.01) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("k", [1, 4, 50])
def test_variants_of_an_image_are_not_its_neighbours(k):
    """Seven images of three rows each: the image and two variants, which lie close to it."""
    train = (vectors(7)[:, None] + 0.01 * vectors(3, seed=8)).reshape(21, -1)
    detector = KNN(neighbours=k, top_features=0, copies=3).fit(torch.from_numpy(train))
    expected_scores = []
    for number in range(7):
        others = np.delete(train, range(3 * number, 3 * number + 3), axis=0)
        distances = np.sort(np.linalg.norm(others - train[3 * number], axis=1))
        expected_scores.append(distances[: min(k, 18)].mean())
    np.testing.assert_allclose(detector.loo_scores, expected_scores, rtol=1e-5)
    assert len(KNN(neighbours=k, top_features=0, copies=3).fit(torch.from_numpy(train[:3])).loo_scores) == 0


def test_duplicates_of_an_image_are_neighbours_like_any_other():
    train = np.concatenate([vectors(5), vectors(5), vectors(5)])
    detector = KNN(neighbours=1, top_features=0).fit(torch.from_numpy(train))
    np.testing.assert_allclose(detector.loo_scores, 0, atol=1e-6)


@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("k", [1, 4, 50])
def test_images_of_a_group_are_not_each_others_neighbours(k, copies):
    groups = np.array([0, 1, 0, 2, 3, 3, 3, 2, 4, 0])
    scenes = vectors(5)[groups] + 0.01 * vectors(10, seed=8)
    train = (scenes[:, None] + 0.001 * vectors(copies, seed=9)).reshape(10 * copies, -1)
    detector = KNN(neighbours=k, top_features=0, copies=copies)
    detector.groups = groups
    detector.fit(torch.from_numpy(train))
    neighbours = min(k, 7 * copies)  # that all have
    scores = []
    for number in range(10):
        others = train.reshape(10, copies, -1)[groups != groups[number]].reshape(-1, train.shape[1])
        scores.append(np.sort(np.linalg.norm(others - train[number * copies], axis=1))[:neighbours].mean())
    np.testing.assert_allclose(detector.loo_scores, one_per_group(np.array(scores), groups, 0), rtol=1e-5)
    assert detector.loo_scores.min() > 1
    detector.groups = np.zeros(10, np.int64)
    assert len(detector.fit(torch.from_numpy(train)).loo_scores) == 0


def test_a_single_image_gives_scores_but_has_no_loo_score():
    detector = KNN().fit(torch.from_numpy(vectors(1)))
    assert len(detector.loo_scores) == 0
    assert detector.score(torch.from_numpy(vectors(3, seed=2))).image.shape == (3,)


def test_a_planted_anomaly_scores_above_all_good_images():
    test = vectors(20, seed=3)
    test[7] += 9
    detector = KNN().fit(torch.from_numpy(vectors(100)))
    scores = detector.score(torch.from_numpy(test)).image
    assert scores.argmax() == 7
    upper = threshold(detector.loo_scores, "sigma", 0.01)
    assert scores[7] > upper
    assert (np.delete(scores, 7) < upper).all()


@pytest.mark.parametrize("method", [KNN, ViTKNN])
def test_state_is_arrays_and_json_and_gives_the_same_scores(method):
    detector = method(neighbours=7, top_features=12).fit(torch.from_numpy(vectors(30)))
    again = through_disk(detector)
    assert again.settings == detector.settings == {"neighbours": 7, "columns": 12, "copies": 1}
    test = torch.from_numpy(vectors(5, seed=4))
    np.testing.assert_array_equal(again.score(test).image, detector.score(test).image)


def test_the_other_images_of_a_batch_change_nothing():
    detector = KNN(neighbours=5, top_features=0).fit(torch.from_numpy(vectors(50)))
    test = torch.from_numpy(vectors(6, seed=5))
    alone = [detector.score(test[number : number + 1]).image[0] for number in range(6)]
    np.testing.assert_array_equal(detector.score(test).image, alone)
