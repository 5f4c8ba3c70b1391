"""The methods that train a network."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from helpers.detectors import through_disk
from mvad.detectors import VAE, Autoencoder, FeatureAutoencoder, Pretrained, VAEFewShot
from mvad.detectors.autoencoders import latent_size
from mvad.detectors.networks import PatchVAE
from mvad.detectors.training import TrainingPlan, seeded, split, train

TRAINED = [FeatureAutoencoder, VAE, Autoencoder]


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """As in jobs, which train on one core; with more threads the small networks here would wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def good(method, count, seed):
    """Images that lie on a plane of few dimensions, with a little noise; pixels are smooth."""
    random = np.random.default_rng(seed)
    if method is Autoencoder:
        rows, columns = np.mgrid[0:40, 0:48] / 40  # neither side is a multiple of 16
        phases = random.uniform(0, 1, (count, 1, 1, 3))
        return torch.from_numpy(
            (0.5 + 0.3 * np.sin(3 * (rows + columns)[None, :, :, None] + phases)).astype(np.float32)
        )
    directions = np.random.default_rng(99).standard_normal((3, 12))
    rows = random.standard_normal((count, 5, 6, 3)) @ directions + 0.05 * random.standard_normal((count, 5, 6, 12))
    return torch.from_numpy(rows.astype(np.float32))


def spoilt(method):
    """New good images, the fourth with a planted anomaly; and the rows and columns of the anomaly."""
    test = good(method, 8, seed=1)
    if method is Autoencoder:
        test[3, 10:22, 30:42] = 1 - test[3, 10:22, 30:42].flip(0)
        return test, (slice(10, 22), slice(30, 42))
    test[3, 2, 4] += torch.from_numpy(4 * np.random.default_rng(7).standard_normal(12).astype(np.float32))
    return test, (slice(2, 3), slice(4, 5))


@pytest.fixture(scope="module", params=TRAINED, ids=lambda method: method.method)
def fitted(request):
    epochs = 150 if request.param is Autoencoder else 25
    return request.param(epochs=epochs, learning_rate=3e-3).fit(good(request.param, 40, seed=0))


def test_a_planted_anomaly_scores_above_all_good_images_and_is_found(fitted):
    test, anomaly = spoilt(type(fitted))
    scores = fitted.score(test)
    assert scores.image.argmax() == 3
    assert scores.image[3] > 1.5 * np.delete(scores.image, 3).max()
    inside = np.zeros(scores.grid[3].shape, bool)
    inside[anomaly] = True
    assert inside[np.unravel_index(scores.grid[3].argmax(), inside.shape)]
    assert scores.grid.shape == test.shape[:3]


def test_state_is_arrays_and_json_and_gives_the_same_scores(fitted):
    test, _ = spoilt(type(fitted))
    again = through_disk(fitted)
    assert again.settings == fitted.settings
    np.testing.assert_array_equal(again.score(test).grid, fitted.score(test).grid)


def test_the_other_images_of_a_batch_change_nothing(fitted):
    test, _ = spoilt(type(fitted))
    alone = [fitted.score(test[number : number + 1]).image[0] for number in range(len(test))]
    np.testing.assert_array_equal(fitted.score(test).image, alone)


@pytest.mark.parametrize("method", TRAINED, ids=lambda method: method.method)
def test_the_seed_fixes_the_result(method):
    images = good(method, 12, seed=0)
    first, same, other = (method(epochs=2, seed=seed).fit(images) for seed in (0, 0, 1))
    for name, array in first.arrays.items():
        np.testing.assert_array_equal(same.arrays[name], array)
    assert any((other.arrays[name] != array).any() for name, array in first.arrays.items())
    assert same.history == first.history


@pytest.mark.parametrize("method", TRAINED, ids=lambda method: method.method)
def test_scoring_before_fitting_says_so(method):
    with pytest.raises(RuntimeError, match="not fitted"):
        method().score(good(method, 1, seed=0))


def adapted(pretraining, epochs):
    """The few-shot method pretrained on two other categories, whose channels vary together as in this one."""
    others = [scale * good(VAE, 20, seed) + shift for seed, scale, shift in ((5, 3.0, 1.0), (6, 0.5, -4.0))]
    prior = VAEFewShot(epochs=pretraining, learning_rate=3e-3).pretrain(others)
    detector = VAEFewShot(epochs=epochs, learning_rate=3e-3)
    detector.restore(through_disk(prior).state, "cpu")
    return detector


def test_pretraining_on_other_categories_helps_with_a_single_image():
    single, test = good(VAE, 1, seed=0), good(VAE, 20, seed=1)
    alone = VAE(epochs=10, learning_rate=3e-3).fit(single)
    helped = adapted(40, 10).fit(single)
    assert helped.score(test).grid.mean() < alone.score(test).grid.mean() - 1  # nats per patch
    spoilt_test, (rows, columns) = spoilt(VAE)
    scores = helped.score(spoilt_test)
    assert scores.image.argmax() == 3
    assert scores.grid[3].argmax() == rows.start * scores.grid.shape[2] + columns.start


def test_few_shots_need_pretraining():
    with pytest.raises(RuntimeError, match="not fitted"):
        VAEFewShot().fit(good(VAE, 1, seed=0))
    assert [method for method in (*TRAINED, VAEFewShot) if issubclass(method, Pretrained)] == [VAEFewShot]


def test_the_adapted_state_gives_the_same_scores():
    detector = adapted(2, 2).fit(good(VAE, 2, seed=0))
    again = through_disk(detector)
    test = good(VAE, 3, seed=1)
    np.testing.assert_array_equal(again.score(test).image, detector.score(test).image)
    same = adapted(2, 2).fit(good(VAE, 2, seed=0))
    np.testing.assert_array_equal(same.score(test).image, detector.score(test).image)


