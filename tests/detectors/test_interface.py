"""What holds for every method, and for one of your own."""

import dataclasses
import subprocess
import sys
from types import SimpleNamespace
from typing import Annotated, get_type_hints

import numpy as np
import pytest
import torch
from pydantic import Field, ValidationError
from pydantic.dataclasses import dataclass
from typer.models import OptionInfo

from mvad.detectors import (
    KNN,
    METHODS,
    Detector,
    Extendable,
    LeaveOneOut,
    PatchCore,
    Pretrained,
    Scores,
    Shardable,
    State,
    TrainedDetector,
    find_method,
)
from mvad.errors import UsageError
from mvad.features.backbone_spec import NO_BACKBONE, BackboneSpec

HEAVY = ("torch", "torchvision", "timm", "ray", "scipy", "sklearn", "faiss")


def methods_that_are(ability):
    return [name for name, method in METHODS.items() if issubclass(method, ability)]


def test_what_each_method_can_do():
    trained = ["autoencoder", "feature-autoencoder", "vae", "vae-fewshot"]
    assert list(METHODS) == ["patchcore", "subspace", "knn", "vit-knn", *trained]
    assert methods_that_are(Extendable) == ["patchcore", "subspace", "knn", "vit-knn"]
    assert methods_that_are(Shardable) == ["patchcore", "subspace"]
    assert methods_that_are(LeaveOneOut) == ["knn", "vit-knn"]
    assert methods_that_are(TrainedDetector) == trained
    assert methods_that_are(Pretrained) == ["vae-fewshot"]


def test_unknown_method():
    with pytest.raises(UsageError, match=r"unknown method 'magic'; choose one of: patchcore"):
        find_method("magic")


def test_which_backbones_a_method_can_use():
    resnet, vit = (BackboneSpec(name, (), (), (), patch) for name, patch in (("resnet50", 1), ("vit_b_16", 16)))
    assert [name for name, method in METHODS.items() if not method.can_use(resnet)] == ["vit-knn", "autoencoder"]
    assert [name for name, method in METHODS.items() if not method.can_use(vit)] == ["autoencoder"]
    assert METHODS["autoencoder"].default_backbone == NO_BACKBONE


def test_importing_the_methods_loads_no_heavy_library():
    check = f"import sys, mvad.detectors; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_every_parameter_is_an_option_with_help(method):
    hints = get_type_hints(method.Params, include_extras=True)
    for field in dataclasses.fields(method.Params):
        (option,) = [note for note in hints[field.name].__metadata__ if isinstance(note, OptionInfo)]
        assert option.help.endswith(".")
    assert len(method.Params.__doc__.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("patchcore", {"coreset_ratio": 0.0}),
        ("patchcore", {"coreset_ratio": 1.1}),
        ("patchcore", {"projection": -1}),
        ("patchcore", {"reweight": -1}),
        ("subspace", {"variance": 1.0}),
        ("subspace", {"aggregate": "top-0%"}),
        ("patchcore", {"aggregate": "top-1"}),
        ("patchcore", {"aggregate": "top-0%"}),
        ("patchcore", {"aggregate": "top-101%"}),
        ("patchcore", {"aggregate": "mean"}),
        ("patchcore", {"distance": "manhattan"}),
        ("patchcore", {"banks": "two"}),
        ("patchcore", {"whitening": -0.1}),
        ("patchcore", {"whitening": 1e-9}),
        ("patchcore", {"whitening": float("inf")}),
        ("knn", {"neighbours": 0}),
        ("vit-knn", {"top_features": -1}),
        ("vae", {"epochs": 0}),
        ("autoencoder", {"learning_rate": 0.0}),
        ("autoencoder", {"coreset_ratio": 0.1}),  # a parameter of another method
    ],
)
def test_a_wrong_parameter_is_refused(name, parameters):
    with pytest.raises(ValidationError, match=next(iter(parameters))):
        METHODS[name](**parameters)


def test_parameters_are_read_from_the_options_and_others_ignored():
    values = {"coreset_ratio": 0.5, "max_vectors": 99, "projection": 0, "reweight": 3}
    values |= {"banks": "joint", "aggregate": "top-2%", "distance": "cosine", "whitening": 0.5, "position_weight": 2.0}
    options = SimpleNamespace(**values, neighbours=4, top_features=5, seed=6)
    assert PatchCore.from_options(options).settings == {
        **values,
        "channels": [],
        "units": [],
        "place_scales": [],
        "seed": 6,
        "coverage": 0.0,
    }
    assert KNN.from_options(options, copies=9).settings == {"neighbours": 4, "columns": 5, "copies": 9}


class Nearest(Detector):
    """A method of one's own, with a parameter: distance from the mean of the good images."""

    method = "nearest"
    feature = "pooled"
    arrays = None

    @dataclass(frozen=True, kw_only=True)
    class Params(Detector.Params):
        """Nearest"""

        order: Annotated[int, Field(ge=1)] = 2

    def restore(self, state, device):
        self.arrays = state.arrays

    def fit(self, features):
        self.arrays = {"mean": features.cpu().numpy().mean(axis=0)}
        return self

    def score(self, features):
        differences = features.cpu().numpy() - self.arrays["mean"]
        return Scores(np.linalg.norm(differences, ord=self.params.order, axis=1), None)


def test_a_method_of_your_own_needs_no_more_than_this():
    detector = Nearest.from_options(SimpleNamespace(order=1, seed=3)).fit(torch.ones(4, 5))
    assert detector.state == State({"order": 1, "seed": 3, "copies": 1}, detector.arrays)
    again = Nearest.from_state(detector.state)
    assert again.settings == detector.settings
    assert again.image_scores(torch.zeros(2, 5)).tolist() == [5, 5]
