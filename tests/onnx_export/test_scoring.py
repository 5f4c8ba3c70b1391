"""The modules that are exported score features as the detectors do."""

import numpy as np
import pytest
import torch

from helpers.vectors import KINDS, example
from mvad.detectors import METHODS, Detector, PatchCore, Subspace
from mvad.errors import UsageError
from mvad.onnx_export.scoring import scoring_module

TOLERANCE = 1e-5
VARIANTS = (
    {},
    {"reweight": 0},
    {"reweight": 3, "distance": "cosine"},
    {"whitening": 0.01},
    {"whitening": 0.1, "distance": "cosine", "aggregate": "top-10%"},
    {"position_weight": 1.0},
    {"position_weight": 2.0, "whitening": 0.1, "distance": "cosine"},
    {"banks": "layers"},
    {"banks": "layers", "position_weight": 0.5},
    {"banks": "layers", "distance": "cosine", "aggregate": "top-10%"},
)


def features(kind, seed=0):
    """Patches of 6 images to fit to and of 3 to score, (images, 4, 5, 16)."""
    bank, rows = example(kind, np.random.default_rng(seed), 6 * 20, 3, 20, 16)
    bank = np.resize(bank, (120, 16))
    return torch.from_numpy(bank).view(6, 4, 5, 16), torch.from_numpy(rows).view(3, 4, 5, 16)


def check(detector, images):
    expected, module = detector.score(images), scoring_module(detector)
    with torch.inference_mode():
        found = [module(image[None]) for image in images]
    scale = np.abs(expected.grid).max() * TOLERANCE + 1e-30
    np.testing.assert_allclose([float(score) for score, _ in found], expected.image, rtol=TOLERANCE, atol=scale)
    np.testing.assert_allclose(np.stack([grid for _, grid in found]), expected.grid, rtol=TOLERANCE, atol=scale)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_patchcore(kind, options):
    good, images = features(kind)
    channels = (6, 10) if options.get("banks") == "layers" else ()
    check(PatchCore(coreset_ratio=0.5, channels=channels, **options).fit(good), images)


@pytest.mark.parametrize("aggregate", ["max", "top-10%"])
def test_subspace(aggregate):
    good, images = features("clustered")
    check(Subspace(variance=0.9, aggregate=aggregate).fit(good), images)


def test_small_distances_far_from_the_origin_are_accurate():
    """Where the expanded form of the distance is nothing but rounding."""
    good, _ = features("random")
    detector = PatchCore(coreset_ratio=1.0, reweight=0).fit(good + 1000)
    images = (good[:3] + 1000) + 1e-3
    check(detector, images)


def test_a_method_without_a_module_is_refused():
    class Own(Detector):
        method = "own"

    Own.__abstractmethods__ = frozenset()
    with pytest.raises(UsageError, match="models of the method own cannot be exported"):
        scoring_module(Own())


def test_every_method_has_a_module():
    from mvad.onnx_export.scoring import MODULES

    assert all(issubclass(method, tuple(MODULES)) for method in METHODS.values())