@pytest.mark.parametrize("size", [1, 3, 7])
def test_latent_size_is_the_number_of_directions_that_matter(size):
    random = np.random.default_rng(size)
    rows = random.standard_normal((2000, size)) @ np.linalg.qr(random.standard_normal((20, size)))[0].T
    rows += 0.01 * random.standard_normal(rows.shape)
    assert latent_size(torch.from_numpy(rows.astype(np.float32))) == size


def test_the_bound_is_the_closed_form_of_the_linear_case():
    """With a linear decoder W z + b the expected error is |x - W mu - b|^2 + tr(W S W'), which gives the bound."""
    torch.manual_seed(0)
    network = PatchVAE(channels=5, latent=3, hidden=4)
    decoder = nn.Linear(3, 5)
    network.decoder = decoder
    network.log_variance.data = torch.randn(5) * 0.3
    rows = torch.randn(6, 5)
    with torch.no_grad():
        mean, log_deviation = network.encoder(rows).chunk(2, dim=-1)
        variance = (2 * log_deviation).exp()
        precision = (-network.log_variance).exp()
        errors = ((rows - decoder(mean)) ** 2 * precision).sum(1)
        errors += torch.einsum("c,cl,nl->n", precision, decoder.weight**2, variance)
        likelihood = -0.5 * (errors + network.log_variance.sum() + 5 * math.log(2 * math.pi))
        divergence = 0.5 * (mean**2 + variance - 1 - variance.log()).sum(1)
        bound = network(rows, torch.randn((40_000, 3), generator=torch.Generator().manual_seed(1)))
    torch.testing.assert_close(bound, divergence - likelihood, rtol=0.01, atol=0.02)


def test_the_bound_is_above_the_negative_log_density_and_meets_it_at_the_true_posterior():
    """Probabilistic PCA: x = W z + noise is Gaussian with covariance W W' + s I, and its posterior is known."""
    torch.manual_seed(0)
    noise = 0.5
    # Orthogonal columns make the true posterior a diagonal Gaussian, which the encoder can give.
    weight = torch.linalg.qr(torch.randn(4, 2))[0] * torch.tensor([2.0, 1.0])
    network = PatchVAE(channels=4, latent=2, hidden=4)
    network.decoder = nn.Linear(2, 4, bias=False)
    network.decoder.weight.data = weight
    network.log_variance.data = torch.full((4,), math.log(noise))
    posterior = torch.linalg.inv(torch.eye(2) + weight.T @ weight / noise)
    encode = posterior @ weight.T / noise

    class Exact(nn.Module):
        def forward(self, rows):
            deviation = posterior.diagonal().sqrt().log().expand(len(rows), 2)
            return torch.cat([rows @ encode.T, deviation], dim=1)

    network.encoder = Exact()
    rows = torch.randn(5, 4)
    density = torch.distributions.MultivariateNormal(torch.zeros(4), weight @ weight.T + noise * torch.eye(4))
    samples = torch.randn((40_000, 2), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        torch.testing.assert_close(network(rows, samples), -density.log_prob(rows), rtol=0.01, atol=0.02)
        encode += 0.3
        assert (network(rows, samples) > -density.log_prob(rows)).all()


class Constant(nn.Module):
    def __init__(self):
        super().__init__()
        self.value = nn.Parameter(torch.zeros(1))


def squared(model, rows, generator):
    return (rows - model.value).square().mean()


def test_training_stops_when_held_out_images_no_longer_improve():
    network = Constant()
    history = train(network, torch.ones(64, 1), torch.ones(8, 1), squared, TrainingPlan(500, 0.1, 0, batch_size=16))
    assert history.epochs < 500
    assert float(network.value) == pytest.approx(1, abs=0.05)


def test_the_weights_that_did_best_are_kept():
    """Training rows lead beyond the held-out ones, so that an early epoch is the best."""
    network = Constant()
    history = train(
        network, torch.full((64, 1), 5.0), torch.full((8, 1), 1.0), squared, TrainingPlan(60, 0.02, 0, batch_size=16)
    )
    assert float(network.value) == pytest.approx(1, abs=0.1)
    assert history.loss < 0.01


def plan(seed, copies=1):
    return TrainingPlan(1, 0.1, seed, 32, copies)


def test_a_tenth_of_the_images_is_held_out_chosen_by_the_seed():
    images = torch.arange(40.0)[:, None]
    kept, held_out = split(images, plan(3))
    assert len(held_out) == 4
    assert sorted(torch.cat([kept, held_out]).ravel().tolist()) == list(range(40))
    assert torch.equal(split(images, plan(3))[1], held_out)
    assert not torch.equal(split(images, plan(4))[1], held_out)
    assert all(torch.equal(part, images[:3]) for part in split(images[:3], plan(0)))


def test_variants_are_held_out_with_their_image():
    images = torch.arange(40.0)[:, None]
    kept, held_out = split(images, plan(3, copies=4))
    assert len(held_out) == 4
    assert held_out[0, 0] % 4 == 0
    torch.testing.assert_close(held_out, held_out[0] + torch.arange(4.0)[:, None])
    assert sorted(torch.cat([kept, held_out]).ravel().tolist()) == list(range(40))
    assert len(split(images[:16], plan(0, copies=4))[1]) == 16


def test_building_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, second = (seeded(lambda: nn.Linear(3, 3), 1) for _ in range(2))
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(torch.random.get_rng_state(), before)
